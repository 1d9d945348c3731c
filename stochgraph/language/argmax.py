"""The words of implicit updates: an unknown, and the update that solves for it.

The unknown has a word of its own so that the inner objective is declared like any other node, in terms of a symbol.
"""

from collections.abc import Iterable
from typing import Any

from ..errors.exceptions import DeclarationError
from ..ir import nodes as nd
from ..ir.paths import between, moves_with
from ..ir.programs import schedule
from ..solvers import ClosedForm, ConjugateGradient, LinearSolver, Newton, Solver
from ..tensors.axes import describe, union
from .symbols import Symbol, current, name_after
from .words import _depends, _node, _refuse_mixed_copies, _refuse_time, _symbol, apply, stop

_NEWTON, _CONJUGATE_GRADIENT = Newton(), ConjugateGradient()


def unknown(name: str | None, like: object) -> Any:
    """A symbol for parameters that an implicit update solves for; see `argmax`.

    Args:
        name: the name of the node, unique in the graph; `None` makes one, for functions that declare a step and may be
            called several times.
        like: the node whose structure the parameters have. The unknown has its axes, and it is where the solver starts
            unless told otherwise; it does not depend on its value.

    Raises:
        DeclarationError: a name taken. Once the graph is declared: the objective depends on an unknown that no `argmax`
            has solved for.

    Example:
        >>> import torch, stochgraph as sg
        >>> @sg.graph
        ... def objective(theta):
        ...     psi = sg.unknown("psi", like=theta)
        ...     return sg.argmax(psi * theta - psi**2, over=psi)
        >>> float(objective.compile({}).sample(torch.tensor(3.0)).value)
        1.5
    """
    declaration = current("unknown")
    node = _node(like, "unknown")
    if name is None:
        name = declaration.unique(f"{node.name}*")
    if name in declaration.names:
        raise DeclarationError(f"two nodes of the name {name!r}: give the unknown a name of its own")
    return declaration.add(nd.Unknown(name, len(declaration.nodes), node))


def argmax(
    objective: object,
    over: object,
    init: object = None,
    solver: Solver = _NEWTON,
    linear_solver: LinearSolver = _CONJUGATE_GRADIENT,
    name: str | None = None,
) -> Any:
    r"""An implicit update: the unknown that maximises a declared inner objective, solved on the data.

    .. math:: \theta' = \arg\max_\psi L(\psi, \phi, D), \qquad
              \mathrm d\theta' = -\big[\partial^2_{\psi\psi} L\big]^{-1} \partial^2_{\psi\phi} L \; \mathrm d\phi

    All draws are held fixed while the solver runs. The solution is differentiated by the implicit function theorem, to
    any order, without keeping the solver's steps. Like a gradient step it is a nonlinear operation on the data: the
    estimators count its data's distribution in the same ways, `"dice"` boxing the terms of the objective. What is left
    of the objective's plates (the tasks, say) becomes a plate of the result: one solution per task.

    Args:
        objective: a declared inner objective, a scalar per draw, without time axes, twice differentiable in the
            unknown.
        over: the unknown, from `sg.unknown`.
        init: a node with the structure of the unknown: where the solver starts, a constant. Default: what the unknown
            is like.
        solver: how it is solved: `sg.solvers.Newton`, `Adam`, `ClosedForm`, or one of yours.
        linear_solver: how the inverse of the Hessian is applied: `sg.solvers.ConjugateGradient` or `Dense`.
        name: the name of the solution, as in `apply`; default: that of what the unknown is like, with a prime.

    Raises:
        DeclarationError: the objective does not depend on the unknown, has a time axis left or contains a sample drawn
            from the unknown; the unknown is solved for already; a name taken.
        SolverError: while running. The solver did not reach its tolerance; or, when differentiated, the solution is no
            strict maximum, or the linear solver did not reach its tolerance. Inside `torch.func` transforms too.

    Note:
        With weights that are not 1 (a surrogate at other parameters than those that drew the trace), boxed terms are
        importance weighted, and the solution is that of the weighted objective.

    References:
        Krantz and Parks (2002) for the implicit function theorem; Rajeswaran et al. (2019), iMAML, lemma 1; Xu and Zhu
        (2024), BO-MRL, eqs. 1 and 8.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Categorical
        >>> reward = torch.tensor([0.1, 1.0, -0.6], dtype=torch.float64)
        >>> @sg.graph
        ... def adapted(phi):
        ...     pulls = sg.sample("D", Categorical, logits=phi, n=2)
        ...     psi = sg.unknown("psi", like=phi)
        ...     gain = sg.apply(lambda a, p, q: (p - q).log_softmax(-1)[a] * reward[a], pulls, psi, phi)
        ...     solution = sg.argmax(sg.mean(gain) - ((psi - phi) ** 2).sum(), over=psi)
        ...     return sg.apply(lambda t: t.softmax(-1) @ reward, solution)
        >>> phi = torch.zeros(3, dtype=torch.float64)
        >>> sg.verify(adapted.compile(sg.SF()), phi).relative_bias < 1e-8
        True
        >>> adapted.compile(sg.MAML()).explain().unbiased
        False
    """
    given = _symbol(objective, "argmax")
    goal, declaration = given._node, given._declaration
    variable = _unknown_in(over, declaration.nodes)
    _check_solvers(solver, linear_solver)
    _refuse_time("argmax", variable, goal)
    _refuse_drawn(variable, goal)
    if goal not in moves_with(schedule([goal]), [variable]):
        raise DeclarationError(
            f"sg.argmax over {variable.name!r}: the objective {goal.name!r} does not depend on {variable.name!r} "
            "through values: any value of it is a solution"
        )
    _refuse_mixed_copies("argmax", variable, goal)
    start = _start(variable, goal, init, solver)
    called = declaration.name("argmax", name, name_after(variable.like))
    solution = nd.Argmax(called, len(declaration.nodes), start, goal, variable, solver, linear_solver)
    return declaration.add(solution, named=name is not None)


