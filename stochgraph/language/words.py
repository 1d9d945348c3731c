"""The words of a declaration. They build nodes; nothing is sampled or computed.

A declaration is a plain function that runs once on symbols. To a type checker the words take and return `Any`: a symbol
stands wherever a tensor would.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import singledispatch
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..distributions.laws import DistributionLaw, SamplerLaw
from ..distributions.samplers import Sampler
from ..errors.checks import plate_size
from ..errors.exceptions import DeclarationError
from ..ir import nodes as nd
from ..ir.exponentials import Exponential, Logarithm, Scale
from ..ir.paths import first_mixing, open_unknowns, plates_in
from ..ir.programs import schedule
from ..tensors.axes import Axes, describe, union
from .functions import held
from .plates import plates_within, warn_of_shared_draws
from .symbols import Declaration, Symbol, built_inside, current, declare_apply, name_after, refuse_captured, to_nodes


def sample(
    name: str,
    dist: object,
    *parents: object,
    n: int | None = None,
    within: str | Iterable[str] | None = None,
    **parameters: object,
) -> Any:
    """A sample node: `name ~ dist(*parents)`.

    Args:
        name: the name of the node, unique in the graph, and of its plate if it has one.
        dist: a `torch.distributions` class, any function of one draw's parents that returns a distribution, or a
            `stochgraph.Sampler`.
        *parents: nodes (or pytrees of them) and constants. The draw has every axis that a parent has.
        n: the number of independent draws: adds a plate called `name`. `None` draws once and adds none.
        within: names of plates that are declared already: draws of its own for every entry of them, also where no
            parent is in them; plates that they lie in come along. `()` says that one draw for all is meant. A draw
            without parents of which nothing is said here warns where it meets a plate.
        **parameters: parents by name, as in `sg.sample("x", Bernoulli, logits=theta)`.

    Returns:
        The draw; its fields, if it has any, are read with attributes.

    Raises:
        DeclarationError: a name taken, a distribution already built, a plate of less than one draw, `within` a plate
            that there is not, a constant that requires grad.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> objective.compile(sg.SF()).sample(torch.tensor(0.0)).draws["x"].shape
        torch.Size([100])
        >>> @sg.graph
        ... def spread(theta):
        ...     task = sg.sample("task", Normal, theta, 1.0, n=3)
        ...     x = sg.sample("x", Normal, 0.0, 1.0, n=5, within="task")
        ...     return sg.mean((x - task) ** 2)
        >>> spread.compile(sg.SF()).sample(torch.tensor(0.0)).draws["x"].shape
        torch.Size([3, 5])
    """
    declaration = current("sample")
    law = _law(dist, name)
    if name in declaration.names or name in plates_in(declaration.nodes):
        raise DeclarationError(f"two nodes of the name {name!r}: give every sample a name of its own")
    refuse_captured([dist, parents, parameters], f"sample {name!r}")
    _check_call(name, law, getattr(dist, "__name__", law.name), parents, parameters)
    if n is not None and not plate_size(n):
        raise DeclarationError(f"sample {name!r}: a plate needs n >= 1 draws, an integer; got n={n!r}")
    inside = None if within is None else plates_within(declaration.nodes, name, within)
    plate = None if n is None else declaration.axis(name, n=int(n))
    time = declaration.axis(f"{name}.time", time=True) if law.time else None
    arguments = nd.Arguments(to_nodes(parents), to_nodes(parameters))
    return declaration.add(nd.Sample(name, len(declaration.nodes), law, arguments, plate, time, n and int(n), inside))


@singledispatch
def _law(dist: object, name: str) -> DistributionLaw | SamplerLaw:
    """The law that a sample is drawn from."""
    if not callable(dist):
        raise DeclarationError(f"sample {name!r}: {dist!r} is neither a distribution class, a function nor a Sampler")
    return DistributionLaw(held(dist))


@_law.register
def _law_of_sampler(dist: Sampler, name: str) -> SamplerLaw:
    return SamplerLaw(dist)


@_law.register
def _law_of_class(dist: type, name: str) -> DistributionLaw:
    if issubclass(dist, Sampler):
        raise DeclarationError(
            f"sample {name!r}: {dist.__name__} is a Sampler class; pass an instance, {dist.__name__}(...)"
        )
    return DistributionLaw(held(dist))


@_law.register
def _refuse_built(dist: Distribution, name: str) -> NoReturn:
    raise DeclarationError(built_inside(f"sample {name!r}", type(dist).__name__))


def mean(x: object, over: str | Iterable[str] | None = None) -> Any:
    """The mean of `x` over plates: `(1/N) sum_i x_i`. A linear operation.

    Args:
        x: a node with at least one plate.
        over: names of the plates; default: every plate of `x`. A time axis must be named to be averaged.

    Raises:
        DeclarationError: `x` does not have the axis.
    """
    given = _symbol(x, "mean")
    return _reduction("mean", given, _choose_plates(given, over, "mean"), mean=True)


def sum(x: object, over: str | Iterable[str] | None = None, discount: float | Tensor | None = None) -> Any:
    """The sum of `x` over time: `sum_t discount**t * x_t`. A linear operation.

    Args:
        x: a node with at least one time axis.
        over: names of axes; default: every time axis of `x`. A plate must be named to be summed.
        discount: the factor per time step (no unit), a number or a tensor of one, which is a constant whether it
            requires grad or not; needs exactly one time axis. One that is learned, a node, is for a fold of your own:
            `sg.reduce` over the time axis.

    Raises:
        DeclarationError: `x` does not have the axis, the discount is a node or no number, or one was given for several
            axes.
    """
    given = _symbol(x, "sum")
    times = tuple(axis for axis in given._node.axes if axis.time)
    chosen = _choose(given, over, times, "sum", "time axis")
    if discount is not None:
        _check_discount(given._node.name, chosen, discount)
    return _reduction("sum", given, chosen, mean=False, discount=discount)


def _check_discount(name: str, chosen: Axes, discount: object) -> None:
    if len(chosen) != 1 or not chosen[0].time:
        raise DeclarationError(f"sg.sum of {name!r}: a discount needs exactly one time axis, not {describe(chosen)}")
    if isinstance(discount, Symbol):
        raise DeclarationError(
            f"sg.sum of {name!r}: the discount {discount._node.name!r} is a node, and a sum is discounted by a "
            "constant. Give a number or a tensor, or fold the time axis yourself: sg.reduce(fold, sg.apply(lambda "
            f"r, g: (r, g), {name}, {discount._node.name}), over={chosen[0].name!r})"
        )
    number = isinstance(discount, (Real, Tensor)) and torch.as_tensor(discount).dim() == 0
    if not number or torch.as_tensor(discount).isnan():
        raise DeclarationError(f"sg.sum of {name!r}: discount={discount!r} is not a number: give one, such as 0.99")


def logmeanexp(x: object, over: str | Iterable[str] | None = None) -> Any:
    r"""The logarithm of a plate's mean of exponentials, :math:`\log \frac1N \sum_i e^{x_i}`, stable at any size.

    Estimators see the mean inside: `LSF` linearises in it, `LOO` leaves one draw out of it. With log-weights it is the
    bound of importance-weighted autoencoders, and `LOO` of it the estimator of VIMCO.

    Args:
        x: a node with at least one plate, real numbers such as log-weights.
        over: names of the plates; default: every plate of `x`. A time axis must be named.

    Raises:
        DeclarationError: `x` does not have the axis.

    References:
        Burda et al. (2016), eq. 8, for the bound; Mnih and Rezende (2016), VIMCO, eqs. 8 and 9.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Bernoulli
        >>> @sg.graph
        ... def bound(logit):
        ...     z = sg.sample("z", Bernoulli, logits=logit, n=3)
        ...     return sg.logmeanexp(-800.0 * (1 + z))
        >>> value, grad = bound.compile(sg.LOO()).value_and_grad(torch.tensor(0.4))
        >>> bool(value.isfinite() and grad.isfinite())
        True
    """
    given = _symbol(x, "logmeanexp")
    chosen = _choose_plates(given, over, "logmeanexp")
    node, declaration = given._node, given._declaration
    scale_name, name = declaration.unique(f"largest({node.name})"), declaration.unique(f"exp({node.name})")
    scale = declaration.add(Scale(scale_name, len(declaration.nodes), node, chosen))._node
    exponential = declaration.add(Exponential(name, len(declaration.nodes), node, scale))
    average = _reduction("mean", exponential, chosen, mean=True)._node
    name = declaration.unique(f"logmeanexp({node.name})")
    return declaration.add(Logarithm(name, len(declaration.nodes), average, scale))


def reduce(fn: Callable[..., Any], x: object, over: str | Iterable[str] | None = None, name: str | None = None) -> Any:
    """Any function of whole plates: a quantile, a maximum, a log-sum-exp.

    `fn` gets the reduced axes as leading dimensions of its argument, outermost first, and no others. The score
    function and the pathwise derivative go through it; estimators that linearise at a plate mean do not.

    Args:
        fn: from a pytree of tensors of shape `(*over, ...)` to a tensor.
        x: a node with the axes.
        over: names of axes; default: every plate of `x`.
        name: the name of the node; see `apply`.
    """
    given = _symbol(x, "reduce")
    chosen = _choose_plates(given, over, "reduce")
    node, declaration = given._node, given._declaration
    name_of_it = declaration.name("reduce", name, f"{getattr(fn, '__name__', 'reduce')}({node.name})")
    refuse_captured([fn], f"sg.reduce of {name_of_it!r}")
    made = nd.Reduce(name_of_it, len(declaration.nodes), node, chosen, held(fn))
    return declaration.add(made, named=name is not None)


def apply(fn: Callable[..., Any], *nodes: object, name: str | None = None, **constants: object) -> Any:
    """A deterministic node `fn(*nodes)`. `fn` is written for one draw; plates and time are mapped over it.

    Args:
        fn: any function of tensors or pytrees that `torch.vmap` can map, and nothing but a function: what it writes
            into its arguments is refused, and random numbers that it draws itself are in no trace (`sg.sample` is for
            them), so that a replay would draw others. Variables of the scopes around it are those of this call, also in
            the functions that it calls by them: in a loop every node has its own. Globals and what is in tensors it
            reads when the graph runs.
        *nodes: nodes, pytrees of nodes, constants.
        name: the name of the node, unique in the graph: in ledgers, formulas, pictures and errors, and of its value in
            `Trace.nodes`. It is not handed to `fn`: an argument of that name is given by position, or in a lambda.
        **constants: further arguments by name.

    Raises:
        DeclarationError: no argument is a node, a name taken, a function that takes an argument `name` itself; `fn`
            captures a node, or a tensor or a module of its own that requires grad: what is learned is an input of the
            graph. Where only a pass can tell, the first one that is differentiated does.
        FunctionError: while running. `torch.vmap` cannot map `fn`, or it fails; with its line, and what to write.

    Note:
        `sg.apply(torch.clone, theta)` gives a copy of parameters on which nothing drawn from `theta` depends. An
        inner update of the copy descends a loss at fixed data, however the data were drawn.
    """
    if name is not None:
        _refuse_a_name_of_its_own(fn, nodes)
    return declare_apply(getattr(fn, "__name__", "apply").strip("_<>"), fn, nodes, constants, name)


def _refuse_a_name_of_its_own(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """`name=` is the node's: for a function that takes one too, that would be a guess."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return
    open_ones = [p for i, p in enumerate(parameters) if i >= len(args) or p.kind is p.KEYWORD_ONLY]
    if any(p.name == "name" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in open_ones):
        raise DeclarationError(
            f"sg.apply of {getattr(fn, '__name__', fn)!r}: the function takes an argument `name` itself, and name= is "
            "the name of the node. Hand it over by position, or in a lambda: sg.apply(lambda x: fn(x, name=...), x)"
        )


