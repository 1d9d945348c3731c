"""The processes that share a run: one alone, or those that torchrun has started."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.utils import _pytree as pytree

from ..vectors import added


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run. The methods are called by all of them together.

    Attributes:
        rank: the number of this one, from 0.
        count: how many there are.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.training import Ranks
        >>> alone = Ranks()
        >>> alone.own(range(3)), alone.sum([{"theta": torch.tensor(float(i))} for i in range(3)], count=3)
        (range(0, 3), {'theta': tensor(3.)})
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes files, and speaks."""
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
        """The pytrees of tensors that the ranks have, one each."""
        leaves, spec = pytree.tree_flatten(tree)
        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves]).cpu()  # through the processors, wherever
        messages = [torch.empty_like(flat) for _ in range(self.count)]
        distributed.all_gather(messages, flat)
        parts = (message.split([leaf.numel() for leaf in leaves]) for message in messages)
        return [
            pytree.tree_unflatten([p.view_as(leaf).to(leaf) for p, leaf in zip(each, leaves, strict=True)], spec)
            for each in parts
        ]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum([torch.tensor(float(flag))], self.count) > 0)

    def from_first(self, value: Any) -> Any:
        """The value that the first rank has, on all of them."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def gathered(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What `own` has shared out, together again in its order."""
        if self.count == 1:
            return list(values)
        boxes: list[Any] = [None] * self.count
        distributed.all_gather_object(boxes, [value.cpu() for value in values])
        return [boxes[i % self.count][i // self.count] for i in range(sum(map(len, boxes)))]


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that the environment variables of torchrun speak of, connected to each other; one alone without."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", **_own_store())
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ranks that are gone already
            distributed.destroy_process_group()


def _own_store() -> dict[str, Any]:
    """Where ranks on one machine meet, a place of its own after every restart.

    torchrun keeps one store for all restarts, in which gloo would find the addresses of processes that are gone
    (pytorch issue 135712). The numbers of restarts agree on one machine only: on several, start torchrun with
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store each time.
    """
    known = os.environ
    if known.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or known.get("GROUP_WORLD_SIZE") != "1":
        return {}
    shared = distributed.TCPStore(known["MASTER_ADDR"], int(known["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    store = distributed.PrefixStore(f"restart {known['TORCHELASTIC_RESTART_COUNT']}", shared)  # type: ignore[attr-defined]
    return {"store": store, "rank": int(known["RANK"]), "world_size": int(known["WORLD_SIZE"])}
