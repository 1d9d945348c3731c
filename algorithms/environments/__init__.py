"""Environments that the algorithms are run on, each a batch of episodes that are stepped together."""

from ._protocol import Environment as Environment
from .navigation import CornerNavigation as CornerNavigation
from .navigation import LineNavigation as LineNavigation
from .navigation import Navigation as Navigation
