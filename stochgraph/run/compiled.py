"""Compiled graphs: sampling, surrogates and gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..derive.derivation import Derivation
from ..derive.estimator import plain
from ..derive.populations import expectations_of
from ..derive.printed import printed
from ..errors.exceptions import LoweringError, SamplingError
from ..errors.failures import short_tracebacks
from ..explain.citation import citation
from ..explain.explanation import Explanation, explain
from ..explain.magnitudes import Group
from ..explain.report import report
from ..ir.declaration import Declaration
from ..ir.paths import samples_in
from ..ir.traces import Trace
from ..source.module import Source, source
from .choices import Given, assigned, check, choose_inputs, constant_updates, given_estimators
from .cuts import Cuts
from .estimates import Estimates
from .gradient import Point
from .inputs import Inputs, checked_sizes
from .loss import hand_over, leaves_that_require_gradients
from .lowered import Lowered, held_still, lowering_of
from .passes import recorded, seeded
from .surrogates import Surrogate
from .values import Values


class Shares(Protocol):
    """Whoever works out what every group of a ledger's rows gives: by the proofs, which know compiled graphs."""

    def __call__(
        self,
        compiled: "Compiled",
        inputs: Sequence[object],
        sizes: Mapping[str, int] | None,
        repeats: int | None,
        generator: torch.Generator | None,
        max_outcomes: int | None,
    ) -> tuple[Group, ...]: ...