def _unknown_in(over: object, declared: Iterable[nd.Node]) -> nd.Unknown:
    """The unknown to solve for, which must be whole and open."""
    node = _node(over, "argmax")
    if not isinstance(node, nd.Unknown):
        raise DeclarationError(
            f"sg.argmax over {node.name!r}: it is no unknown but a value of the graph. Declare psi = sg.unknown(name, "
            "like=params), and write the objective in terms of psi"
        )
    solved = [other.name for other in declared if isinstance(other, nd.Argmax) and other.unknown is node]
    if solved:
        raise DeclarationError(
            f"sg.argmax over {node.name!r}: it is solved for already, by {solved[0]!r}. Declare another unknown for "
            "another problem"
        )
    return node


def _check_solvers(solver: object, linear_solver: object) -> None:
    for word, given, kind in (("solver", solver, Solver), ("linear_solver", linear_solver, LinearSolver)):
        if not isinstance(given, kind):
            raise DeclarationError(
                f"sg.argmax: {word}={given!r} is not a {kind.__name__}; use an instance of one in sg.solvers"
            )


def _refuse_drawn(variable: nd.Unknown, goal: nd.Node) -> None:
    for node in between(variable, goal):
        if isinstance(node, nd.Sample):
            raise DeclarationError(
                f"sample {node.name!r} (axes: {describe(node.axes)}) is drawn from the unknown {variable.name!r}, "
                "which sg.argmax solves for with all draws fixed. Draw it from known parameters, and weight its terms "
                f"with a ratio of probabilities that depends on {variable.name!r}"
            )


def _start(variable: nd.Unknown, goal: nd.Node, init: object, solver: Solver) -> nd.Stop:
    """The start of the solver, as a constant."""
    declaration = current("argmax")
    given = Symbol(variable.like, declaration) if init is None else init
    if isinstance(solver, ClosedForm):
        given = apply(solver.fn, *(solver.nodes or (given,)))
    node = _node(given, "argmax(init=)")
    if _depends(node, variable):
        raise DeclarationError(
            f"sg.argmax over {variable.name!r}: it would start at {node.name!r}, which depends on {variable.name!r} "
            "itself. Start at known parameters"
        )
    more = [axis for axis in node.axes if axis not in union(variable.axes, goal.axes)]
    if more:
        raise DeclarationError(
            f"sg.argmax over {variable.name!r}: it would start at {node.name!r} (axes: {describe(node.axes)}), but "
            f"neither {variable.name!r} (axes: {describe(variable.axes)}) nor the objective {goal.name!r} (axes: "
            f"{describe(goal.axes)}) has the plate {more[0].name!r}: there is one solution for all its draws"
        )
    return stop(Symbol(node, declaration))._node
