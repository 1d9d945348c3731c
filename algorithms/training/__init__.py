"""A trainer that can be left alone: one configuration, one folder, and a run that survives what happens to it.

`Configuration` says what a run is. `train` runs it, or continues it. The pieces:

- `problem` makes a compiled graph of a configuration, and draws meta-batches in shards; `batches` averages over them,
  wherever they are; `learners` moves the parameters: optimisers of torch, trust-region steps.
- `settings` has what the names in a configuration stand for; new environments and estimators are new rows there.
- `randomness`: an iteration's draws are a function of the seed and the iteration's number, nothing is carried along.
- `seeds` has `train`, of one seed or of several; `comparison` puts finished runs beside each other.
- `trainer` has the loop; `run_folder`, `checkpoints` and `files` what it writes; `reports` who is told; `interrupts`
  what ends it; `ranks` who shares the work, `roll` who of them is missing; `memory` what it takes.

What a run survives, and what it may lose, is a page in the documentation: `docs/promises.md`.
"""

from .batches import Batch as Batch
from .checkpoints import CheckpointError as CheckpointError
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .configuration import Configuration as Configuration
from .configuration import ConfigurationError as ConfigurationError
from .errors import TrainingError as TrainingError
from .learners import Learner as Learner
from .problem import Problem as Problem
from .ranks import Ranks as Ranks
from .ranks import joined_ranks as joined_ranks
from .reports import Reporter as Reporter
from .results import Result as Result
from .results import load_result as load_result
from .roll import RankFailure as RankFailure
from .run_folder import RunFolder as RunFolder
from .seeds import train as train
from .trainer import Outcome as Outcome
from .trainer import Trainer as Trainer
from .watched import EnvironmentFailure as EnvironmentFailure
