"""The processes that share a run: one alone, or those that torchrun has started."""

import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.utils import _pytree as pytree

from stochgraph.errors.checks import more_than, shown

from ..optimizers.vectors import added
from .configuration import ConfigurationError
from .roll import TIMEOUT, RankFailure, Roll, called


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run. The methods are called by all of them together.

    Attributes:
        rank: the number of this one, from 0.
        count: how many there are.
        roll: which of them are missing; `None` if that cannot be told.

    Raises:
        RankFailure: others are missing.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.training import Ranks
        >>> alone = Ranks()
        >>> alone.own(range(3)), alone.sum([{"theta": torch.tensor(float(i))} for i in range(3)], count=3)
        (range(0, 3), {'theta': tensor(3.)})
    """

    rank: int = 0
    count: int = 1
    roll: Roll | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """True for the one that reads and writes files, and speaks."""
        return self.rank == 0

    def own(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items that are this one's share."""
        return items[self.rank :: self.count]

    def sum(self, shares: Iterable[Any], count: int) -> Any:
        """The sum of pytrees of tensors that `own` has shared out, in their order: the same bits however many ranks.

        The ranks go through their shares together, one message each. So no rank holds more than one pytree of every
        rank beside the sum, on the processor.

        Args:
            shares: this rank's.
            count: those of all ranks, at least one each.
        """
        if self.count == 1:
            return added(shares)
        return added(self._in_order(iter(shares), count))

    def _in_order(self, shares: Iterator[Any], count: int) -> Iterator[Any]:
        """All shares of all ranks, of which this one computes its own when their turn comes."""
        own: Any = None
        for start in range(0, count, self.count):
            own = next(shares, own)  # in the last round there may be none: any stands in for it, and is left out
            yield from self._exchanged(own)[: count - start]

    def _exchanged(self, tree: Any) -> list[Any]:
        """The pytrees of tensors that the ranks have, one each, all of the same shapes."""
        leaves, spec = pytree.tree_flatten(tree)
        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves]).cpu()  # through the processors, wherever
        parts = (message.split([leaf.numel() for leaf in leaves]) for message in self._messages(flat))
        return [
            pytree.tree_unflatten([p.view_as(leaf).to(leaf) for p, leaf in zip(each, leaves, strict=True)], spec)
            for each in parts
        ]

    def _messages(self, own: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in their order."""
        found = [torch.empty_like(own) for _ in range(self.count)]
        self._complete(lambda: distributed.all_gather(found, own, async_op=True))
        return found

    def _complete(self, send: Callable[[], Any]) -> None:
        """Send a message, and wait until it has come from all who send it."""
        start = time.monotonic()
        try:
            if self.roll is None:
                send().wait()
            else:
                self.roll.through(send)
        except RuntimeError as error:  # of torch, which knows addresses and not ranks
            waited = time.monotonic() - start
            raise RankFailure(self._failure(waited, str(error).partition("\n")[0])) from error

    def _failure(self, waited: float, why: str) -> str:
        if self.roll is None:
            return f"another of {self.count} ranks is missing ({why})"
        if waited > 0.9 * self.roll.timeout:
            lost = self.roll.words(self.roll.missing(leaving=True))
            what = f"not heard of for {waited:.0f} s, and may be stopped or out of reach"
        else:  # the others may still be on their way to this message
            lost, what = self.roll.words(self.roll.lost()).replace("ranks", "one of the ranks"), "ended"
        return f"{lost} of {self.count}: {what} ({why})"

    def any(self, flag: bool) -> bool:
        """True if the flag is up on any rank."""
        return bool(self.sum([torch.tensor(float(flag))], self.count) > 0)

    def from_first(self, value: Any) -> Any:
        """The value that the first rank has, on all of them."""
        if self.count == 1:
            return value
        message = _packed(value) if self.first else torch.empty(0, dtype=torch.uint8)
        size = self._messages(torch.tensor(message.numel()))[0]
        message = message if self.first else message.new_empty(int(size))
        self._complete(lambda: distributed.broadcast(message, 0, async_op=True))
        return _unpacked(message)

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The items that `own` has shared out, together again in their order."""
        if self.count == 1:
            return list(values)
        message = _packed([value.cpu() for value in values])
        sizes = self._messages(torch.tensor(message.numel()))
        room = message.new_zeros(int(max(sizes)))
        room[: message.numel()] = message
        boxes = [_unpacked(each[: int(size)]) for each, size in zip(self._messages(room), sizes, strict=True)]
        return [boxes[i % self.count][i // self.count] for i in range(sum(map(len, boxes)))]


def _packed(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpacked(message: Tensor) -> Any:
    return pickle.loads(message.numpy().tobytes())  # from the ranks of this run, which could run anything as well


ALONE = Ranks()


@contextmanager
def joined_ranks(timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """The ranks that the environment variables of torchrun speak of, connected to each other; one alone without.

    Args:
        timeout: the seconds that the others are waited for, at the start and at every message.

    Raises:
        ConfigurationError: the timeout is none.
        RankFailure: not all have come, or the variables make no sense.
    """
    fits, words = more_than(0)
    if not fits(timeout):
        raise ConfigurationError(f"timeout={shown(timeout)}: must be {words}")
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Ranks()
        return
    roll = called(timeout)
    try:
        yield Ranks(roll.rank, roll.count, roll)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ranks that are gone already
            if roll.under_way:
                roll.leave()
                _cut((roll.rank + 1) % roll.count)
            distributed.destroy_process_group()


def _cut(peer: int) -> None:
    """Close the connections: a message that is given up would hold up this process until its time is over.

    Gloo has no word for that. It closes all connections when any receipt comes to the end of its time.
    """
    with suppress(RuntimeError):
        receipt: Any = distributed.irecv(torch.empty(1), peer)
        receipt.wait(timedelta(milliseconds=1))
