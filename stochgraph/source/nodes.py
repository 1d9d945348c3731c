"""The writer of every kind of node. A kind that is not listed is refused by name, whatever it derives from."""

from collections.abc import Callable, Mapping

from ..derive.controls import ControlVariate
from ..derive.replays import Replay
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm, Scale
from ..surrogate.expansions import ExpandedBox, OtherScores
from ..surrogate.solutions import CompiledArgmax
from ..surrogate.steps import CompiledStep
from ..surrogate.terms import Box, Controlled, Score, ScoreTerm, Total, Weight
from . import added, declared, updates
from .scope import Written

KINDS: Mapping[type[nd.Node], Callable[..., Written]] = {
    nd.Input: declared.given,
    nd.Data: declared.data,
    nd.Sample: declared.sample,
    nd.Apply: declared.deterministic,
    nd.Select: declared.select,
    nd.Reduction: declared.reduction,
    nd.Reduce: declared.reduce_by_function,
    nd.Stop: declared.stop,
    nd.Zero: declared.zero,
    nd.LogProb: added.score,
    Scale: declared.scale,
    Exponential: declared.exponential,
    Logarithm: declared.logarithm,
    Score: added.score,
    Weight: added.weight,
    Box: added.box,
    ExpandedBox: added.expanded_box,
    OtherScores: added.other_scores,
    ScoreTerm: added.score_term,
    Total: added.total,
    Controlled: added.controlled,
    ControlVariate: added.control_variate,
    CompiledStep: updates.step,
    CompiledArgmax: updates.solution,
    Replay: updates.replay,
}
