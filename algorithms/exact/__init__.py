"""Finite decision processes solved exactly, and what theory says of them."""

from .processes import Process as Process
from .processes import action_values as action_values
from .processes import advantages as advantages
from .processes import optimal_actions as optimal_actions
from .processes import optimal_policy as optimal_policy
from .processes import optimal_values as optimal_values
from .processes import process as process
from .processes import returns as returns
from .processes import state_values as state_values
from .processes import visitation as visitation