class Compiled:
    """A graph with an estimator per sample node, and the surrogate derived from the two. Made by `Graph.compile`.

    Attributes:
        graph: the declared graph.
        estimators: the estimator of every sample node whose distribution depends on an input, by name.
        wrt: the names of the differentiated inputs.

    Example:
        >>> import torch, stochgraph as sg
        >>> from torch.distributions import Normal
        >>> @sg.graph
        ... def objective(theta):
        ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
        ...     return -(sg.mean(x) - 1.0) ** 2
        >>> compiled = objective.compile(sg.LSF())
        >>> theta = torch.tensor(0.0)
        >>> trace = compiled.sample(theta, generator=torch.Generator().manual_seed(0))
        >>> grad = torch.func.grad(compiled.surrogate)(theta, trace)
        >>> grad.shape
        torch.Size([])
    """

    def __init__(
        self,
        graph: Declaration,
        estimators: Given,
        wrt: str | tuple[str, ...] | None,
        lowering: str,
        shares: Shares,
    ) -> None:
        self.graph = graph
        self._shares = shares
        self.wrt = choose_inputs(graph, wrt)
        given = given_estimators(graph, estimators)
        self.estimators = assigned(graph, given, self.wrt)
        check(graph, self.estimators, self.wrt)
        self._expectations = expectations_of(graph.order, given, self.estimators)
        if lowering == "auto" and self._draws_sizes:  # it lowers where it can
            lowering = "never"
        if lowering != "never":
            self._refuse_drawn_sizes()
        self._inputs = Inputs(graph, self.wrt, self._expectations)
        self._derivation = Derivation(graph.order, self.estimators, constant_updates(graph, estimators, given))
        beside = map(self._derivation.noise, self._derivation.scope.samples.values())
        self._noise = {node.name: node for node in beside if node is not None}
        samples = {**samples_in(graph.order), **self._noise}
        self._values = Values(graph, Derivation(graph.order, plain(self.estimators)), samples, self.wrt)
        self._surrogate = Surrogate(graph, self._derivation, self.wrt, self._values, self._expectations)
        self._root, self._program = self._surrogate.root, self._surrogate.program
        self._cuts = Cuts(graph, samples, self._program, self._values.scores, self._values.named)
        self._lowering = lowering_of(self, lowering)
        self._estimates = Estimates(self._inputs, self._surrogate, self._values, self._cuts, self._lowering)

    @short_tracebacks()
    def sample(
        self, *inputs: object, generator: torch.Generator | None = None, sizes: Mapping[str, int] | None = None
    ) -> Trace:
        """Draw every sample node once.

        Under `torch.vmap(..., randomness="different")` every element draws for itself. Inside a transform values cannot
        be looked at: log-probabilities that are not finite go unnoticed there.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators. They, and the environments behind
                samplers, are the process's own, so that one thread draws at a time.
            sizes: sizes of plates by name, in place of the declared ones.

        Returns:
            What was drawn, and the value of the objective; no gradients attached.

        Raises:
            SamplingError: a distribution refused its parameters, or a log-probability is not finite.
        """
        with recorded():
            run = self._inputs.run(inputs, sizes)
            with seeded(generator, inputs):
                return self._values.trace(self._inputs.begun(run))

    @short_tracebacks()
    def surrogate(self, *inputs_and_trace: object) -> Tensor:
        """The scalar whose gradient with respect to the inputs is the estimate: `surrogate(*inputs, trace)`.

        A pure function. At the inputs that drew the trace its value is the objective's; at others it is importance
        weighted. Differentiable to any order; works under `torch.func` transforms.

        Raises:
            SamplingError: a log-probability is not finite, or the trace lacks a sample node.
        """
        *inputs, last = inputs_and_trace
        trace = cast(Trace, last)
        missing = [name for name in self._values.draws if name not in getattr(trace, "draws", ())]
        if missing:
            raise SamplingError(
                f"surrogate of {self.graph.name!r}: the last argument must be a trace of this graph; "
                f"it has no draw of {missing[0]!r}. Make one with compiled.sample(...)"
            )
        silent = [name for name in self._derivation.pathwise if name not in trace.noise]
        if silent:
            raise SamplingError(
                f"surrogate of {self.graph.name!r}: PW replays the noise of {silent[0]!r}, and the trace has none: it "
                "was drawn with another estimator. Make one with the sample of this compiled graph"
            )
        with recorded():
            return self._surrogate(self._inputs.begun(self._inputs.run(inputs, None, trace)))

    @short_tracebacks()
    def value_and_grad(
        self, *inputs: object, generator: torch.Generator | None = None, sizes: Mapping[str, int] | None = None
    ) -> tuple[Tensor, Any]:
        """One estimate, of any number of tasks.

        One pass: each distribution is built once, drawn from and scored. Where more numbers are computed than memory is
        fast for, draws come first, and then `accumulate` over the outermost plate that can be cut: memory grows with
        the draws alone. Sizes decide, never the number of threads.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators.
            sizes: sizes of plates by name, in place of the declared ones.

        Returns:
            The value of the objective for the draws, and the gradient: a pytree like the differentiated input, or a
            tuple of them if `wrt` names several.

        Raises:
            SamplingError: inside a `torch.func` transform; `sample` and `surrogate` work there.
        """
        with recorded():
            point = self._inputs.point("value_and_grad", inputs)
            value, gradient = self._estimates.fresh(point, generator, sizes)
            return value, point.shaped(gradient)

    @short_tracebacks()
    def loss(
        self,
        *inputs: object,
        generator: torch.Generator | None = None,
        sizes: Mapping[str, int] | None = None,
        return_trace: bool = False,
    ) -> Any:
        """The objective as a loss of torch: `compiled.loss(*inputs).backward()` fills `.grad` with the estimate.

        The gradient is that of `value_and_grad`, computed in the call, at the parameters of the call. `backward` hands
        it over, scaled by what comes in, to those leaves of the differentiated inputs that require a gradient, and
        through them to what they were made of; a second `backward` adds it again. Parameters of a module go in as
        `dict(module.named_parameters())`.

        Where gradients are off, or no leaf requires one, it is the value alone.

        Args:
            *inputs: the inputs of the graph, pytrees of tensors.
            generator: source of randomness; default: torch's default generators.
            sizes: sizes of plates by name, in place of the declared ones.
            return_trace: whether to return what was drawn as well.

        Returns:
            A scalar, the value of the objective for the draws; with `return_trace` that and the trace.

        Raises:
            SamplingError: inside a `torch.func` transform; an input that is not in `wrt` requires a gradient;
                when differentiated: with `create_graph=True`, the estimate having no derivative of its own.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", Bernoulli, logits=theta["logits"], n=10)
            ...     return sg.mean((x - 0.2) ** 2)
            >>> compiled = objective.compile(sg.SF(baseline="loo"))
            >>> theta = {"logits": torch.nn.Parameter(torch.tensor(2.0))}
            >>> optimizer, generator = torch.optim.Adam(theta.values(), lr=0.1), torch.Generator().manual_seed(0)
            >>> for _ in range(100):
            ...     optimizer.zero_grad()
            ...     compiled.loss(theta, generator=generator).backward()
            ...     optimizer.step()
            >>> bool(theta["logits"] < -1.0)
            True
        """
        self._inputs.refuse_transforms("loss")
        given = self._inputs.named(inputs)
        self._inputs.require_floats(given)
        leaves = leaves_that_require_gradients(self.graph.name, given, self.wrt) if torch.is_grad_enabled() else []
        if not leaves:
            trace = self.sample(*inputs, generator=generator, sizes=sizes)
            return (trace.value, trace) if return_trace else trace.value
        point = Point(given, self.wrt, lambda leaf: isinstance(leaf, Tensor) and leaf.requires_grad)
        if return_trace:
            trace = self.sample(*inputs, generator=generator, sizes=sizes)
            found = self._estimates.at(point, trace._replace(log_probs={}))  # at the inputs that drew it
            return hand_over(self.graph.name, *found, leaves), trace
        return hand_over(self.graph.name, *self._estimates.fresh(point, generator, sizes), leaves)

    @short_tracebacks()
    def lower(
        self,
        *inputs: object,
        trace: Trace | None = None,
        sizes: Mapping[str, int] | None = None,
        backend: str = "flat",
    ) -> Lowered:
        """The gradient as a flat program of tensor operations, for inputs like these: the same bits, without Python.

        What is recorded is one call: its operations, below autograd and `torch.vmap`. A call whose shapes, dtypes or
        sizes are others, or whose functions name other things, is refused; one in which Python would decide otherwise
        is interpreted. Draws of samplers that do not say `traceable = True` are made apart.

        Args:
            *inputs: the inputs of the graph, tensors on the CPU and numbers.
            trace: draws of which the program is a function; default: it draws.
            sizes: for fresh draws, sizes of plates by name, in place of the declared ones.
            backend: "flat", or "inductor", through `torch.compile`: the same draws, and results that agree to rounding.

        Returns:
            A `Lowered`, for `value_and_grad(*inputs)`, or with a trace for `grad` and `surrogate(*inputs, trace)`.

        Raises:
            LoweringError: a function names what may change without a trace, looks at values where no record can tell,
                or does not give the same bits twice; there is no C++ compiler for "inductor".

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", lambda t: Bernoulli(logits=t), theta, n=10)
            ...     return sg.mean(sg.apply(lambda x, t: (x - t) ** 2, x, theta))
            >>> compiled, theta = objective.compile(sg.SF()), torch.tensor(0.3)
            >>> lowered = compiled.lower(theta)
            >>> one = compiled.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
            >>> other = lowered.value_and_grad(theta, generator=torch.Generator().manual_seed(0))
            >>> one == other
            True
        """
        self._refuse_drawn_sizes()
        with recorded():
            point = self._inputs.point("lower", inputs)
            return Lowered(self, point, checked_sizes(self.graph, sizes), trace and held_still(trace), backend)

    def citation(self) -> str:
        """The papers of the estimators in use, as BibTeX: each once, with the samples that it is for.

        Example:
            >>> import stochgraph as sg
            >>> from torch.distributions import Normal
            >>> @sg.graph
            ... def objective(theta):
            ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=2))
            >>> print(objective.compile(sg.PW()).citation())  # doctest: +ELLIPSIS
            % x
            @inproceedings{kingma2014auto,
              author = {Diederik P. Kingma and Max Welling},
              title = {Auto-encoding variational {Bayes}},
              booktitle = {International Conference on Learning Representations},
              year = {2014},
            }
            ...
        """
        return citation(self.estimators)

    @property
    def _draws_sizes(self) -> bool:
        """True if an estimator draws the number of draws."""
        return self._expectations is not None and self._expectations.estimator.draws_sizes

    def _refuse_drawn_sizes(self) -> None:
        if self._expectations is not None and self._draws_sizes:
            raise LoweringError(
                f"{self.graph.name} cannot be lowered: {self._expectations.estimator} draws how many draws there are, "
                'and a flat program is for one size. Leave lowering="never"'
            )

    def source(self) -> Source:
        """The surrogate as a person would have written it: a Python module as text, which needs torch only.

        The module defines `surrogate(*inputs, trace, **functions)`, with the value and the gradient of `surrogate`
        here. `trace` is a dict: `draws`, and the `log_probs` and `noise` of a trace where it has them. What text
        cannot hold (functions, the `log_prob` of samplers, large constants) are keyword arguments, listed in the
        module's `FUNCTIONS`; those of this graph are the attribute `functions` of the text. Functions return real
        numbers or, where they are not averaged, whole ones.

        Raises:
            CompileError: a solution of `argmax`, or an estimator's node that is not written; the message names it.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", Bernoulli, logits=theta, n=10)
            ...     return torch.exp(sg.mean(x))
            >>> compiled, theta = objective.compile(sg.LSF()), torch.tensor(0.3)
            >>> text, trace = compiled.source(), compiled.sample(theta)
            >>> print(text[text.index("    log_p_x"):])
                log_p_x = Bernoulli(logits=theta).log_prob(x)
                # x: counted once, linearised at the mean over x
                box_x = torch.exp(log_p_x - log_probs.get("x", log_p_x.detach()))
                return torch.exp((box_x * x).mean())
            <BLANKLINE>
            >>> module = {}
            >>> exec(text, module)
            >>> bool(module["surrogate"](theta, trace._asdict(), **text.functions) == trace.value)
            True
        """
        return source(self)

    @short_tracebacks()
    def explain(
        self,
        *inputs: object,
        sizes: Mapping[str, int] | None = None,
        repeats: int | None = None,
        generator: torch.Generator | None = None,
        max_outcomes: int | None = None,
    ) -> Explanation:
        """The account of every gradient path: the ledger, bias and variance class, the estimator as a formula.

        With inputs also how much of the gradient each group of rows gives there, `rows`: exactly, where the joint
        outcomes can be listed and are few, else from draws, with standard errors.

        Args:
            *inputs: the inputs of the graph; none for the ledger alone. For exact figures use float64.
            sizes: sizes of plates by name, in place of the declared ones.
            repeats: how many draws, at least 3; default: exact if possible, else 200.
            generator: source of randomness of the draws; default: torch's default generators.
            max_outcomes: the most joint outcomes that are listed; default: 20,000.

        Raises:
            SamplingError: as in `sample`.
            ValueError: fewer than three draws.

        Example:
            >>> import torch, stochgraph as sg
            >>> from torch.distributions import Bernoulli
            >>> @sg.graph
            ... def objective(logit):
            ...     x = sg.sample("x", Bernoulli, logits=logit, n=3)
            ...     return sg.mean(x) ** 2 + 0.1 * logit
            >>> explained = objective.compile(sg.SF()).explain(torch.tensor(0.0, dtype=torch.float64))
            >>> for row in explained.rows:
            ...     print(row)
            x, once: 71.4 %
            values, once: 28.6 %
        """
        if not inputs:
            return explain(self)
        return explain(self, self._shares(self, inputs, sizes, repeats, generator, max_outcomes))

    def report(
        self,
        path: str | Path,
        *inputs: object,
        sizes: Mapping[str, int] | None = None,
        repeats: int | None = None,
        generator: torch.Generator | None = None,
        max_outcomes: int | None = None,
    ) -> Path:
        """Write a report, one page of HTML that fetches nothing: picture, ledger, formula, and the declaring lines.

        Pointing at a path of the ledger lights up its nodes, the terms of the formula that count it, and its lines; a
        click keeps them lit, and the address of the page then names the path.

        Args:
            path: the file to write, `report.html` for instance.
            *inputs: the inputs of the graph, for a ledger with shares; this and what follows is as in `explain`.
            sizes: sizes of plates by name.
            repeats: how many draws.
            generator: source of randomness.
            max_outcomes: the most joint outcomes that are listed.

        Returns:
            The path of the file.

        Raises:
            ImportError: the extra `plot` is not installed.

        Example:
            >>> import tempfile, torch, stochgraph as sg
            >>> from torch.distributions import Normal
            >>> @sg.graph
            ... def objective(theta):
            ...     return sg.mean(sg.sample("x", Normal, theta, 1.0, n=100)) ** 2
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     page = objective.compile(sg.LSF()).report(f"{folder}/report.html").read_text()
            >>> page.count("<svg"), page.count("<math"), page.count("<tr id=")
            (1, 1, 1)
        """
        explanation = self.explain(
            *inputs, sizes=sizes, repeats=repeats, generator=generator, max_outcomes=max_outcomes
        )
        written = Path(path)
        written.write_text(report(self, explanation, self.estimators), encoding="utf-8")
        return written

    def show(self, stage: str) -> str:
        """The decisions of a pass of the compiler, in lines.

        Args:
            stage: "reach": the samples that reach each node, with the axes along which they do so draw by draw;
                "placement": the way of every box to the node where it stands, and the places of control variates;
                "build": what was built of each node with open boxes; "program": the nodes of the surrogate in the
                order in which they are evaluated.

        Raises:
            ValueError: another word.

        Example:
            >>> import stochgraph as sg
            >>> from torch.distributions import Normal
            >>> @sg.graph
            ... def objective(theta):
            ...     x = sg.sample("x", Normal, theta, 1.0, n=100)
            ...     return sg.mean(x**2) - theta**2
            >>> print(objective.compile(sg.SF()).show("placement"))
            objective sub
              box(x)  at sub        moves → mean(pow); dropped at pow_2: x does not reach it
              box(x)  at mean(pow)  moves through → pow, stays there: `pow` is not linear; kept along (x)
        """
        return printed(self._derivation, self.graph.objective, self._program, stage)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}: {estimator}" for name, estimator in self.estimators.items())
        return f"<Compiled {self.graph.name} wrt {', '.join(self.wrt)}; {chosen}>"
