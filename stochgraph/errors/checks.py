"""Options that must be of a kind: numbers above a bound, whole numbers, true or false."""

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any


def shown(value: object, most: int = 80) -> str:
    """A value as a message has it: there is a representation of every value, and none is long.

    Example:
        >>> from stochgraph.errors.checks import shown
        >>> shown([1, "two"]), shown(10**5000)
        ("[1, 'two']", 'a value of int that cannot be written out')
    """
    try:
        return shortened(repr(value), most)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        return f"a value of {type(value).__name__} that cannot be written out"


def shortened(text: str, most: int = 80) -> str:
    """A text without its middle, if it is long.

    Example:
        >>> from stochgraph.errors.checks import shortened
        >>> shortened("to be or not to be, that is the question", most=25)
        'to be or not...question'
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 3) :]}"


def number(value: object) -> bool:
    """True for one number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def more_than(bound: float) -> tuple[Callable[[Any], bool], str]:
    """A number above the bound."""
    return lambda value: number(value) and value > bound, f"a number more than {bound:g}"


def at_least(bound: float) -> tuple[Callable[[Any], bool], str]:
    """A number of at least the bound."""
    return lambda value: number(value) and value >= bound, f"a number of at least {bound:g}"


def between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    """A number strictly between the bounds."""
    return lambda value: number(value) and low < value < high, f"a number between {low:g} and {high:g}"


def plate_size(value: object) -> bool:
    """True for a number of draws: a whole one, numpy's too, of at least one."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def integer(least: int) -> tuple[Callable[[Any], bool], str]:
    """A whole number of at least the bound."""
    words = f"an integer of at least {least}"
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least, words


FLAG: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "true or false")


def require_known(known: Iterable[str], **options: object) -> None:
    """Refuse words that are none of the known ones.

    Raises:
        ValueError: with the option's name, what it is and what there is.
    """
    words = list(known)
    for name, value in options.items():
        if value not in words:
            raise ValueError(f"{name}={shown(value)} is not known: choose one of {', '.join(map(repr, words))}")


def require(kind: tuple[Callable[[Any], bool], str], **options: object) -> None:
    """Refuse options that are not of a kind.

    Raises:
        ValueError: with the option's name, what it is and what it must be.
    """
    fits, words = kind
    for name, value in options.items():
        if not fits(value):
            raise ValueError(f"{name}={shown(value)}: must be {words}")
