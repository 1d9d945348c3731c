"""The processes that share a run: one alone, or those that torchrun has started."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.utils import _pytree as pytree


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
        >>> list(alone.own(range(3))), alone.sum({"theta": torch.tensor(1.0)})
        ([0, 1, 2], {'theta': tensor(1.)})
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

    def sum(self, tree: Any) -> Any:
        """The sum of a pytree of tensors over all ranks, the same bits on each; one message."""
        if self.count == 1:
            return tree
        leaves, spec = pytree.tree_flatten(tree)
        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        message = flat.cpu()  # the ranks talk through the processors, wherever their tensors are
        distributed.all_reduce(message)
        parts = message.to(flat.device).split([leaf.numel() for leaf in leaves])
        return pytree.tree_unflatten([part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)], spec)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

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
