"""The noise of pathwise draws: recorded and played back; and draws whose noise depends on their parameters.

NOTE [why noise is recorded]
A surrogate is a pure function of (inputs, trace), so a pathwise draw must be rebuilt from the trace. Most `rsample` are
a function of their parameters and of noise from one of a few torch calls; recording what those calls return is all it
takes to rebuild the draw at any parameters and to any derivative order.

NOTE [noise that depends on parameters]
A gamma or a Dirichlet draw is what a loop of rejections ends with, no function of noise. Its derivative is known all
the same: along a quantile the distribution function F does not change, so that `dx/da = -(dF/da) / (dF/dx)`, and torch
has that (Figurnov et al. 2018; Jankowiak and Obermeyer 2018). It holds at the parameters that drew, and to first order:
torch has no second one. So the trace records the draw and those parameters, and a replay at others, or a second
derivative, is refused in words: neither may be a silent zero. Where those parameters are constants, there is no bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors.exceptions import SamplingError
from ..tensors.autograd import Context, Mapped
from ..tensors.indexing import NOISE_IN_PLACE
from .interfaces import SampleNode

_ROUNDING = 1000  # times the epsilon of the dtype: parameters that differ by less are the same


class NoiseTape(TorchFunctionMode):
    """Records the noise of a reparameterised draw, or plays recorded noise back. See the notes above."""

    _fresh = frozenset(
        [torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint, torch.randint_like, torch.randperm]
    )
    # Their results are choices, drawn from parameters: what is differentiated beside them is not the draw.
    _choices = frozenset("multinomial bernoulli bernoulli_ poisson binomial".split())
    # These draw inside of themselves, where nothing can be recorded; and the mean of torch.normal gets no derivative.
    _hidden = frozenset("normal random_ gumbel_softmax dropout alpha_dropout feature_alpha_dropout rrelu".split())
    _arithmetic = frozenset("add radd iadd sub rsub isub mul rmul imul div truediv where".split())

    def __init__(self, node: SampleNode, noise: list[Tensor] | None = None) -> None:
        super().__init__()
        self.node = node
        self.replay = None if noise is None else iter(noise)
        self.recorded: list[Tensor] = []
        self.held: list[Tensor] = []

    def __torch_function__(
        self, fn: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(fn, "__name__", ""), kwargs or {}
        if fn in _FAMILIES:
            return self._implicit(fn, args[0])
        if name in self._choices or self._combines_held(name, args):
            raise SamplingError(straight_through_message(self.node, self.node.law.name))
        if name in self._hidden:
            raise SamplingError(
                f"PW on sample {self.node.name!r} ({self.node.law.name}): torch's {name} draws noise that cannot be "
                "recorded; write its rsample with torch.rand or torch.randn, or use SF for this node"
            )
        result = fn(*args, **kwargs) if self.replay is None or not self._is_fresh(fn) else next(self.replay)
        if self._is_fresh(fn):
            self.recorded.append(result.clone() if self.replay is None else result)
            return self.recorded[-1]
        if name == "detach" and not any(args[0] is noise for noise in self.recorded):
            self.held.append(result)
        return result

    def _is_fresh(self, fn: Callable[..., Any]) -> bool:
        return fn in self._fresh or fn in NOISE_IN_PLACE

    def _combines_held(self, name: str, args: Sequence[Any]) -> bool:
        """True if a value whose derivative was cut off becomes part of the draw. torch's Gamma only clamps one."""
        return name.strip("_") in self._arithmetic and any(one is other for one in args for other in self.held)

    def _implicit(self, fn: Callable[..., Any], parameters: Tensor) -> Tensor:
        """A draw whose noise depends on its parameters: the draw and those parameters, recorded or played back."""
        if self.replay is None:
            drawn = [fn(parameters.detach()), parameters.detach()]
        else:
            drawn = [next(self.replay), next(self.replay)]
        self.recorded += drawn
        aligned = torch.broadcast_tensors(parameters, *drawn)
        return _implicit(_Implicit(_FAMILIES[fn], f"sample {self.node.name!r} ({self.node.law.name})"), *aligned)


@dataclass(frozen=True)
class _Family:
    """The derivative of a draw with respect to its parameters: a number for each, and the two products with it."""

    slope: Callable[[Tensor, Tensor], Tensor]  # of parameters and draw
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]  # of slope, draw and cotangent
    push: Callable[[Tensor, Tensor, Tensor], Tensor]  # of slope, draw and tangent


def _dirichlet_slope(concentration: Tensor, draw: Tensor) -> Tensor:
    return torch._dirichlet_grad(draw, concentration, concentration.sum(-1, True).expand_as(concentration))


