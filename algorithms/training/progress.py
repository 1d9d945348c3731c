"""The state of a run between two iterations, and its way to the run's folder and back."""

from collections.abc import Callable

from .checkpoints import State, check_parameters, foreign
from .configuration import ConfigurationError
from .errors import TrainingError
from .problem import Problem
from .ranks import Ranks
from .run_folder import RunFolder


class Progress:
    """The state of a run, and how much of it is saved.

    Args:
        problem: what the parameters and their learner are made for.
        folder: where the state is saved. The first rank reads and writes; it need not be there for the others.
        ranks: those that share the run.
        say: for what a person should read.

    Attributes:
        theta: the parameters.
        learner: what moves them.
        iteration: the number of iterations that they have seen.
    """

    def __init__(self, problem: Problem, folder: RunFolder, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.theta = problem.initial()
        self.learner = problem.learner(self.theta)
        self.iteration = self._saved = 0
        self._configuration, self._folder, self._ranks, self._say = problem.configuration, folder, ranks, say

    def state_dict(self) -> State:
        """All that the next iteration depends on."""
        return {"iteration": self.iteration, "parameters": self.theta, "learner": self.learner.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from there.

        Raises:
            ValueError: the state is not one of these parameters, or of this optimiser.
        """
        check_parameters(state.get("parameters"), self.theta)
        self.learner.load_state_dict(state.get("learner", {}))
        for name, leaf in self.theta.items():
            leaf.copy_(state["parameters"][name])
        self.iteration = state["iteration"]

    def restore(self) -> State | None:
        """Continue from the newest checkpoint, which is returned.

        Raises:
            CheckpointError: it is one of another run.
            ConfigurationError: it has seen more iterations than are asked for.
        """
        first = self._ranks.first
        state = self._ranks.from_first(self._folder.restored(self._configuration, self._say) if first else None)
        if state is not None:
            self._load(state)
            self._saved = self.iteration
        if self.iteration > self._configuration.iterations:
            raise ConfigurationError(
                f"iterations={self._configuration.iterations}: {self._folder.path} has seen {self.iteration} already"
            )
        return state

    def _load(self, state: State) -> None:
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise foreign(self._folder.checkpoints.path(state["iteration"]), str(error)) from error

    def save(self) -> None:
        """Write a checkpoint."""
        self.keep_folder()
        if self._ranks.first:
            self._folder.save(self._configuration, self.iteration, self.state_dict())
        self._saved = self.iteration

    def save_what_is_new(self) -> None:
        """Write a checkpoint, unless there is one of this iteration."""
        if self.iteration > self._saved:
            self.save()

    def rescue(self) -> None:
        """Save what can be saved: another error is under way, which says more than that of a second one."""
        try:
            self.save_what_is_new()
        except TrainingError as error:  # the folder is gone, and this says where everything is
            self._say(str(error))
        except Exception as error:
            self._say(f"what was learned in iterations {self._saved} to {self.iteration} could not be saved: {error}")

    def keep_folder(self) -> None:
        """Nothing is written to a folder that is not the run's own any more; what the run holds is saved elsewhere.

        Raises:
            TrainingError: it is not; the message says where everything is.
        """
        if not self._ranks.first or self._folder.is_own():
            return
        lost = f"iteration {self.iteration}: {self._folder.path} is not the folder of this run any more, but removed"
        lost += ", renamed or replaced"
        try:
            place = self._folder.rescue(self._configuration, self.iteration, self.state_dict())
        except OSError as error:
            raise TrainingError(f"{lost}, and nothing could be saved: {error}") from error
        raise TrainingError(f"{lost}: what the run still holds is saved to {place}, a run that can be continued there")