def log_prob(x: object) -> Any:
    """The log-probability of a draw under the distribution that it was drawn from: the log q of a variational bound.

    Of a pathwise draw no transform is inverted: it is exact where a sigmoid or a hyperbolic tangent has saturated.
    Scored draws from which transforms do not lead back are refused when they are drawn.

    Args:
        x: a sample node. The result has its axes, a time axis included.

    Raises:
        DeclarationError: `x` is not a sample node.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def negative_entropy(scale):
        ...     return sg.mean(sg.log_prob(sg.sample("x", Normal, 0.0, scale, n=5)))
        >>> value, grad = negative_entropy.compile(sg.PW()).value_and_grad(torch.tensor(2.0))
        >>> float(grad)  # - 1 / scale
        -0.5
    """
    given = _symbol(x, "log_prob")
    node, declaration = given._node, given._declaration
    if not isinstance(node, nd.Sample):
        raise DeclarationError(f"sg.log_prob takes a sample node, got {node.name!r} (axes: {describe(node.axes)})")
    return declaration.add(nd.LogProb(declaration.unique(f"log p({node.name})"), len(declaration.nodes), node))


def stop(x: object) -> Any:
    """Stop-gradient: the value of `x` is a constant by declaration. How it was drawn is still accounted for."""
    given = _symbol(x, "stop")
    node, declaration = given._node, given._declaration
    return declaration.add(nd.Stop(declaration.unique(f"stop({node.name})"), len(declaration.nodes), [node]))


