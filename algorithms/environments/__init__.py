"""Environments that the algorithms are run on, each a batch of episodes that are stepped together."""

from ._protocol import Environment as Environment
from ._protocol import Episodes as Episodes
from ._protocol import ListedTasks as ListedTasks
from ._simulation import SimulationError as SimulationError
from .gymnasium import GymnasiumEnvironment as GymnasiumEnvironment
from .locomotion import Locomotion as Locomotion
from .locomotion import ant as ant
from .locomotion import half_cheetah as half_cheetah
from .locomotion import swimmer as swimmer
from .locomotion import walker2d as walker2d
from .navigation import CornerNavigation as CornerNavigation
from .navigation import LineNavigation as LineNavigation
from .navigation import Navigation as Navigation
from .tabular import FrozenLake as FrozenLake
from .tabular import RandomMDP as RandomMDP
