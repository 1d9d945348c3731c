"""What an algorithm is here: a graph, and the estimator of each of its sample nodes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import stochgraph as sg


class Template(NamedTuple):
    """An algorithm: what its meta-gradient is of, and how each sample node's distribution is differentiated.

    Attributes:
        graph: the declared meta-objective.
        estimators: an estimator per sample node; those that need none are left out.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> from stochgraph.algorithms.template import Template
        >>> @sg.graph
        ... def objective(theta):
        ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=10))
        >>> Template(objective, {"x": sg.SF()}).compile().explain().unbiased
        True
    """

    graph: sg.Graph
    estimators: Mapping[str, Any]

    def compile(self) -> sg.Compiled:
        """The surrogate of the graph with these estimators."""
        return self.graph.compile(dict(self.estimators))
