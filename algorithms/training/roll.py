"""The ranks that are missing among those that share a run.

They take turns to send messages, all together, and one that is missing holds up all of them. So they tell in a store by
which they meet how many messages they have come to: who waits for long can say for whom.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from threading import Thread
from typing import Any

import torch.distributed as distributed

TIMEOUT = 1800.0  # seconds that the others are waited for, as torch has it
_LONGEST = 1e8  # seconds that torch can count
_PATIENCE = 30.0  # seconds until a word is said about it


class RankFailure(RuntimeError):
    """Ranks that share a run are missing: killed, stopped, or out of reach. The message says which."""


class Roll:
    """The ranks that have come to a message, told in the store by which they met.

    Args:
        rank: this one.
        count: how many there are.
        store: of `torch.distributed`.
        timeout: the seconds that the others are waited for.
    """

    def __init__(self, rank: int, count: int, store: Any, timeout: float) -> None:
        self.rank, self.count, self.store, self.timeout = rank, count, store, timeout
        self.under_way = False  # whether a message has not come to its end
        self._messages = 0
        self._here: list[int] = []
        self.arrive()

    def arrive(self) -> None:
        """This rank has come to the next message."""
        self._messages += 1
        self.store.set(str(self.rank), str(self._messages))

    def missing(self, leaving: bool = False) -> list[int]:
        """The ranks that have not come to this message; the first one if the store does not answer, which it keeps.

        Args:
            leaving: whether this rank asks for the last time.
        """
        here: list[int] = []
        answered: list[bool] = []

        def ask() -> None:
            with suppress(OSError, RuntimeError):
                socket.create_connection(_address(), self.timeout).close()
                there = [rank for rank in range(self.count) if self.store.check([str(rank)])]
                here.extend(rank for rank in there if int(self.store.get(str(rank))) >= self._messages)
                if leaving:
                    self.store.set(f"{self.rank} has asked", "")
                answered.append(True)

        # The store of a process that is stopped is silent for ever. A thread can be left to its question.
        asking = Thread(target=ask, daemon=True)
        asking.start()
        asking.join(min(5.0, self.timeout))
        self._here = list(here)
        return [rank for rank in range(self.count) if rank not in here] if answered else [0]

    def leave(self) -> None:
        """The first rank, which may keep the store, lets the others ask before it goes."""
        others = [f"{rank} has asked" for rank in self._here if rank != self.rank]
        end = time.monotonic() + 5
        with suppress(RuntimeError):
            while self.rank == 0 and others and not self.store.check(others) and time.monotonic() < end:
                time.sleep(0.01)

    def through(self, send: Callable[[], Any]) -> None:
        """Send the next message, and wait for its end."""
        self.arrive()
        self.under_way = True
        sent = send()
        self.wait(sent.is_completed)
        sent.wait()
        self.under_way = False

    def wait(self, done: Callable[[], bool], longest: float = float("inf")) -> None:
        """Wait until something is done, in small portions: signals are heard. Who is missing for long is said.

        Raises:
            TimeoutError: that takes longer.
        """
        start, patience = time.monotonic(), min(_PATIENCE, self.timeout / 2)
        while not done():
            waited = time.monotonic() - start
            if waited > longest:
                raise TimeoutError
            if waited > patience:
                patience = float("inf")
                self._say(
                    f"waiting for {self.words(self.missing())} for {waited:.0f} s; given up after {self.timeout:.0f} s"
                )
            time.sleep(min(0.01, waited / 10))

    def lost(self) -> list[int]:
        """The rank that has ended, after a while in which the others may come to this message; or all that have not."""
        end = time.monotonic() + 5
        while len(self.missing()) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        return self.missing(leaving=True)

    def words(self, ranks: list[int]) -> str:
        """Ranks in words."""
        if not ranks:
            return "the connection to the others"
        return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):
            print(f"rank {self.rank} of {self.count}: {text}", file=sys.stderr, flush=True)


def called(timeout: float) -> Roll:
    """The ranks, connected, once all have come to the store where they meet."""
    limit = timedelta(seconds=min(timeout, _LONGEST))
    try:
        store, rank, count = _store(limit)
        roll = Roll(rank, count, store, timeout)
        roll.wait(lambda: store.check([str(each) for each in range(count)]), timeout)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
    except TimeoutError as error:
        raise RankFailure(f"{roll.words(roll.missing())} of {count} did not come within {timeout:.0f} s") from error
    except (RuntimeError, ValueError) as error:  # of torch, about the store or the variables
        raise RankFailure(
            f"the ranks have not met at MASTER_ADDR:MASTER_PORT, where the first one, or torchrun, keeps a store: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return roll


def _address() -> tuple[str, int]:
    """The address of the store."""
    address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT")
    if not address or not 0 <= port < 2**16:
        raise ValueError(f"MASTER_ADDR={address!r} and MASTER_PORT={port} are no address")
    return address, port


def _number(name: str) -> int:
    """A number among the environment variables."""
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name}={text!r} is no number")
    return int(text)


def _store(timeout: timedelta) -> tuple[Any, int, int]:
    """The store where ranks meet, a place of its own each time; the number of this one, and how many there are.

    torchrun keeps one store for all restarts, in which gloo would find the addresses of processes that are gone
    (pytorch issue 135712). On one machine the numbers of restarts agree, and tell the restarts apart: on several, start
    torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store each time.
    """
    count, rank = _number("WORLD_SIZE"), _number("RANK")
    if not 0 <= rank < count:
        raise ValueError(f"RANK={rank} is no number below WORLD_SIZE={count}")
    known = os.environ
    torchruns = known.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    shared = torchruns and known.get("GROUP_WORLD_SIZE") == "1"
    name = f"restart {known['TORCHELASTIC_RESTART_COUNT']}" if shared else "ranks"
    store = distributed.PrefixStore(name, _server(*_address(), rank == 0 and not torchruns, timeout))  # type: ignore[attr-defined]
    meeting = store.add(f"meetings of {rank}", 1)
    return distributed.PrefixStore(f"meeting {meeting}", store), rank, count  # type: ignore[attr-defined]


@cache
def _server(address: str, port: int, keeps: bool, timeout: timedelta) -> Any:
    """The store itself, as long as this process lives: others may come to it again while this one is busy."""
    options: dict[str, Any] = {"is_master": keeps, "wait_for_workers": False, "multi_tenant": True}
    return distributed.TCPStore(address, port, timeout=timeout, **options)  # type: ignore[attr-defined]
