"""Indexing with a drawn integer, and noise that is drawn in place, under `torch.func` transforms.

NOTE [scalar indices]
`table[action]` is how a tabular policy or reward is written for one draw. Inside `torch.func.grad` or `hessian` under
`torch.vmap`, torch takes an integer tensor without dimensions for a number and asks for its value, which a mapped
tensor does not have. Within a surrogate that runs under such a transform, scalar indices are therefore looked up with
`index_select`, which has the same meaning and a rule for every transform.

NOTE [noise in place]
Many distributions draw with `torch.empty(shape).normal_()` or its like. Under `torch.vmap(..., randomness="different")`
torch refuses, because a tensor that is not mapped has room for one element's noise only. A fresh random tensor of the
same shape is mapped, so the noise is written into that one and returned. torch's own distributions use what the call
returns; a sampler that looks at the tensor instead finds NaN there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NOISE_IN_PLACE = frozenset(
    getattr(Tensor, name) for name in ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_")
)


def in_transform() -> bool:
    """True inside a `torch.func` transform: values may then be wrapped, and cannot be looked at."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transform_rules() -> AbstractContextManager[Any]:
    """Follow the two notes above while a `torch.func` transform is active; else do nothing."""
    return nullcontext() if not in_transform() else _TransformRules()


class _TransformRules(TorchFunctionMode):
    def __torch_function__(
        self, fn: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if fn is Tensor.__getitem__:
            return getitem(*args)
        if fn in NOISE_IN_PLACE:
            return _noise(fn, *args, **(kwargs or {}))
        return fn(*args, **(kwargs or {}))


def _noise(fn: Callable[..., Any], target: Tensor, *args: object, **kwargs: object) -> Tensor:
    try:
        return fn(target, *args, **kwargs)
    except RuntimeError:
        noise = fn(torch.rand_like(target), *args, **kwargs)
    target.fill_(torch.nan)
    return noise


def getitem(value: Tensor, key: Any) -> Tensor:
    """`value[key]`, scalar tensors in the key not being looked at. See the first note above."""
    keys = key if isinstance(key, tuple) else (key,)
    scalar = [_is_scalar_index(k) for k in keys]
    others = [k for k, is_scalar in zip(keys, scalar, strict=True) if not is_scalar]
    plain = all(k is None or k is Ellipsis or isinstance(k, (int, slice)) for k in others)
    if len(others) == len(keys) or not plain:
        return Tensor.__getitem__(value, key)
    kept = Tensor.__getitem__(value, tuple(slice(None) if s else k for s, k in zip(scalar, keys, strict=True)))
    for index, dim in reversed(_places(keys, scalar, value.dim())):
        kept = kept.index_select(dim, index.reshape(1).long()).squeeze(dim)
    return kept


def _is_scalar_index(key: Any) -> bool:
    integral = isinstance(key, Tensor) and not key.is_floating_point() and not key.is_complex()
    return integral and key.dim() == 0 and key.dtype != torch.bool


def _places(keys: tuple[Any, ...], scalar: list[bool], dims: int) -> list[tuple[Tensor, int]]:
    """Each scalar index with the dimension that it selects from, once the other keys have been applied."""
    consumed = sum(k is not None and k is not Ellipsis for k in keys)
    places, dim = [], 0
    for k, is_scalar in zip(keys, scalar, strict=True):
        if is_scalar:
            places.append((k, dim))
        dim += dims - consumed if k is Ellipsis else 0 if isinstance(k, int) else 1
    return places