def ascend(params: object, objective: object, lr: object, name: str | None = None) -> Any:
    """One inner step up the gradient: `params + lr * gradient of objective with respect to params`.

    The gradient is that of the objective's own surrogate: the score function of every sample that was drawn from
    `params`, plus the gradient through values. What is left of the objective's plates (the tasks, say) becomes a
    plate of the result: one adapted copy per task.

    A draw is scored with the terms that depend on it: of `reward + 5` with the reward, of
    `sg.apply(lambda r: r + 5, reward)` with the whole. The two steps have one mean and are not the same step.

    Args:
        params: a node: a tensor or a pytree of tensors.
        objective: a declared inner objective, a scalar per draw, without time axes.
        lr: the step size: a number, a node, or a pytree of them with the structure of `params` (Meta-SGD).
        name: the name of the adapted parameters, as in `apply`; default: that of `params` with a prime.

    Raises:
        DeclarationError: the objective does not depend on `params`, or has a time axis left; a name taken.
    """
    return _update("ascend", _symbol(params, "ascend"), _symbol(objective, "ascend"), lr, +1, name)


def descend(params: object, objective: object, lr: object, name: str | None = None) -> Any:
    """One inner step down the gradient: `params - lr * gradient of objective`. See `ascend`."""
    return _update("descend", _symbol(params, "descend"), _symbol(objective, "descend"), lr, -1, name)


