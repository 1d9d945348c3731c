"""Trajectories of a policy in an environment, as a distribution that a declaration can sample from."""

from .trajectories import CutTrajectory as CutTrajectory
from .trajectories import EnumeratedTrajectory as EnumeratedTrajectory
from .trajectories import Rollouts as Rollouts
from .trajectories import Trajectory as Trajectory
from .trajectories import acting as acting
