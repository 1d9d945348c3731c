"""The memory that a run needs at least, and what there is: compared before anything is drawn.

What is counted must be there at the same time whatever the run does: the parameters, adapted ones for every task of a
shard, all trajectories of a meta-batch, and what a policy that is a network keeps for the derivatives of a chunk. The
rest (a simulator, other intermediate values) comes on top, and may be several times as much. So a run that is refused
could not have been held, and one that is not refused may still be too large.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..policies.families import Policy
from .configuration import ConfigurationError

COPIES = 4  # of all parameters: before and after a step, its gradient, and what the optimiser makes of it


class Need(NamedTuple):
    """The bytes that a run needs at least, at one time.

    Attributes:
        parameters: for parameters, gradients, and parameters adapted to tasks.
        draws: for the trajectories of a meta-batch, or of an evaluation.
        derivatives: for what is kept of a network, to be differentiated.

    Example:
        >>> from stochgraph.algorithms.training.memory import Need
        >>> print(Need(parameters=10**6, draws=3 * 10**9, derivatives=0))
        3.0 GB (0.0 for parameters, 3.0 for trajectories, 0.0 for derivatives)
    """

    parameters: int
    draws: int
    derivatives: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{gigabytes(self.total)} GB ({gigabytes(self.parameters)} for parameters, {gigabytes(self.draws)} for "
            f"trajectories, {gigabytes(self.derivatives)} for derivatives)"
        )

    def remedy(self) -> str:
        """The options that would make the largest part smaller."""
        remedies = {
            "parameters": "smaller hidden layers, or fewer tasks in more shards",
            "draws": "fewer tasks, inner or outer trajectories, or a shorter horizon; or ranks on more machines",
            "derivatives": "a smaller chunk",
        }
        return remedies[max(remedies, key=lambda name: getattr(self, name))]


class Memory(NamedTuple):
    """The bytes that a process can have at most, and those that it could have now."""

    most: int
    free: int


def check_memory(need: Need, there: Memory | None) -> None:
    """Refuse what cannot be held. What is not known is not in the way.

    Raises:
        ConfigurationError: there is not as much memory.
    """
    if there is not None and need.total > there.most:
        raise ConfigurationError(
            f"the run needs {need} of memory at least, and there are {gigabytes(there.most)} GB: choose {need.remedy()}"
        )


def need_of_parameters(policy: Policy, dtype: torch.dtype) -> Need:
    """The memory for the parameters of a policy, without making them; nothing where that cannot be told.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.policies import GaussianMLP
        >>> from stochgraph.algorithms.training.memory import need_of_parameters
        >>> print(need_of_parameters(GaussianMLP(2, 2, hidden=(10**6, 10**6)), torch.float32))
        16000.1 GB (16000.1 for parameters, 0.0 for trajectories, 0.0 for derivatives)
    """
    return Need(COPIES * bytes_of_parameters(policy, dtype), 0, 0)


def bytes_of_parameters(policy: Policy, dtype: torch.dtype) -> int:
    """The bytes of one copy of the parameters, without making them; 0 where that cannot be told."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return sum(leaf.numel() * leaf.itemsize for leaf in policy.initial(None, dtype=dtype).values())
    except Exception:  # a policy may do anything with its first parameters
        return 0


def memory_of(device: torch.device) -> Memory | None:
    """The memory that this process can have on a device, as far as that can be told."""
    if device.type == "cuda":
        with suppress(AssertionError, RuntimeError):  # the driver has no answer
            free, most = torch.cuda.mem_get_info(device)
            return Memory(most, free)
        return None
    machine = _machine()
    if machine is None:
        return None
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine
    held, addressed = _own()
    limits = [machine.most, *_group_limits()]
    most = min([limit // beside - held for limit in limits] + [limit - addressed for limit in _process_limits()])
    return Memory(max(most, 0), max(min(most, machine.free // beside), 0))


def _machine(path: Path = Path("/proc/meminfo")) -> Memory | None:
    """The memory of the machine, with what it swaps to."""
    try:
        entries = dict(line.split(":") for line in path.read_text().splitlines())
        size = {name: 1024 * int(value.split()[0]) for name, value in entries.items()}
        swap = size.get("SwapTotal", 0)
        return Memory(size["MemTotal"] + swap, size["MemAvailable"] + size.get("SwapFree", 0))
    except (OSError, ValueError, LookupError):
        pass
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return Memory(most, most)


def _group_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The limits of the control groups that this process is in, of both versions, and of the groups around them."""
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            tree, name = (root, "memory.max") if not kinds else (root / "memory", "memory.limit_in_bytes")
            if kinds and "memory" not in kinds.split(","):
                continue
            own = Path(path.lstrip("/"))
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # there is no such file, or it says "max"
                    yield int((tree / group / name).read_text())


def _process_limits() -> Iterator[int]:
    """The limits of the address space of this process."""
    with suppress(ImportError):
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            most = resource.getrlimit(kind)[0]
            if most != resource.RLIM_INFINITY:
                yield most


def _own() -> tuple[int, int]:
    """The memory that this process holds, and what it has addresses for."""
    try:
        addressed, held = Path("/proc/self/statm").read_text().split()[:2]
    except (OSError, ValueError):
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return int(held) * page, int(addressed) * page


def gigabytes(size: int) -> str:
    """A number of bytes in gigabytes, with one decimal."""
    return f"{size / 1e9:.1f}"
