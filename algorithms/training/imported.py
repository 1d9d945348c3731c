"""The objects that a configuration names by where they are: `package.module:Name`, anything that can be imported."""

import importlib
from collections.abc import Callable
from typing import Any

from stochgraph.errors.checks import shortened, shown

from .configuration import ConfigurationError, unknown


def is_place(name: str) -> bool:
    """True if the name says where something is, and is not one of the known ones."""
    return ":" in name


def imported(field: str, name: str) -> Callable[..., Any]:
    """The object that a module has under a name: a class, or a function that makes one of its objects.

    Args:
        field: of the configuration, for errors.
        name: `package.module:Name`.

    Raises:
        ConfigurationError: there is no such module, it fails, or it has nothing of that name that can be called.

    Example:
        >>> from stochgraph.algorithms.training.imported import imported
        >>> imported("environment", "stochgraph.algorithms.environments:Navigation").__name__
        'Navigation'
    """
    given, (place, _, attribute) = f"{field}={shown(name)}", name.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), attribute)):
        raise ConfigurationError(f"{given}: expected package.module:Name, a module and a name in it")
    module = _module(given, place)
    if not hasattr(module, attribute):
        public = [other for other in vars(module) if not other.startswith("_")]
        raise ConfigurationError(f"{given}: " + unknown(attribute, f"in the module {place}", public))
    found = getattr(module, attribute)
    if not callable(found):
        raise ConfigurationError(
            f"{given}: {attribute} is {type(found).__name__}; give a class, or a function that makes the {field}"
        )
    made: Callable[..., Any] = found
    return made


def _module(given: str, place: str) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{given}: there is no module {error.name!r}; install it, or run in the folder that it is in"
            ) from error
        raise ConfigurationError(f"{given}: the module {place} needs {error.name!r}, which is not installed") from error
    except Exception as error:  # a module may raise anything
        why = shortened(str(error), 500)
        raise ConfigurationError(f"{given}: importing {place} raised {type(error).__name__}: {why}") from error
