"""The nodes that the compiler adds, as text: log-probabilities, ratios, boxes, control variates."""

from ..derive.controls import ControlVariate
from ..ir import nodes as nd
from ..surrogate.expansions import ExpandedBox, OtherScores
from ..surrogate.terms import Box, Controlled, Score, ScoreTerm, Total, Weight
from ..tensors.axes import Axes, Axis, without
from .calls import operands
from .declared import without_draw
from .names import identifier
from .scope import Scope, Written
from .scores import log_prob
from .stems import place_of, stem_of
from .text import ATOM, PRODUCT, SIGN, SUM, Text, aligned, call, infix, method, reduced
from .writer import Writer


def score(writer: Writer, scope: Scope, node: Score | nd.LogProb) -> Written:
    """The log-probability of every draw."""
    return Written(log_prob(writer, scope, node, node.sample), f"log_p_{identifier(node.sample.name)}")


def weight(writer: Writer, scope: Scope, node: Weight) -> Written:
    """A log-probability less what it was when the draws were made, reduced to the axes of the term in front of it."""
    (score,) = node.inputs
    scope.settle(score)
    text = scope.text(score)
    if node not in writer.uses.directions:
        text = _ratio(writer, scope, node, text)
    for d in [d for d, axis in enumerate(score.axes) if axis.time and axis in node.aligned]:
        text = method(text, "cumsum", str(d))
    gone = [d for d, axis in enumerate(score.axes) if axis in node.summed]
    return Written(_summed(writer, scope, node, text, score.axes, gone), _ratio_stem(node))


def _ratio_stem(node: Weight) -> str:
    return f"{'sum_of_' if node.summed else ''}ratio_{identifier(node.sample.name)}"


def _ratio(writer: Writer, scope: Scope, node: Weight, text: Text) -> Text:
    """The ratio for every draw; with a name where it is used in several forms."""
    (score,) = node.inputs
    known = scope.named(score)
    if known is not None:
        return known
    ratio = infix("-", SUM, text, _recorded(writer, scope, node, text))
    if writer.uses.ratios[score] < 2:
        return ratio
    scope.boxes[score] = scope.let(f"ratio_{identifier(node.sample.name)}", ratio)
    return scope.boxes[score]


def _recorded(writer: Writer, scope: Scope, node: Weight, text: Text) -> Text:
    """The log-probability when the draws were made: in the trace, or, by default, that of now."""
    name, axes, own = node.sample.name, node.inputs[0].axes, node.sample.axes
    outer = scope.recorded.get(name)
    if outer is None and axes != own:
        raise writer.refuse(name, "is weighted along plates of its parents that it does not have itself")
    default = method(outer or text, "detach")
    return aligned(call("log_probs.get", f'"{name}"', default.code), own, axes)


def _summed(writer: Writer, scope: Scope, node: Weight, ratio: Text, axes: Axes, gone: list[int]) -> Text:
    if scope.left_out is not None and scope.left_out.plate in node.summed:
        return without_draw(writer, scope, ratio, axes, gone, "sum")
    averaged = [d for d in gone if node.average and not axes[d].time]
    if len(gone) == len(axes) and gone and not averaged:
        return method(ratio, "sum")
    ratio = reduced(ratio, "sum", [d for d in gone if d not in averaged])
    left = [d - sum(g < d for g in gone if g not in averaged) for d in averaged]
    return reduced(ratio, "mean", left)


def box(writer: Writer, scope: Scope, node: Box) -> Written:
    """`base * box`: a factor of value 1 whose derivative is that of the log-probabilities in it."""
    base, exponent = node.inputs
    factor = _factor(writer, scope, node, exponent)
    return Written(_times(writer, scope, node, base, exponent, factor), f"boxed_{stem_of(base)}")


_RATIO = "the importance ratio: the draws are those of other parameters"


def _factor(writer: Writer, scope: Scope, node: Box, exponent: nd.Node) -> Text:
    """The box, on a line of its own, with what it counts; once for all that it multiplies."""
    known = scope.named(exponent)
    if known is not None:
        return known
    names = [weight.sample.name for weight in node.weights]
    stem = "box_" + "_".join(map(identifier, names)) if len(names) < 3 else "box"
    text = call("torch.exp", scope.text(exponent).code)
    scope.boxes[exponent] = scope.let(
        stem, text, _RATIO if scope.left_out else writer.counting.of_box(names, place_of(node))
    )
    return scope.boxes[exponent]


