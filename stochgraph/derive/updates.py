"""Updates with a derived objective: a surrogate, as a function of a placeholder, whose gradient is the direction."""

from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.paths import first_mixing
from ..surrogate.solutions import CompiledArgmax
from ..surrogate.steps import CompiledDirection, CompiledGradient, CompiledStep, Placeholder
from ..surrogate.terms import Score
from ..tensors.axes import Axes, describe, union
from .boxes import Kind
from .deriving import Around, Deriving
from .estimator import plain
from .placement import Placement
from .scopes import UpdateScope

_GRADIENTS: dict[type[nd.Update], type[CompiledGradient]] = {nd.Step: CompiledStep, nd.Direction: CompiledDirection}


def compiled_update(derivation: Deriving, node: nd.Update, parts: list[nd.Node]) -> nd.Node:
    """The update on derived inputs: its parameters, and its step sizes."""
    # Inside another update's inner gradient, an update is the function of its parameters that it is: no boxes.
    estimators = plain(derivation.estimators) if derivation.around else derivation.estimators
    scope = UpdateScope(estimators, node)
    axes = union(parts[0].axes, node.variable.axes, node.objective.axes)
    psi, inner, surrogates = _inner(derivation, node, Placement(scope), axes)
    detach = node in derivation.constant
    if isinstance(node, nd.Argmax):
        return CompiledArgmax(node, parts[0], parts[1:], psi, surrogates, detach)
    shared = [] if derivation.around else _shared_scores(derivation, scope, inner)
    return _GRADIENTS[type(node)](node, parts[0], parts[1:], psi, surrogates, detach, shared)


def _inner(
    derivation: Deriving, node: nd.Update, placement: Placement, axes: Axes
) -> tuple[Placeholder, Deriving, list[nd.Node]]:
    """The update's placeholder, derivation and surrogate; behind it the plain one if it has control variates.

    Inside another update's objective the surrogate may depend on copies of that update's parameters: then there is
    one placeholder for each.
    """
    psi = Placeholder(node, axes)
    inner = derivation.inside(Around(derivation, node, placement, psi))
    surrogates = [inner.surrogate(node.objective)]
    scope = placement.scope
    if any(scope.estimators[s].inside.control for s in scope.reach[Kind.SCORE][node.objective]):
        controlled = derivation.inside(Around(derivation, node, placement, psi, controlled=True))
        surrogates.insert(0, controlled.surrogate(node.objective))
    wider = union(axes, *(surrogate.axes for surrogate in surrogates))
    if wider != axes:
        return _inner(derivation, node, placement, wider)
    for surrogate in surrogates:
        _refuse_mixed_copies(node, psi, surrogate)
    return psi, inner, surrogates


def _shared_scores(derivation: Deriving, scope: UpdateScope, inner: Deriving) -> list[tuple[Score, Score]]:
    """The scores of an inner derivation with the same ones at the parameters themselves."""
    found: list[tuple[Score, Score]] = []
    update = scope.update
    for sample in map(derivation.scope.samples.__getitem__, scope.reach[Kind.SCORE][update.objective]):
        direct = all(parent is update.params or parent not in scope.region for parent in sample.inputs)
        at_psi = inner.score(sample)
        if direct and at_psi.axes == sample.axes:
            found.append((at_psi, derivation.score(sample)))
    return found


def _refuse_mixed_copies(update: nd.Update, psi: Placeholder, surrogate: nd.Node) -> None:
    """A copy for every copy of an outer update's parameters must not meet the others."""
    found = first_mixing(psi, surrogate, set(psi.axes) - set(update.axes))
    if found:
        node, plate = found
        raise CompileError(
            f"update {update.name!r} (axes: {describe(update.axes)}) is part of another update's objective, which "
            f"keeps the plate {plate.name!r}: there is one {update.name!r} for each of its draws, but "
            f"{node.name!r} reduces that plate. Reduce it in the whole objective of the outer update"
        )