def declare(fn: Callable[..., Any]) -> tuple[list[nd.Input], nd.Node, list[nd.Data]]:
    """Run `fn` once on symbols; its inputs, its objective and its data."""
    declaration = Declaration()
    with declaration:
        inputs = [declaration.add(nd.Input(p, i, [])) for i, p in enumerate(_parameters(fn))]
        for symbol in inputs:
            symbol._node.declared_at = None  # by the head of the function, and by no line of it
        result = fn(*inputs)
    if not isinstance(result, Symbol):
        raise DeclarationError(
            f"{fn.__name__} must return a node, the objective; it returned {type(result).__name__}"
            + (", a constant: nothing in it depends on a sample or an input" if result is not None else "")
        )
    node = result._node
    if result._declaration is not declaration:
        raise DeclarationError(
            f"{fn.__name__} must return a node that it declares; {node.name!r} is another function's"
        )
    if node.axes:
        word = "sg.sum" if any(axis.time for axis in node.axes) else "sg.mean"
        raise DeclarationError(
            f"the objective {node.name!r} of {fn.__name__} still has the axes {describe(node.axes)}: reduce them "
            f"with {word}(..., over={node.axes[0].name!r})"
        )
    _refuse_open_unknowns(node)
    warn_of_shared_draws(declaration.nodes, node)
    found = [declared for declared in declaration.nodes if isinstance(declared, nd.Data)]
    return [symbol._node for symbol in inputs], node, found  # type: ignore[misc]


def _refuse_open_unknowns(objective: nd.Node) -> None:
    """An unknown has no value outside the objective of the update that solves for it."""
    order = schedule([objective])
    for unsolved in open_unknowns(order)[objective]:
        first = next(node for node in order if unsolved in node.inputs or node is unsolved is objective)
        raise DeclarationError(
            f"the objective {objective.name!r} depends on the unknown {unsolved.name!r} (through {first.name!r}) "
            f"outside an update that solves for it: use what sg.argmax(..., over={unsolved.name}) returns"
        )


def _parameters(fn: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(fn).parameters.values()
    bad = [
        p.name
        for p in parameters
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) or p.default is not p.empty
    ]
    if bad or not parameters:
        raise DeclarationError(
            f"{fn.__name__} needs plain positional inputs, at least one; "
            + (f"{bad[0]!r} is not one: no defaults, no *; pass a pytree instead" if bad else "it has none")
        )
    return [p.name for p in parameters]


def _symbol(x: object, word: str) -> Symbol:
    """The argument of a word, which must be a symbol."""
    if not isinstance(x, Symbol):
        raise DeclarationError(f"sg.{word} takes a node of the graph, got {type(x).__name__}")
    return x


def _node(x: object, word: str) -> nd.Node:
    return _symbol(x, word)._node