def _times(writer: Writer, scope: Scope, node: nd.Node, base: nd.Node, other: nd.Node, factor: Text) -> Text:
    """A term times a number for each of its entries."""
    text = scope.text(base)
    if base in writer.shapes.ranks:
        rank = writer.shapes.ranks[base]
        lined = aligned(text, base.axes, node.axes)
        factor = aligned(factor, other.axes, node.axes, rank if other.axes else 0)
        return (
            infix("*", PRODUCT, factor, lined) if factor.code.startswith("box") else infix("*", PRODUCT, lined, factor)
        )
    lined = aligned(factor, other.axes, node.axes)
    if base.axes != node.axes:
        raise writer.refuse(place_of(node), "is boxed along an axis that it does not have")
    return call(writer.helper("scaled"), text.code, lined.code)


def score_term(writer: Writer, scope: Scope, node: ScoreTerm) -> Written:
    """A cost times the log-probabilities of its draws: its gradient is the direction of an update."""
    base, scores = node.inputs
    return Written(_times(writer, scope, node, base, scores, scope.text(scores)), f"scored_{stem_of(base)}")


def total(writer: Writer, scope: Scope, node: Total) -> Written:
    """A sum of two terms."""
    left, right = operands(writer, scope, node)
    return Written(infix("+", SUM, left, right), "ratio" if type(node.inputs[1]) is Weight else "total")


def controlled(writer: Writer, scope: Scope, node: Controlled) -> Written:
    """A term and its control variates."""
    text, *controls = operands(writer, scope, node)
    for control in controls:
        text = infix("+", SUM, text, control)
    return Written(text, identifier(node.name))


def control_variate(writer: Writer, scope: Scope, node: ControlVariate) -> Written:
    """`- baseline * box(ancestors) * (what the draws add to the box)`; LOO has one for each draw, summed."""
    if writer.shapes.ranks.get(node) != 0 or node.stepwise is not None:
        raise writer.refuse(node.name, "is a control variate of single time steps, or of what may be no number")
    scope.settle_all(node.inputs)
    baseline, weight, *ancestors = node.inputs
    axes = node.axes if node.left_out is None else (node.left_out[1], *node.axes)
    product = aligned(scope.text(baseline), baseline.axes, axes)
    for above in ancestors:
        boxed = call("torch.exp", scope.text(above).code)
        product = infix("*", PRODUCT, product, aligned(boxed, above.axes, axes))
    product = infix("*", PRODUCT, product, _excess(writer, scope, node, weight, axes))
    if node.left_out is not None:
        product = method(product, "sum", *(["0"] if node.axes else []))
    name = identifier(node.sample.name)
    return Written(Text(f"-{product.within(ATOM)}", SIGN), f"control_of_{name}", _why(node), keep=True)


def _excess(writer: Writer, scope: Scope, node: ControlVariate, weight: nd.Node, target: Axes) -> Text:
    """The box less 1, or what each draw adds to the box of those before it."""
    if node.left_out is not None:
        return _increase(writer, scope, weight, *node.left_out, target, node.sample.name)
    return aligned(call("torch.expm1", scope.text(weight).code), weight.axes, target)


def other_scores(writer: Writer, scope: Scope, node: OtherScores) -> Written:
    """`- mean over the other draws of (box - 1)`."""
    (weight,) = node.inputs
    excess = call("torch.expm1", scope.text(weight).code)
    others = call(writer.helper("mean_of_others"), excess.code, f"({node.axes.index(node.plate)},)")
    return Written(Text(f"-{others.code}", SIGN), f"others_of_{identifier(node.weight.sample.name)}")


def expanded_box(writer: Writer, scope: Scope, node: ExpandedBox) -> Written:
    """A term times 1 and an expansion."""
    base, expansion = node.inputs
    factor = Text(f"(1 + {scope.text(expansion).code})")
    return Written(_times(writer, scope, node, base, expansion, factor), f"compared_{stem_of(base)}")


def _why(node: ControlVariate) -> str:
    than = "the cost without that draw" if node.left_out else "a baseline that does not know it"
    return f"control variate of {node.sample.name}, of mean zero: each draw's score times {than}"


def _increase(writer: Writer, scope: Scope, weight: nd.Node, plate: Axis, axis: Axis, target: Axes, name: str) -> Text:
    """The increase of a box by each draw of a plate, over those before it, the plate's dimension in front."""
    if weight in scope.boxes:
        return aligned(scope.boxes[weight], (axis, *without(weight.axes, [plate])), target)
    dim = weight.axes.index(plate)
    boxes = call("torch.expm1", method(scope.text(weight), "cumsum", str(dim)).code)
    increase = call(writer.helper("increments"), boxes.code, str(dim))
    increase = method(increase, "movedim", str(dim), "0") if dim else increase
    text = scope.boxes[weight] = scope.let(f"increase_of_box_{identifier(name)}", increase)
    return aligned(text, (axis, *without(weight.axes, [plate])), target)
