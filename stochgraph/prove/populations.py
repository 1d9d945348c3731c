"""Expectations in a verification: the outcomes of one draw lie along the plate, and count with their probabilities."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..errors.exceptions import VerificationError
from ..ir import nodes as nd
from ..ir.programs import schedule
from ..run.passes import Run
from ..tensors import vectorize as vz
from ..tensors.axes import Axes, Axis, describe, union


def expected_samples(samples: Sequence[nd.Sample], plates: Iterable[Axis]) -> dict[nd.Sample, Axis]:
    """The samples that are drawn in plates that are expected, with the plate.

    Raises:
        VerificationError: two samples share one.
    """
    found: dict[nd.Sample, Axis] = {}
    for plate in plates:
        inside = [node for node in samples if plate in node.plates]
        if len(inside) > 1:
            raise VerificationError(
                f"samples {inside[0].name!r} and {inside[1].name!r} share the plate {plate.name!r}, which is expected: "
                "the outcomes of one draw are enumerated for one sample of a plate. Draw both in one, or measure with "
                "sg.profile"
            )
        found.update(dict.fromkeys(inside, plate))
    return found


def laid_out(leaf: Tensor, own: int, node: nd.Sample, plate: Axis, sizes: Mapping[Axis, int]) -> Tensor:
    """All outcomes of one draw, `(outcomes, choices, *parents, *own, ...)`, as draws `(outcomes, *plates, ...)`.

    Args:
        leaf: the outcomes, for every joint outcome of what was drawn before.
        own: how many dimensions one draw has in front of its event.
        node: the sample.
        plate: the one along which the choices are laid.
        sizes: those of the sample's other plates that no parent has.

    Raises:
        VerificationError: a draw has several entries of its own.
    """
    axes = union([plate], node.parent_axes)
    lead = 1 + len(axes)
    if prod(leaf.shape[lead : lead + own]) > 1:
        raise VerificationError(
            f"sample {node.name!r} (axes: {describe(node.axes)}): a draw of its expected plate has several entries, "
            "whose outcomes are not combined here. Draw one Categorical of their combinations, or measure with "
            "sg.profile"
        )
    leaf = leaf.reshape(*leaf.shape[:lead], *leaf.shape[lead + own :]).movedim(1, 1 + axes.index(plate))
    aligned = torch.vmap(lambda one: vz.align(one, axes, node.plates))(leaf)
    known = dict(zip(axes, leaf.shape[1:lead], strict=True)) | dict(sizes)
    return aligned.expand(leaf.shape[0], *(known[axis] for axis in node.plates), *leaf.shape[lead:])


def probabilities(
    run: Run, expected: Mapping[nd.Sample, Axis], scores: Mapping[str, nd.Node]
) -> dict[Axis, nd.Portion]:
    """The weight of every draw in an expectation: its probability, a function of the parameters.

    Args:
        run: a pass in which the draws are all outcomes. It has what is returned as soon as it is known: the parameters
            of later draws may come of an expectation.
        expected: the samples that are expected, in the order of their declaration.
        scores: their log-probabilities.
    """
    found: dict[Axis, nd.Portion] = {}
    run.portions = found
    for node, plate in expected.items():
        if node.name in run.draws:
            score = scores[node.name]
            log_prob: Tensor = run.execute(schedule([score]))[score]
            if node.time is not None:
                log_prob = log_prob.sum(score.axes.index(node.time))
            found[plate] = nd.Portion(log_prob.exp(), _without_time(score.axes, node))
    return found


def _without_time(axes: Axes, node: nd.Sample) -> Axes:
    return tuple(axis for axis in axes if axis != node.time)