def _reduction(
    word: str,
    x: Symbol,
    over: Axes,
    mean: bool,
    discount: float | Tensor | None = None,
    population: bool = False,
) -> Symbol:
    declaration = x._declaration
    name = declaration.unique(f"{word}({x._node.name})")
    return declaration.add(nd.Reduction(name, len(declaration.nodes), x._node, over, mean, discount, population))


def _choose_plates(x: Symbol, over: str | Iterable[str] | None, word: str) -> Axes:
    """The axes that `over` names, or all plates."""
    return _choose(x, over, tuple(axis for axis in x._node.axes if not axis.time), word, "plate")


def _choose(x: Symbol, over: str | Iterable[str] | None, default: Axes, word: str, noun: str) -> Axes:
    """The axes that `over` names, or the default ones."""
    node = x._node
    if over is None:
        if not default:
            raise DeclarationError(
                f"sg.{word} of {node.name!r}: it has no {noun} (axes: {describe(node.axes)}); "
                f"leave sg.{word} out, or name an axis with over="
            )
        return default
    wanted = [over] if isinstance(over, str) else list(over)
    by_name = {axis.name: axis for axis in node.axes}
    for name in wanted:
        if name not in by_name:
            raise DeclarationError(
                f"sg.{word} of {node.name!r} over {name!r}: the node does not have this axis "
                f"(axes: {describe(node.axes)}); choose one of them"
            )
    return union([by_name[name] for name in wanted])


def _update(word: str, params: Symbol, objective: Symbol, lr: object, sign: int, name: str | None) -> Symbol:
    start, goal = params._node, objective._node
    check_update(word, start, goal)
    refuse_captured([lr], f"sg.{word} of {start.name!r}")
    rate = nd.Arguments((to_nodes(lr),), {})
    declaration = params._declaration
    given = declaration.name(word, name, name_after(start))
    return declaration.add(nd.Step(given, len(declaration.nodes), start, goal, rate, sign), named=name is not None)


def check_update(word: str, start: nd.Node, goal: nd.Node) -> None:
    """Refuse an inner objective that does not fit the parameters whose gradient is taken."""
    _refuse_time(word, start, goal)
    if not _depends(goal, start):
        raise DeclarationError(
            f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} does not depend on {start.name!r}, "
            "neither through values nor through a distribution; its gradient would be zero"
        )
    _refuse_mixed_copies(word, start, goal)


def _refuse_time(word: str, start: nd.Node, goal: nd.Node) -> None:
    times = [axis for axis in goal.axes if axis.time]
    if times:
        raise DeclarationError(
            f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} still has the time axis "
            f"{times[0].name!r}: sum over it first, sg.sum(..., over={times[0].name!r})"
        )


def _refuse_mixed_copies(word: str, start: nd.Node, goal: nd.Node) -> None:
    """Each plate that is left has its own copy of the parameters: nothing that depends on them may mix its draws."""
    found = first_mixing(start, goal, goal.axes)
    if found:
        node, plate = found
        if isinstance(node, nd.Data):
            raise DeclarationError(
                f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} keeps the plate {plate.name!r}, whose "
                f"entries are the rows of {start.name!r} itself: update the rows, {node.name!r}, or reduce the plate "
                "in the objective"
            )
        raise DeclarationError(
            f"sg.{word} of {start.name!r}: the inner objective {goal.name!r} keeps the plate {plate.name!r}, "
            f"so each of its draws has its own copy of {start.name!r}; but {node.name!r} reduces that plate of "
            "something that depends on the copies. Reduce the plate in the whole objective, or compute "
            f"{node.name!r} from parameters that are not updated, sg.apply(torch.clone, params)"
        )


def _depends(node: nd.Node, source: nd.Node) -> bool:
    """True if `source` is among the ancestors of `node`."""
    seen, stack = set(), [node]
    while stack:
        top = stack.pop()
        if top is source:
            return True
        fresh = [parent for parent in top.inputs if parent not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _check_call(
    name: str,
    law: DistributionLaw | SamplerLaw,
    called: str,
    parents: tuple[object, ...],
    parameters: dict[str, object],
) -> None:
    """Refuse parents that the distribution does not take."""
    try:
        checked = law.bound(parents, parameters).arguments.get("validate_args")
        if not isinstance(checked, bool | None):
            raise TypeError(
                f"validate_args={checked!r} is neither true nor false; the size of a plate is n={checked!r}"
            )
    except TypeError as error:
        raise DeclarationError(f"sample {name!r}: its parents do not fit {called}: {error}") from None
    except ValueError:  # a builtin without a signature
        pass
