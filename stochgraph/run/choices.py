"""Choices that are made before a surrogate is derived: an estimator for every sample node, and the inputs."""

from collections.abc import Mapping

from ..derive.estimator import SCORED, GradientEstimator
from ..derive.reach import data_of
from ..derive.routes import Routes
from ..errors.exceptions import CompileError
from ..ir import nodes as nd
from ..ir.declaration import Declaration
from ..ir.paths import samples_in, scored_samples
from ..tensors.axes import describe

Given = GradientEstimator | Mapping[str, GradientEstimator]


def choose_inputs(graph: Declaration, wrt: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the differentiated inputs: by default the first one."""
    chosen = (graph.inputs[0],) if wrt is None else (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in chosen:
        if name not in graph.inputs:
            raise CompileError(f"wrt={name!r}: {graph.name} has no such input; choose from {', '.join(graph.inputs)}")
    if len(set(chosen)) < len(chosen):
        raise CompileError(f"wrt={chosen!r} names an input twice: name each one once")
    return chosen


def given_estimators(graph: Declaration, estimators: Given) -> dict[str, GradientEstimator]:
    """The estimators as the user gave them, by sample node."""
    known = samples_in(graph.order)
    given = dict(estimators) if isinstance(estimators, Mapping) else dict.fromkeys(known, estimators)
    for name, estimator in given.items():
        if name not in known:
            raise CompileError(
                f"an estimator is given for {name!r}, but {graph.name} has no such sample node; "
                f"it has {', '.join(map(repr, known)) or 'none'}"
            )
        _check_kind(f"sample {name!r}", estimator)
    if not isinstance(estimators, Mapping):  # it also says how updates without a sample are differentiated
        _check_kind(graph.name, estimators)
    return given


def _check_kind(where: str, estimator: object) -> None:
    if not isinstance(estimator, GradientEstimator):
        raise CompileError(f"{where}: {estimator!r} is not an estimator; use sg.SF(), sg.LSF(), sg.PW() ...")


def constant_updates(graph: Declaration, estimators: Given, given: Mapping[str, GradientEstimator]) -> set[nd.Update]:
    """The updates whose direction is not differentiated: all of them, or those that a sample of the estimator feeds."""
    updates = {node for node in graph.order if isinstance(node, nd.Update)}
    stopping = {name for name, estimator in given.items() if _stops(estimator)}
    if not isinstance(estimators, Mapping):
        return updates if _stops(estimators) else set()
    return {node for node in updates if not stopping.isdisjoint(data_of(node))}


def _stops(estimator: GradientEstimator) -> bool:
    return estimator.inside.stopped


def assigned(
    graph: Declaration, given: Mapping[str, GradientEstimator], wrt: tuple[str, ...]
) -> dict[str, GradientEstimator]:
    """The estimator of every sample node that is scored.

    Nodes that depend on other inputs than the differentiated ones carry no gradient. They are scored all the same, so
    that a surrogate at other inputs is importance weighted. Nodes drawn from the parameters of an update are scored
    because the update's direction is made of their scores.
    """
    pathwise = [name for name, estimator in given.items() if not estimator.scored]
    needed = scored_samples(graph.order, [node for node in graph.sources if node.name in wrt], pathwise)
    for name, node in needed.items():
        if name not in given:
            raise CompileError(
                f"sample {name!r} (axes: {describe(node.axes)}) has no estimator, and its distribution depends on a "
                "differentiated input: give it one, sg.SF() for instance"
            )
    others = scored_samples(graph.order, graph.sources, [name for name in pathwise if name in needed])
    weighted = {s: SCORED for s, node in others.items() if not node.law.has_moving_support}
    starts = [node.params for node in graph.order if isinstance(node, nd.Update) and node.scores]
    inner = {s: given.get(s, SCORED) for s in scored_samples(graph.order, starts, pathwise)}
    found = {**weighted, **inner, **{name: given[name] for name in needed}}
    return {name: found[name] for name in samples_in(graph.order) if name in found}


def check(graph: Declaration, estimators: Mapping[str, GradientEstimator], wrt: tuple[str, ...]) -> None:
    """Refuse estimators that are not right for their sample, and inputs that the objective does not depend on."""
    samples = samples_in(graph.order)
    routes = Routes(graph, [name for name, estimator in estimators.items() if not estimator.scored])
    for name, estimator in estimators.items():
        estimator.check(samples[name], routes)
    inputs = {node.name: node for node in graph.sources}
    for name in wrt:
        if not routes.arrive(inputs[name]):
            raise CompileError(
                f"the objective {graph.objective.name!r} does not depend on the input {name!r}, neither through "
                "values nor through a distribution: leave it out of wrt, or use it in the graph"
            )
