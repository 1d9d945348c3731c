"""Many simulations of one MuJoCo model, stepped together on MuJoCo's own threads."""

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._optional import installed

Array = NDArray[np.float64]

# What MuJoCo's warnings mean for whoever drives the simulation.
WARNINGS = {
    "INERTIA": "the inertia matrix is nearly singular",
    "CONTACTFULL": "there are more contacts than MuJoCo has memory for",
    "CNSTRFULL": "there are more constraints than MuJoCo has memory for",
    "BADQPOS": "a position is not finite, or huge",
    "BADQVEL": "a velocity is not finite, or huge",
    "BADQACC": "an acceleration is not finite, or huge",
    "BADCTRL": "an action is not finite, or huge",
}


class SimulationError(RuntimeError):
    """A simulation diverged: MuJoCo would have started it anew without a word."""


class Simulation:
    """Simulations of one model, one per episode; a step is bit for bit that of `mujoco.mj_step` on one of them.

    Simulations are not pickled, the rest is. A forked process cannot use those of its parent: it makes its own at the
    next start.

    Attributes:
        position: `qpos` of every simulation, `(episodes, nq)`; live.
        velocity: `qvel` of every simulation, `(episodes, nv)`; live.
        torso: the position of the first body, as of the last substep's beginning, `(episodes, 3)`; live.
        contact: `cfrc_ext` of every simulation, `(episodes, bodies, 6)`, if asked for.
        step_time: the time that a step takes in the simulated world, in seconds.
    """

    position: Array
    velocity: Array
    torso: Array
    contact: Array
    _process: int
    _batch: Any = None

    def __init__(self, name: str, model_file: str, frame_skip: int, threads: int | None, contact: bool) -> None:
        self.name = name
        self.model_file = model_file
        self.frame_skip = frame_skip
        self.threads = threads or processors()
        self.with_contact = contact
        self._compile()

    def start(self, position: Array, velocity: Array) -> None:
        """Start one simulation per row, at rest in everything but the given state."""
        self._make(len(position))
        with self._quiet:
            self._batch.reset(None, stage=0)
            self.position[:], self.velocity[:] = position, velocity
            self._batch.forward(None, stage=self._mujoco.mjtStage.mjSTAGE_POS)
        self._steps = 0
        if self.with_contact:
            self.contact[:] = 0

    def step(self, control: Array, running: NDArray[np.int32] | None) -> None:
        """Advance the running simulations, all if `None`, by one step under the given controls.

        Raises:
            SimulationError: if one of them diverged.
        """
        if self._process != os.getpid():
            raise SimulationError(
                f"{self.name}: a forked process cannot use its parent's simulations; spawn it, or reset the environment"
            )
        self._steps += 1
        self._control[:] = control
        with self._quiet:
            self._batch.step(running, nstep=self.frame_skip)
        if np.count_nonzero(self._warnings):
            raise SimulationError(self._diverged())
        if self.with_contact:
            self._read_contact(range(len(control)) if running is None else running)

    def _compile(self) -> None:
        self._mujoco = installed("mujoco", self.name)
        self._quiet = Quiet(self._mujoco)
        installed("mujoco.batch", self.name)
        gymnasium = Path(str(installed("gymnasium", self.name).__file__)).parent
        path = gymnasium / "envs" / "mujoco" / "assets" / self.model_file
        with self._quiet:
            self.model = self._mujoco.MjModel.from_xml_path(str(path))
        self.step_time = self.model.opt.timestep * self.frame_skip

    def _make(self, episodes: int) -> None:
        """Have as many simulations as there are episodes."""
        if self._batch is not None and self._process == os.getpid() and self._batch.nsim == episodes:
            return
        self._leave_to_parent()
        threads = min(self.threads, episodes)
        self._batch = self._mujoco.batch.Batch(self.model, episodes, threads, persistent=self.with_contact)
        self._process = os.getpid()
        self.position, self.velocity = self._batch.bind("qpos"), self._batch.bind("qvel")
        self.torso = self._batch.bind("xpos")[:, 1]
        self._control = self._batch.bind("ctrl")
        self._warnings = self._batch.warning  # (episodes, kinds, 2): something about the last one, and their number
        if self.with_contact:
            self._data = self._mujoco.MjData(self.model)
            self.contact = np.zeros((episodes, self.model.nbody, 6))

    def _leave_to_parent(self) -> None:
        """Keep a parent's simulations from being destroyed here: MuJoCo would wait for threads that were not forked."""
        if self._batch is not None and self._process != os.getpid():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._batch))
            self._batch = None

    def __del__(self) -> None:
        self._leave_to_parent()

    def _read_contact(self, simulations: Any) -> None:
        """The contact forces, which are not among the stages of a batch: each simulation's data is copied out."""
        for i in simulations:
            self._batch.get_data(int(i), self._data)
            self._mujoco.mj_rnePostConstraint(self.model, self._data)
            self.contact[i] = self._data.cfrc_ext

    def _diverged(self) -> str:
        """The simulations that diverged, and the episodes that they belong to."""
        counts = self._warnings[..., 1]
        episodes, kinds = np.flatnonzero(counts.any(1)), np.flatnonzero(counts.any(0))
        names = [self._mujoco.mjtWarning(kind).name.removeprefix("mjWARN_") for kind in kinds]
        shown = ", ".join(str(i) for i in episodes[:5]) + (", ..." if len(episodes) > 5 else "")
        return (
            f"{self.name}: {len(episodes)} of {len(counts)} episodes diverged in step {self._steps}, with the indices "
            f"{shown} (task * trajectories + trajectory): {'; '.join(WARNINGS[name] for name in names)}. "
            "Look at the actions: adapted parameters may have left their scale (inner step size, log_std)"
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("name", "model_file", "frame_skip", "threads", "with_contact")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Quiet:
    """Within this, MuJoCo prints no warnings, and writes no log file into the working directory. Not reentrant."""

    def __init__(self, mujoco: Any) -> None:
        self._config = mujoco.MjLogConfig
        self._during = self._config.get()
        self._during.logto_console = self._during.logto_file = False

    def __enter__(self) -> None:
        self._before = self._config.get()
        self._during.set()

    def __exit__(self, *raised: object) -> None:
        self._before.set()
