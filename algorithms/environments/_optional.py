"""Modules that are not among the package's own dependencies."""

import importlib
from types import ModuleType


def installed(name: str, wanted_for: str) -> ModuleType:
    """Import a module of the extra `environments`, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{wanted_for} needs {name}: pip install 'stochgraph[environments]'") from error
