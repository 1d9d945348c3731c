"""All randomness of a run as a function of its seed and of what it is for.

Nothing is carried from one iteration to the next, so there is no state of a generator to save, to restore, or to keep
the same on all ranks: whoever draws shard 3 of iteration 120 draws the same.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator_for(*purpose: int | str) -> torch.Generator:
    """A generator seeded by a purpose.

    Example:
        >>> import torch
        >>> from stochgraph.algorithms.training.randomness import generator_for
        >>> one, same, other = generator_for(0, "draws", 7), generator_for(0, "draws", 7), generator_for(0, "draws", 8)
        >>> x, y, z = (torch.rand((), generator=each) for each in (one, same, other))
        >>> bool(x == y), bool(x == z)
        (True, False)
    """
    return torch.Generator().manual_seed(_seed(purpose))


@contextmanager
def default_generator_for(*purpose: int | str) -> Iterator[None]:
    """Seed torch's default generators by a purpose, and give them back their states at the end."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if used else []):
        torch.manual_seed(_seed(purpose))
        yield


def _seed(purpose: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "big") >> 1
