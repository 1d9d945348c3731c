"""The share of every group of the ledger's rows: exactly where all outcomes can be listed, else from draws."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..derive.populations import expected_plates
from ..errors.exceptions import CompileError, VerificationError
from ..explain.ledger import Source
from ..explain.magnitudes import Estimates, Group, groups
from ..run.compiled import Compiled
from ..run.contributions import Contributions, scored
from .outcomes import relaxed_in
from .vectors import differentiated, shaper
from .verification import verify

_MOST_OUTCOMES = 20_000
_REPEATS = 200


def shares(
    compiled: Compiled,
    inputs: Sequence[object],
    sizes: Mapping[str, int] | None = None,
    repeats: int | None = None,
    generator: torch.Generator | None = None,
    max_outcomes: int | None = None,
) -> tuple[Group, ...]:
    """The groups of a ledger with their figures. See `Compiled.explain` for the arguments.

    Raises:
        CompileError: the graph has expectations: what a path lacks is not known of a part of a correction.
    """
    _refuse_expectations(compiled)
    if repeats is None:
        try:
            return verify(compiled, *inputs, sizes=sizes, max_outcomes=max_outcomes or _MOST_OUTCOMES).rows
        except VerificationError:
            repeats = _REPEATS
    return sampled(compiled, inputs, sizes, repeats, generator)


def sampled(
    compiled: Compiled,
    inputs: Sequence[object],
    sizes: Mapping[str, int] | None,
    repeats: int,
    generator: torch.Generator | None,
    truth: Tensor | None = None,
) -> tuple[Group, ...]:
    """The figures from draws, with standard errors.

    Without a truth it is the mean of the estimates themselves if the ledger says that they are unbiased, else that of
    the score function's on the same draws.

    Raises:
        CompileError: the graph has expectations.
        ValueError: fewer than three repeats.
    """
    _refuse_expectations(compiled)
    if repeats < 3:
        raise ValueError(f"the shares of {compiled.graph.name}: repeats={repeats}, errors need at least three draws")
    if relaxed_in(compiled):
        return ()  # the score function's figures would be those of other draws
    explained = compiled.explain()
    flat, restore = differentiated(compiled, inputs)
    own = Contributions(compiled)
    other = None if explained.unbiased else Contributions(scored(compiled))
    found: list[dict[Source, Tensor]] = []
    reference: list[dict[Source, Tensor]] = []
    for _ in range(repeats):
        trace = compiled.sample(*inputs, generator=generator, sizes=sizes)
        found.append(own.of(restore, flat, trace))
        reference.append(found[-1] if other is None else other.of(restore, flat, trace))
    weights = torch.full((repeats,), 1 / repeats, dtype=torch.float64)
    estimates = Estimates(_stacked(found), _stacked(reference), weights, truth, exact=False)
    return groups(explained.ledger, estimates, shaper(compiled, inputs, 1))


def _stacked(found: Sequence[Mapping[Source, Tensor]]) -> dict[Source, Tensor]:
    """By source, `(draws, P)`."""
    return {source: torch.stack([one[source].detach() for one in found]).double().cpu() for source in found[0]}


def _refuse_expectations(compiled: Compiled) -> None:
    plates = expected_plates(compiled.graph.order)
    if plates:
        raise CompileError(
            f"{compiled.graph.name}: the plate {plates[0].name!r} is expected, and shares are worked out of gradients "
            "of N draws alone. Leave the inputs out, explain(), or see sg.verify"
        )
