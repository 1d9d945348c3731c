"""Policies as pure functions of a dictionary of parameters."""

from .actor_critic import ActorCritic as ActorCritic
from .families import CategoricalMLP as CategoricalMLP
from .families import CategoricalModule as CategoricalModule
from .families import GaussianMLP as GaussianMLP
from .families import GaussianModule as GaussianModule
from .families import HeteroscedasticMLP as HeteroscedasticMLP
from .families import HeteroscedasticModule as HeteroscedasticModule
from .families import Parameters as Parameters
from .families import Policy as Policy
from .families import TabularSoftmax as TabularSoftmax
from .recurrent import CategoricalGRU as CategoricalGRU
from .recurrent import GaussianGRU as GaussianGRU
from .recurrent import Recurrent as Recurrent
