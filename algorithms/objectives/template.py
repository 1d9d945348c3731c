"""Algorithms: a graph, and the estimator of each of its sample nodes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import stochgraph as sg


class Template(NamedTuple):
    """An algorithm: what its meta-gradient is of, and how each sample node's distribution is differentiated.

    Attributes:
        graph: the declared meta-objective.
        estimators: an estimator per sample node; those that need none are left out.
        adapt: declares one inner step on recorded trajectories, a function of `(parameters, data, plate)`: for graphs
            such as `adapted_divergence`, which look at the draws again. `None` if the algorithm has no such step.
        replayed: the objective that is climbed on the draws of one meta-batch, if that is another than the surrogate
            of `graph`: its inputs are the parameters, and those that drew.
        epochs: steps on the draws of one meta-batch.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> from stochgraph.algorithms.objectives.template import Template
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=10))
        >>> Template(objective, {"x": sg.SF()}).compile().explain().unbiased
        True
    """

    graph: sg.Graph
    estimators: Mapping[str, Any]
    adapt: Any = None
    replayed: sg.Graph | None = None
    epochs: int = 1

    def compile(self, lowering: str = "auto") -> sg.Compiled:
        """The surrogate of the graph with these estimators; `lowering` as in `Graph.compile`."""
        return self.graph.compile(dict(self.estimators), lowering=lowering)

    def with_estimator(self, estimator: Any) -> "Template":
        """The same with another estimator of the inner samples; the outcome `tau` keeps its own."""
        estimators = {name: own if name == "tau" else estimator for name, own in self.estimators.items()}
        return self._replace(estimators=estimators)
