"""Environments that the algorithms are run on, each a batch of episodes that are stepped together.

- `Navigation`, `CornerNavigation`, `LineNavigation`: a point that looks for a goal.
- `RandomMDP`, `FrozenLake`: finite decision processes; the small ones can be enumerated for `stochgraph.verify`.
- `Bandit`: arms that pay or not. `Trials`: episodes in a row, for policies with a memory.
- `half_cheetah`, `ant`, `walker2d`, `swimmer`: MuJoCo's robots, made by functions; each is a `Locomotion`, and raises a
  `SimulationError` when the simulation breaks.
- `GymnasiumEnvironment`: any vector environment of Gymnasium; `registered_environment` makes one of a name.
- `Environment`: the base of one's own; `Episodes` is what it enumerates, `ListedTasks` the distribution of a few tasks.

All are imported from here: `from stochgraph.algorithms.environments import Navigation`.
"""

from ._protocol import Environment as Environment
from ._protocol import Episodes as Episodes
from ._protocol import ListedTasks as ListedTasks
from ._simulation import SimulationError as SimulationError
from .gymnasium import GymnasiumEnvironment as GymnasiumEnvironment
from .gymnasium import registered_environment as registered_environment
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
from .trials import Bandit as Bandit
from .trials import Trials as Trials
