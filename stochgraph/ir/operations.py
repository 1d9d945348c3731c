"""The operations table: what the compiler knows of the functions that users write in a declaration.

One row an operation: in which operands it is linear, whether broadcasting maps it over draws, whether it is flat, and
its formula. Boxes, the ledger and chunks read it. A function that has no row is any function: not linear, mapped by
`torch.vmap`, differentiated as torch does.
"""

import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch


class Linearity(Enum):
    """The operands in which a value is affine, all others held."""

    NOWHERE = "in none of them"
    IN_FIRST = "in the first"
    IN_EACH = "in each alone, not in two together"
    IN_ALL = "in all together"

    def holds(self, places: Collection[int]) -> bool:
        """True if the value is affine in the operands at these places together.

        Example:
            >>> from stochgraph.ir.operations import Linearity
            >>> Linearity.IN_EACH.holds([1]), Linearity.IN_EACH.holds([0, 1]), Linearity.NOWHERE.holds([])
            (True, False, True)
        """
        if self is Linearity.IN_EACH:
            return len(places) < 2
        return not places or self is Linearity.IN_ALL or (self is Linearity.IN_FIRST and set(places) == {0})


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes:
        linear: the operands in which it is affine.
        elementwise: it acts on every element alone, so that broadcasting maps it over plates and time.
        signs: of a sum, the signs of its summands.
        flat: its derivative is zero wherever it has one.
        whole: booleans and small integers are whole numbers to it. On booleans torch's + is an `or`, and small integers
            wrap around; the compiler takes these operations for what they are in the real numbers.
        formula: the formula, from the operands' formulas.
        binds: it binds more tightly than a sum, so that a sum among its operands is put into brackets.
    """

    linear: Linearity = Linearity.NOWHERE
    elementwise: bool = True
    signs: tuple[int, ...] = ()
    flat: bool = False
    whole: bool = False
    formula: str = ""
    binds: bool = False


# By their names in torch: on the left those that symbols have as methods.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in (
        "abs acos acosh asin asinh atan atan2 atanh ceil clamp clamp_max clamp_min clip cos cosh digamma div erf erfc "
        "exp exp2 expm1 floor fmod lgamma log log10 log1p log2 logaddexp logit maximum minimum mul neg pow reciprocal "
        "relu remainder round rsqrt sigmoid sign sin sinc sinh softplus sqrt square sub tan tanh trunc where xlogy"
    ).split()
    if hasattr(torch, name)
}
_ANY = Operation(elementwise=False)
_COMPARISONS = "lt le gt ge eq ne".split()
_JUMPS = "ceil floor round sign trunc".split()
_CHOICES = "argmax argmin".split()


def _rows() -> Iterator[tuple[Callable[..., Any], Operation]]:
    plain = [*ELEMENTWISE.values(), operator.floordiv, operator.mod, operator.abs]
    plain += [getattr(torch.nn.functional, name) for name in "softplus logsigmoid relu silu elu".split()]
    yield from ((fn, Operation()) for fn in (*plain, torch.special.expit))
    yield from ((getattr(operator, name), Operation(flat=True)) for name in (*_COMPARISONS, "and_", "or_", "xor"))
    yield operator.invert, Operation(flat=True)
    for owner in (torch, torch.Tensor):
        for name in (*_COMPARISONS, *_JUMPS, *_CHOICES):
            fn = getattr(owner, name)
            yield fn, Operation(elementwise=fn in plain, flat=True)
    yield operator.add, Operation(Linearity.IN_ALL, signs=(1, 1), whole=True, formula="{} + {}")
    yield operator.sub, Operation(Linearity.IN_ALL, signs=(1, -1), whole=True, formula="{} - {}", binds=True)
    yield operator.neg, Operation(Linearity.IN_ALL, whole=True, formula="-{}", binds=True)
    yield operator.pos, Operation(Linearity.IN_ALL, whole=True)
    yield operator.mul, Operation(Linearity.IN_EACH, whole=True, formula=r"{} \, {}", binds=True)
    yield operator.truediv, Operation(Linearity.IN_FIRST, formula=r"\frac{{{}}}{{{}}}")
    yield from ((fn, Operation(formula="{}^{{{}}}", binds=True)) for fn in (operator.pow, torch.pow))
    yield torch.square, Operation(formula="{}^{{2}}", binds=True)
    yield torch.exp, Operation(formula=r"\exp({})")


OPERATIONS: dict[Callable[..., Any], Operation] = dict(_rows())


def operation(fn: Callable[..., Any]) -> Operation:
    """The row of a function; of one that is not in the table what holds for any function.

    Example:
        >>> import operator, torch
        >>> from stochgraph.ir.operations import operation
        >>> operation(operator.add).linear.value, operation(torch.floor).flat, operation(lambda x: x).elementwise
        ('in all together', True, False)
    """
    return OPERATIONS.get(fn, _ANY)