_FAMILIES: dict[Any, _Family] = {
    torch._standard_gamma: _Family(
        torch._standard_gamma_grad,
        lambda slope, _, cotangent: slope * cotangent,
        lambda slope, _, tangent: slope * tangent,
    ),
    torch._sample_dirichlet: _Family(
        _dirichlet_slope,
        lambda slope, draw, cotangent: slope * (cotangent - (draw * cotangent).sum(-1, True)),
        lambda slope, draw, tangent: slope * tangent - draw * (slope * tangent).sum(-1, True),
    ),
}


@dataclass(frozen=True)
class _Implicit:
    """A draw that is differentiated implicitly."""

    family: _Family
    label: str

    def check(self, parameters: Tensor, drawn_at: Tensor) -> None:
        """Refuse parameters other than those that drew, but for rounding."""
        if not torch.allclose(parameters, drawn_at, rtol=_ROUNDING * torch.finfo(parameters.dtype).eps, atol=0.0):
            raise SamplingError(
                f"PW on {self.label}: its noise depends on its parameters, so that a draw can be differentiated where "
                "it was drawn, and not moved: this trace was drawn at other parameters. Draw again at these, or use SF "
                "for this node, whose replays are importance weighted"
            )

    def refuse_second(self) -> NoReturn:
        """A second derivative of the draw."""
        raise SamplingError(
            f"PW on {self.label}: its noise depends on its parameters, so that its draws have a first derivative and "
            "no second one. Use SF for this node, which is right at every order"
        )


class _Context(Context, Protocol):
    implicit: _Implicit


class _Draw(torch.autograd.Function):
    """`(implicit, parameters, draw, parameters that drew) -> draw`, a function of the parameters to first order."""

    @staticmethod
    def forward(implicit: _Implicit, parameters: Tensor, draw: Tensor, drawn_at: Tensor) -> Tensor:
        implicit.check(parameters, drawn_at)
        return draw.clone()

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.implicit, parameters, draw, _ = inputs
        ctx.save_for_backward(parameters, draw)
        ctx.save_for_forward(parameters, draw)

    @staticmethod
    def backward(ctx: _Context, cotangent: Tensor) -> tuple[Any, ...]:
        parameters, draw = ctx.saved_tensors
        slope = _slope(ctx.implicit, parameters, draw)
        return None, ctx.implicit.family.pull(slope, draw, cotangent), None, None

    @staticmethod
    def jvp(ctx: _Context, _: None, tangent: Tensor, *__: object) -> Tensor:
        if _forward_levels() > 1:  # torch would take the derivative of this rule for zero
            ctx.implicit.refuse_second()
        parameters, draw = ctx.saved_tensors
        return ctx.implicit.family.push(_slope(ctx.implicit, parameters, draw), draw, tangent)

    @staticmethod
    def vmap(info: Mapped, in_dims: tuple[Any, ...], implicit: _Implicit, *values: Tensor) -> tuple[Tensor, int]:
        return _implicit(implicit, *_in_front(info.batch_size, in_dims[1:], values)), 0


class _Slope(torch.autograd.Function):
    """`(implicit, parameters, draw) -> slope`, which has no derivative: asking for one is an error."""

    @staticmethod
    def forward(implicit: _Implicit, parameters: Tensor, draw: Tensor) -> Tensor:
        return implicit.family.slope(parameters, draw)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.implicit = inputs[0]

    @staticmethod
    def backward(ctx: _Context, _: Tensor) -> Any:
        ctx.implicit.refuse_second()

    @staticmethod
    def jvp(ctx: _Context, *_: object) -> Any:
        ctx.implicit.refuse_second()

    @staticmethod
    def vmap(info: Mapped, in_dims: tuple[Any, ...], implicit: _Implicit, *values: Tensor) -> tuple[Tensor, int]:
        return _slope(implicit, *_in_front(info.batch_size, in_dims[1:], values)), 0


_implicit: Callable[..., Tensor] = _Draw.apply
_slope: Callable[..., Tensor] = _Slope.apply


def _in_front(size: int, dims: Sequence[int | None], values: Sequence[Tensor]) -> list[Tensor]:
    """The values with the mapped dimension in front."""
    return [v.expand(size, *v.shape) if d is None else v.movedim(d, 0) for d, v in zip(dims, values, strict=True)]


def _forward_levels() -> int:
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


def straight_through_message(node: SampleNode, dist: str) -> str:
    """Why a straight-through draw is refused."""
    return (
        f"PW on sample {node.name!r} ({dist}): a straight-through draw. It has the value of a choice and the "
        "derivative of something else, so that its gradient is biased; use SF or LSF for this node, or a relaxed "
        "distribution, whose draws are what is differentiated"
    )
