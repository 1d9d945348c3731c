"""What stochgraph refuses: the message names the node, its axes and the remedy, and nothing is left behind."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, MultivariateNormal, Normal, Uniform

import stochgraph as sg
from stochgraph.language.symbols import _current
from tests import problems

THETA = torch.tensor(0.3)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No declaration stays open after an error, torch's checks stay on, and a new graph can be declared."""
    yield
    assert _current.get() is None
    assert torch.distributions.Distribution._validate_args

    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=2))

    objective.compile(sg.SF()).value_and_grad(THETA)


def declare(body):
    return sg.graph(lambda theta: body(theta))


def refused(body, message, error=sg.DeclarationError):
    with pytest.raises(error, match=message):
        declare(body)


# While declaring


def test_objective_with_a_plate():
    refused(lambda t: sg.sample("x", Normal, t, 1.0, n=3), r"objective 'x' .* still has the axes \(x\).*sg.mean")


def test_objective_with_a_time_axis():
    refused(
        lambda t: sg.mean(sg.sample("D", problems.TwoStateMDP(2), t, n=3).reward),
        r"still has the axes \(D\.time\).*sg\.sum\(\.\.\., over='D\.time'\)",
    )


def test_mean_over_a_plate_that_the_node_does_not_have():
    def body(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=3)
        return sg.mean(x, over="y")

    refused(body, r"sg.mean of 'x' over 'y': the node does not have this axis \(axes: \(x\)\)")


def test_mean_of_a_node_without_plates():
    refused(lambda t: sg.mean(t), r"sg.mean of 'theta': it has no plate \(axes: none\)")


def test_sum_of_a_node_without_time():
    refused(lambda t: sg.sum(t), r"sg.sum of 'theta': it has no time axis")


def test_discount_over_a_plate():
    def body(theta):
        return sg.sum(sg.sample("x", Normal, theta, 1.0, n=3), over="x", discount=0.9)

    refused(body, "a discount needs exactly one time axis")


def test_discount_that_is_a_node():
    def body(theta):
        reward = sg.sample("D", problems.TwoStateMDP(2), theta["logits"], n=3).reward
        return sg.mean(sg.sum(reward, discount=theta["gamma"]))

    refused(
        body, r"the discount \"theta\['gamma'\]\" is a node.*number or a tensor, or .*sg\.reduce\(.*over='D\.time'\)"
    )


@pytest.mark.parametrize("discount", ["0.9", float("nan"), torch.ones(2)])
def test_discount_that_is_no_number(discount):
    def body(theta):
        return sg.mean(sg.sum(sg.sample("D", problems.TwoStateMDP(2), theta, n=3).reward, discount=discount))

    refused(body, r"sg\.sum of 'D\.reward': discount=.* is not a number: give one, such as 0\.99")


@pytest.mark.parametrize("discount", [torch.tensor(0.9, dtype=problems.F64), torch.nn.Parameter(torch.tensor(0.9))])
def test_discount_that_is_a_tensor_and_the_fold_that_is_proposed(discount):
    """A captured tensor is a constant; a node goes through a fold. Both are the discounted sum."""

    def fold(pairs):
        reward, gamma = pairs
        return (reward * gamma ** torch.arange(len(reward))).sum(0)

    @sg.graph
    def captured(theta):
        reward = sg.sample("D", problems.TwoStateMDP(3), theta["logits"], n=1).reward
        return sg.mean(sg.sum(reward, discount=discount)) * theta["gamma"].sign()

    @sg.graph
    def folded(theta):
        reward = sg.sample("D", problems.TwoStateMDP(3), theta["logits"], n=1).reward
        pairs = sg.apply(lambda r, g: (r, g), reward, theta["gamma"])
        return sg.mean(sg.reduce(fold, pairs, over="D.time"))

    theta = {"logits": torch.zeros(2, 2, dtype=problems.F64), "gamma": discount.detach().double()}
    one, other = captured.compile(sg.SF()), folded.compile(sg.SF())
    assert "0.9^" in one.explain().latex
    assert sg.verify(other, theta).relative_bias < 1e-12
    trace = other.sample(theta, generator=torch.Generator().manual_seed(0))
    assert float(one.surrogate(theta, trace)) == pytest.approx(float(other.surrogate(theta, trace)))


def test_a_node_that_a_function_captures_in_a_list():
    @sg.graph
    def objective(theta):
        hidden = [theta]
        return sg.mean(sg.apply(lambda x: x * hidden[0], sg.sample("x", Normal, theta, 1.0, n=3)))

    with pytest.raises(
        sg.DeclarationError, match=r"sg\.\w+ was called outside .*captures a node, perhaps in a list: pass"
    ):
        objective.compile(sg.SF()).value_and_grad(THETA)


def test_no_estimators():
    @sg.graph
    def objective(theta):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=3))

    for given in ((), (None,)):
        with pytest.raises(
            sg.CompileError, match=r"objective: give an estimator, for instance sg\.LOO\(\), or one for"
        ):
            objective.compile(*given)


def test_two_samples_of_one_name():
    def body(theta):
        sg.sample("x", Normal, theta, 1.0)
        return sg.sample("x", Normal, theta, 2.0)

    refused(body, "two nodes of the name 'x'")


@pytest.mark.parametrize(
    "build",
    [
        lambda t: Normal(t, 1.0),
        lambda t: Bernoulli(logits=t),
        lambda t: Categorical(logits=t),
        lambda t: MultivariateNormal(t, torch.eye(2)),
        lambda t: Uniform(0.0, t),
        lambda t: torch.distributions.Independent(Normal(t, 1.0), 1),
    ],
)
def test_distribution_built_inside(build):
    refused(lambda t: sg.sample("x", build(t)), r"was built inside the declaration.*instead of sg.sample\(name, ")


def test_constant_distribution_built_inside():
    refused(lambda t: sg.sample("x", Normal(0.0, 1.0)) * t, r"sample 'x': the distribution Normal was built inside")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (lambda t: t if t > 0 else -t, r"Python branch .* on it .*torch.where"),
        (lambda t: sum(t), "iterating over it"),
        (lambda t: t[0] + len(t), "len"),
        (lambda t: t * float(t), "float"),
        (lambda t: t * [1.0, 2.0][t], "float|index"),
        (lambda t: t and t, "Python branch"),
    ],
)
def test_values_that_do_not_exist_yet(body, what):
    refused(body, rf"node '\w+' \(axes: none\) has no value while the graph is declared: .*{what}")


def test_a_field_is_not_a_function():
    refused(lambda t: t(1.0), "'theta' is a symbolic node, not a function: use sg.apply")


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True])
def test_impossible_plates(n):
    refused(lambda t: sg.mean(sg.sample("x", Normal, t, 1.0, n=n)), r"sample 'x': a plate needs n >= 1 draws")


def test_a_sampler_class_in_place_of_a_sampler():
    refused(lambda t: sg.sample("D", problems.TwoStateMDP, t), "'D': TwoStateMDP is a Sampler class; pass an instance")


def test_parents_that_do_not_fit():
    refused(lambda t: sg.sample("x", Bernoulli, logitz=t), "sample 'x': its parents do not fit Bernoulli: .*logitz")
    refused(lambda t: sg.sample("x", lambda a, b: Normal(a, b), t), "sample 'x': its parents do not fit <lambda>")
    refused(lambda t: sg.sample("D", problems.TwoStateMDP(2), other=t), "sample 'D': its parents do not fit TwoState")


def test_what_is_no_distribution():
    refused(lambda t: sg.sample("x", 3.0, t), "neither a distribution class, a function nor a Sampler")


def test_update_of_a_parameter_that_the_objective_ignores():
    def body(theta):
        x = sg.sample("x", Normal, 0.0, 1.0, n=3)
        return sg.ascend(theta, sg.mean(x), 0.1)

    refused(body, r"sg.ascend of 'theta': the inner objective 'mean\(x\)' does not depend on 'theta'")


def test_update_with_a_time_axis_left():
    def body(theta):
        data = sg.sample("D", problems.TwoStateMDP(2), theta, n=3)
        return sg.ascend(theta, sg.mean(data.reward), 0.1)

    refused(body, r"inner objective .* still has the time axis 'D.time': sum over it first")


def test_objective_that_is_no_node():
    refused(lambda t: 3.0, "must return a node, the objective; it returned float")
    refused(lambda t: None, "it returned NoneType")


def test_words_outside_a_declaration():
    with pytest.raises(sg.DeclarationError, match=r"sg.sample was called outside a declaration"):
        sg.sample("x", Normal, 0.0, 1.0)


def test_values_where_nodes_are_wanted():
    refused(lambda t: sg.mean(3.0), "sg.mean takes a node of the graph, got float")
    refused(lambda t: sg.ascend(torch.ones(2), t, 0.1), "sg.ascend takes a node of the graph, got Tensor")


def test_nodes_of_two_declarations():
    kept = []

    @sg.graph
    def first(theta):
        kept.append(theta)
        return theta * 1.0

    refused(lambda t: t + kept[0], "belong to different declarations")


def test_inputs_that_are_no_plain_parameters():
    with pytest.raises(
        sg.DeclarationError, match="'parameters' is not one: no defaults, no \\*; pass a pytree instead"
    ):
        sg.graph(lambda *parameters: parameters[0])
    with pytest.raises(sg.DeclarationError, match="'k' is not one: no defaults"):
        sg.graph(lambda theta, k=3.0: theta * k)
    with pytest.raises(sg.DeclarationError, match="at least one"):
        sg.graph(lambda: 0)


# While compiling


def gaussian(theta):
    return sg.mean(sg.sample("x", Normal, theta, 1.0, n=3)) ** 2


def test_estimator_for_a_node_that_does_not_exist():
    with pytest.raises(sg.CompileError, match=r"given for 'y', but .* has no such sample node; it has 'x'"):
        declare(gaussian).compile({"y": sg.SF()})


def test_node_without_an_estimator():
    with pytest.raises(sg.CompileError, match=r"sample 'x' \(axes: \(x\)\) has no estimator"):
        declare(gaussian).compile({})


def test_what_is_no_estimator():
    with pytest.raises(sg.CompileError, match=r"sample 'x': 'SF' is not an estimator; use sg.SF\(\)"):
        declare(gaussian).compile("SF")


def test_what_is_no_estimator_of_a_graph_without_samples():
    graph = sg.graph(lambda theta: sg.descend(theta, theta**2, 0.1))
    with pytest.raises(sg.CompileError, match=r"<lambda>: <function FirstOrder .* is not an estimator; use sg.SF\(\)"):
        graph.compile(sg.FirstOrder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"), [(("box", "cost"), "curvature='box'"), (("log", "all"), "influence='all'")]
)
def test_unknown_words_of_an_estimator(words, message):
    with pytest.raises(ValueError, match=f"{message} is not known: choose one of 'log'|'cost'"):
        sg.Estimator(*words)


def test_unknown_input():
    with pytest.raises(sg.CompileError, match=r"wrt='phi': .* has no such input; choose from theta"):
        declare(gaussian).compile(sg.SF(), wrt="phi")


def test_an_input_named_twice():
    with pytest.raises(sg.CompileError, match="names an input twice"):
        declare(gaussian).compile(sg.SF(), wrt=("theta", "theta"))


@pytest.mark.parametrize("dist", [Uniform, torch.distributions.Pareto])
def test_support_that_moves(dist):
    graph = declare(lambda t: sg.mean(sg.sample("x", dist, t, 1.0, n=3)))
    with pytest.raises(
        sg.CompileError, match=rf"sample 'x' \(axes: \(x\)\): the support of {dist.__name__} moves.*use PW"
    ):
        graph.compile(sg.SF())


def test_support_that_moves_behind_a_function():
    graph = declare(lambda t: sg.mean(sg.sample("x", lambda high: Uniform(0.0, high), t, n=3)))
    with pytest.raises(sg.SamplingError, match=r"sample 'x' \(axes: \(x\)\): the support of lambda moves"):
        graph.compile(sg.SF()).value_and_grad(torch.tensor(2.0))

    with pytest.raises(sg.SamplingError, match=r"sample 'x' \(axes: \(x\)\): the support of lambda moves"):
        graph.compile(sg.SF()).sample(torch.tensor(2.0))


def test_constant_bounds_behind_a_function_are_fine():
    graph = declare(lambda t: sg.mean(t * sg.sample("x", lambda _: Uniform(0.0, 2.0), t, n=3)))
    graph.compile(sg.SF()).value_and_grad(torch.tensor(2.0))


def test_pathwise_through_a_moving_support_is_fine():
    graph = declare(lambda t: sg.mean(sg.sample("x", Uniform, 0.0, t, n=3)))
    graph.compile(sg.PW()).value_and_grad(torch.tensor(2.0))


def test_pathwise_for_a_discrete_draw():
    graph = declare(lambda t: sg.mean(sg.sample("x", Bernoulli, logits=t, n=3)))
    with pytest.raises(sg.CompileError, match=r"PW on sample 'x' \(Bernoulli\): the draw has no differentiable path"):
        graph.compile(sg.PW())


def test_pathwise_for_a_discrete_draw_behind_a_function():
    graph = declare(lambda t: sg.mean(sg.sample("x", lambda p: Bernoulli(logits=p), t, n=3)))
    with pytest.raises(sg.SamplingError, match=r"PW on sample 'x' \(Bernoulli\): the draw has no differentiable path"):
        graph.compile(sg.PW()).sample(THETA)


@pytest.mark.parametrize("cut", [lambda x: x > 0, torch.floor, torch.sign, sg.stop])
def test_pathwise_without_a_way_to_the_objective(cut):
    graph = declare(lambda t: sg.mean(cut(sg.sample("x", Normal, t, 1.0, n=3)) * 1.0))
    with pytest.raises(sg.CompileError, match=r"PW on sample 'x' \(axes: \(x\)\): .* no differentiable path to the"):
        graph.compile(sg.PW())


def test_pathwise_for_a_sampler():
    graph = declare(lambda t: sg.mean(sg.sum(sg.sample("D", problems.TwoStateMDP(2), t, n=2).reward)))
    with pytest.raises(sg.CompileError, match="PW on sample 'D': TwoStateMDP is a Sampler"):
        graph.compile(sg.PW())


def test_linearising_where_there_is_no_mean():
    with pytest.raises(sg.CompileError, match=r"sample 'x' reaches .* which is not a mean: .* use SF for this node"):
        problems.extreme().compile(sg.LSF())


@pytest.mark.parametrize("baseline", ["loo", "mean"])
def test_baselines_where_no_draw_has_costs_of_its_own(baseline):
    with pytest.raises(sg.CompileError, match=r"sample 'x' .* no costs of their own .* a function of the trace as the"):
        problems.extreme().compile(sg.SF(baseline))


def test_parameters_that_the_objective_does_not_depend_on():
    @sg.graph
    def objective(theta, other):
        return sg.mean(sg.sample("x", Normal, theta, 1.0, n=3)) + 0.0 * sg.stop(other)

    with pytest.raises(sg.CompileError, match="does not depend on the input 'other'"):
        objective.compile(sg.SF(), wrt="other")


# While running


def test_parameters_outside_their_domain():
    graph = declare(lambda t: sg.mean(sg.sample("x", Normal, t, t, n=3)))
    with pytest.raises(sg.SamplingError, match=r"sample 'x' \(axes: \(x\)\) could not be drawn from Normal: .*scale"):
        graph.compile(sg.SF()).sample(torch.tensor(-1.0))


@pytest.mark.parametrize("estimator", [sg.SF(), sg.LSF(), sg.MAML()])
def test_log_probabilities_that_are_not_finite(estimator):
    class Broken(problems.TwoStateMDP):
        def log_prob(self, value, *parents):
            return super().log_prob(value, *parents).where(value.action == 0, torch.nan)

    graph = declare(lambda t: sg.mean(sg.sum(sg.sample("D", Broken(2), t, n=50).reward)))
    message = r"sample 'D' \(axes: \(D, D.time\)\): the log-probability of draw \(\d+, \d\) is nan; the draw is Path"
    with pytest.raises(sg.SamplingError, match=message):
        graph.compile(estimator).sample(problems.MDP_THETA)
    with pytest.raises(sg.SamplingError, match=message):
        graph.compile(estimator).value_and_grad(problems.MDP_THETA)


def test_log_probabilities_that_are_not_finite_inside_an_update():
    class Broken(problems.TwoStateMDP):
        def log_prob(self, value, *parents):
            return super().log_prob(value, *parents) * torch.nan

    def body(theta):
        data = sg.sample("D", Broken(2), theta, n=3)
        return sg.apply(problems.mdp_value, sg.ascend(theta, sg.mean(sg.sum(data.reward)), 0.1))

    with pytest.raises(sg.SamplingError, match=r"sample 'D' .* log-probability of draw"):
        declare(body).compile(sg.MAML()).value_and_grad(problems.MDP_THETA)


def test_a_draw_outside_the_support_of_a_replay():
    compiled = declare(lambda t: sg.mean(sg.sample("x", torch.distributions.Exponential, t, n=3))).compile(sg.SF())
    trace = compiled.sample(torch.tensor(1.0))
    trace.draws["x"][1] = torch.nan
    with pytest.raises(sg.SamplingError, match=r"'x' .*draw \(1,\) is nan; the draw is nan"):
        compiled.surrogate(torch.tensor(1.0), trace)


def test_graphs_in_place_of_compiled_ones():
    graph = declare(gaussian)
    with pytest.raises(TypeError, match="is a declared graph: compile it first"):
        graph(THETA)
    with pytest.raises(TypeError, match="verify takes a compiled graph"):
        sg.verify(graph, THETA)
    with pytest.raises(TypeError, match="profile takes compiled graphs by name"):
        sg.profile(graph.compile(sg.SF()), THETA)


def test_one_pass_inside_a_transform():
    """Autograd's own pass cannot be mapped; the two calls that the message names can."""
    compiled = declare(gaussian).compile(sg.SF())
    thetas = torch.stack([THETA, THETA + 1])
    with pytest.raises(sg.SamplingError, match=r"value_and_grad .* inside a torch.func transform.*compiled.sample"):
        torch.vmap(lambda theta: compiled.value_and_grad(theta)[1], randomness="different")(thetas)

    def estimate(theta):
        return torch.func.grad(compiled.surrogate)(theta, compiled.sample(theta))

    assert torch.vmap(estimate, randomness="different")(thetas).shape == (2,)


def test_something_that_is_no_trace():
    compiled = declare(gaussian).compile(sg.SF())
    with pytest.raises(sg.SamplingError, match="last argument must be a trace of this graph; it has no draw of 'x'"):
        compiled.surrogate(THETA, THETA)
    with pytest.raises(TypeError, match=r"takes 1 inputs \(theta\), got 2"):
        compiled.sample(THETA, THETA)


@pytest.mark.parametrize(
    ("sizes", "message"), [({"y": 3}, "'y' is not a plate of"), ({"x": 0}, "plate 'x' needs at least one draw")]
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(sg.SamplingError, match=message):
        declare(gaussian).compile(sg.SF()).sample(THETA, sizes=sizes)


def test_an_objective_that_is_no_scalar():
    compiled = declare(lambda t: t * sg.mean(sg.sample("x", Normal, 0.0, 1.0, n=3))).compile(sg.SF())
    with pytest.raises(sg.SamplingError, match=r"must be a real scalar, got shape \(2,\)"):
        compiled.sample(torch.ones(2))


BATCH = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("word", ["objective", "ascend", "descend", "argmax"])
def test_a_batch_that_no_plate_stands_for(word):
    """A mini-batch among the inputs leaves its rows in whatever is computed from it."""

    def body(theta, batch):
        loss = sg.apply(lambda t, rows: -((rows @ t) ** 2), theta, batch)
        if word == "objective":
            return loss
        if word == "argmax":
            psi = sg.unknown("psi", like=theta)
            return sg.argmax(sg.apply(lambda p, t, rows: -((rows @ (p - t)) ** 2), psi, theta, batch), over=psi).sum()
        return getattr(sg, word)(theta, loss, lr=0.1).sum()

    compiled, theta = sg.graph(body).compile({}), torch.ones(2)
    message = r"got .*\(3,\).*sg\.data\(\"row\", rows\).*sg\.mean\(\.\.\., over=\"row\"\)"
    for call in (compiled.sample, compiled.value_and_grad):
        with pytest.raises(sg.SamplingError, match=message):
            call(theta, BATCH)


@pytest.mark.parametrize("given", ["module", "list", "dict", "parameters"])
def test_a_module_in_place_of_its_parameters(given):
    module = torch.nn.Linear(2, 1)
    inputs: dict[str, Any] = {
        "module": module,
        "list": [module, torch.ones(2)],
        "dict": {"net": torch.nn.ParameterDict({"w": torch.ones(2)}), "a": torch.ones(2)},
        "parameters": module.parameters(),
    }
    compiled = sg.graph(lambda net, x: sg.apply(lambda net, x: x.sum(), net, x)).compile({})
    words = r"the input 'net' .*dict\(module\.named_parameters\(\)\).*torch\.func\.functional_call"
    with pytest.raises(sg.InputError, match=words):
        compiled.value_and_grad(inputs[given], torch.ones(2))
    if given != "parameters":  # values of any kind go in, but for those that would be differentiated
        for call in (compiled.sample, lambda *given: sg.verify(compiled, *given)):
            with pytest.raises(sg.InputError, match=words):
                call(inputs[given], torch.ones(2))


def test_the_parameters_of_a_module():
    module = torch.nn.Linear(2, 1)

    def loss(parameters, rows):
        return torch.func.functional_call(module, parameters, (rows,)).square().mean()

    compiled = sg.graph(lambda net, rows: sg.apply(loss, net, rows)).compile({})
    value, grads = compiled.value_and_grad(dict(module.named_parameters()), BATCH)
    module(BATCH).square().mean().backward()
    torch.testing.assert_close(value, module(BATCH).square().mean().detach())
    assert {name: grad.tolist() for name, grad in grads.items()} == {
        name: leaf.grad.tolist() for name, leaf in module.named_parameters() if leaf.grad is not None
    }


def test_a_sampler_that_draws_wrong_shapes():
    class Flat(problems.TwoStateMDP):
        def draw(self, batch_shape, *parents):
            return super().draw(torch.Size([2]), *parents)

    graph = declare(lambda t: sg.mean(sg.sum(sg.sample("D", Flat(2), t, n=3).reward)))
    with pytest.raises(sg.SamplingError, match=r"Flat.draw must return tensors with the leading shape \(3,\)"):
        graph.compile(sg.SF()).sample(problems.MDP_THETA)


def test_a_sampler_that_scores_wrong_shapes():
    class Summed(problems.TwoStateMDP):
        def log_prob(self, value, *parents):
            return super().log_prob(value, *parents).sum()

    graph = declare(lambda t: sg.mean(sg.sum(sg.sample("D", Summed(2), t, n=3).reward)))
    with pytest.raises(sg.SamplingError, match=r"Summed.log_prob of one draw must have one dimension, the time axis"):
        graph.compile(sg.SF()).sample(problems.MDP_THETA)


def test_step_sizes_of_another_structure():
    def body(theta):
        pulls = sg.sample("D", Bernoulli, logits=theta["a"], n=2)
        return sg.ascend(theta, sg.mean(pulls) * theta["b"], [0.1, 0.2, 0.3])["a"]

    theta = {"a": torch.tensor(0.1), "b": torch.tensor(0.2)}
    with pytest.raises(ValueError, match="lr is neither one step size nor a pytree like the parameters"):
        declare(body).compile(sg.SF()).sample(theta)


# Nodes and functions where they do not belong


def test_a_node_of_another_declaration():
    kept = []

    @sg.graph
    def first(theta):
        kept.append(sg.mean(sg.sample("x", Bernoulli, logits=theta, n=2)))
        return kept[0]

    bodies = [
        lambda theta: sg.mean(sg.sample("y", Bernoulli, logits=kept[0], n=2)),
        lambda theta: theta + kept[0],
        lambda theta: sg.ascend(theta, -((theta - kept[0]) ** 2), lr=0.1),
        lambda theta: sg.stop(kept[0]),
    ]
    for body in bodies:
        refused(body, "belong to different declarations, or to one that is over")
    refused(lambda theta: kept[0], r"must return a node that it declares; 'mean\(x\)' is another function's")


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("word", ["apply", "reduce", "field"])
def test_functions_that_write_into_their_arguments(word, n):
    def body(theta):
        x = sg.sample("x", Normal, theta, 1.0, n=n or 1)
        if word == "reduce":
            return sg.reduce(lambda whole: whole.mul_(2.0).sum(), x)
        if word == "field":
            return sg.mean(sg.apply(lambda pair: pair["x"].add_(1.0), {"x": x}))
        return sg.mean(sg.apply(lambda one: one.mul_(2.0), x))

    compiled = declare(body).compile(sg.SF())
    with pytest.raises(sg.SamplingError, match="changes one of its arguments in place"):
        compiled.sample(THETA)


def test_functions_that_write_into_copies():
    graph = declare(
        lambda theta: sg.mean(sg.apply(lambda one: one.clone().mul_(2.0), sg.sample("x", Normal, theta, 1.0, n=3)))
    )
    compiled = graph.compile(sg.SF())
    trace = compiled.sample(THETA)
    torch.testing.assert_close(trace.value, 2 * trace.draws["x"].mean())
    torch.func.grad(compiled.surrogate)(THETA, trace)


@pytest.mark.parametrize("rate", [torch.ones(2, 1), torch.ones(3), torch.ones(1, 2)])
def test_step_sizes_that_would_reshape_the_parameters(rate):
    graph = declare(lambda theta: sg.ascend(theta, -(theta**2).sum(), lr=rate).sum())
    with pytest.raises(
        ValueError, match=r"update \"theta'\" .* step sizes of the shape .* parameters of the shape \(2,\)"
    ):
        graph.compile({}).sample(torch.ones(2))


@pytest.mark.parametrize("word", ["ascend", "argmax"])
def test_an_inner_objective_that_is_a_vector(word):
    def body(theta):
        if word == "ascend":
            return sg.ascend(theta, -(theta**2), lr=0.1).sum()
        psi = sg.unknown("psi", like=theta)
        return sg.argmax(-((psi - theta) ** 2), over=psi).sum()

    with pytest.raises(ValueError, match=r"the inner objective 'neg' must be a number per draw, got .* \(2,\)"):
        declare(body).compile({}).sample(torch.ones(2))


def test_a_generator_that_is_none():
    compiled = declare(lambda theta: sg.mean(sg.sample("x", Normal, theta, 1.0, n=2))).compile(sg.SF())
    with pytest.raises(TypeError, match=r"generator=3: a torch.Generator is expected"):
        compiled.sample(THETA, generator=3)


def test_values_that_are_no_numbers_are_traced_to_their_node():
    def body(theta):
        data = sg.sample("d", Normal, theta, 1.0, n=3)
        cost = sg.apply(lambda x: torch.where(x > -10, torch.nan, x), data)
        adapted = sg.ascend(theta, sg.mean(cost * data), lr=0.1)
        return sg.mean(sg.sample("x", Normal, adapted, 1.0, n=2))

    with pytest.raises(sg.SamplingError, match=r"(?s)sample 'x' .* first value with a NaN is that of 'lambda'"):
        declare(body).compile(sg.SF()).sample(THETA)


def test_sizes_may_be_numpy_integers():
    two: Any = np.int64(2)
    compiled = declare(lambda theta: sg.mean(sg.sample("x", Normal, theta, 1.0, n=two))).compile(sg.SF())
    assert compiled.sample(THETA).draws["x"].shape == (2,)
    assert compiled.sample(THETA, sizes={"x": np.int32(5)}).draws["x"].shape == (5,)
    with pytest.raises(sg.SamplingError, match=r"plate 'x' needs at least one draw, an integer; got 2\.0"):
        compiled.sample(THETA, sizes={"x": 2.0})


def test_a_plate_by_position():
    refused(
        lambda theta: sg.mean(sg.sample("x", Normal, theta, 1.0, 2)),
        "sample 'x': .* validate_args=2 is neither true nor false; the size of a plate is n=2",
    )


def test_step_sizes_that_are_no_numbers():
    graph = declare(lambda theta: sg.ascend(theta, -(theta**2), lr={"a": 1.0}))
    with pytest.raises(ValueError, match=r"a step size is a number or a tensor of them, got \{'a': 1\.0"):
        graph.compile({}).sample(THETA)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (lambda theta: sg.mean(sg.sample("x", Normal, theta["k"], 1.0, n=3)), "node 'theta' .* has no 'k'"),
        (lambda theta: sg.mean(sg.sample("x", Normal, theta["a"], 1.0, n=3).reward), "node 'x' .* has no 'reward'"),
    ],
)
def test_fields_that_are_not_there(body, at):
    with pytest.raises((KeyError, AttributeError)) as caught:
        declare(body).compile(sg.SF()).sample({"a": THETA})
    assert re.search(at, caught.value.__notes__[0])


def test_a_trace_without_the_noise_that_is_replayed():
    graph = declare(lambda theta: sg.mean(sg.sample("d", Normal, theta, 1.0, n=3)) ** 2)
    with pytest.raises(sg.SamplingError, match="PW replays the noise of 'd', and the trace has none"):
        graph.compile(sg.PW()).surrogate(THETA, graph.compile(sg.SF()).sample(THETA))


def test_a_baseline_that_returns_nothing():
    graph = declare(lambda theta: sg.mean(sg.sample("x", Normal, theta, 1.0, n=3)))
    with pytest.raises(sg.SamplingError, match=r"sample 'x': a number or a tensor is .* returned NoneType"):
        graph.compile(sg.SF(baseline=lambda trace: None)).value_and_grad(THETA)


class Detached(sg.Sampler):
    def draw(self, batch_shape, mean):
        return mean + torch.randn(batch_shape)

    def log_prob(self, value, mean):
        return -((value - mean.detach()) ** 2) / 2


def test_a_log_probability_that_is_cut_off_from_its_parents():
    compiled = declare(lambda theta: sg.mean(sg.sample("x", Detached(), theta, n=3))).compile(sg.SF())
    with pytest.warns(UserWarning, match=r"Detached\.log_prob has no derivative with respect to its parents"):
        compiled.value_and_grad(THETA)
    constant = declare(lambda theta: sg.mean(theta * sg.sample("x", Detached(), sg.stop(theta), n=3))).compile(sg.SF())
    constant.value_and_grad(THETA)


def test_containers_belong_to_whom_they_are_handed():
    """A function that changes its dictionary changes nobody else's."""

    def doubled(weights):
        weights["w"] = weights["w"] * 2
        return weights["w"]

    graph = declare(lambda p: sg.apply(doubled, p) + p["w"] + 0 * sg.sample("x", Normal, p["w"], 1.0))
    value, grad = graph.compile(sg.SF()).value_and_grad({"w": torch.tensor(1.0)})
    assert (float(value), float(grad["w"])) == (3.0, 3.0)


def test_functions_that_write_into_constants():
    weight = torch.tensor(2.0)
    graph = declare(lambda theta: sg.apply(lambda t, c: c.mul_(1.1) * t, theta, weight))
    with pytest.raises(sg.SamplingError, match="changes one of its arguments in place"):
        graph.compile({}).sample(THETA)


def test_inner_objectives_that_are_no_tensors():
    graph = declare(lambda theta: sg.ascend(theta, sg.apply(lambda t: (t, t), theta), lr=0.1))
    with pytest.raises(ValueError, match="must be a number per draw, got tuple"):
        graph.compile({}).sample(THETA)


def test_inputs_that_are_not_differentiated_may_be_parameters():
    graph = sg.graph(lambda theta, other: sg.mean(theta * sg.sample("x", Detached(), other, n=3)))
    compiled = graph.compile(sg.SF(), wrt="theta")
    _, grad = compiled.value_and_grad(THETA, torch.nn.Parameter(torch.tensor(1.0)))
    assert torch.isfinite(grad)


def test_complex_values_have_complex_means():
    graph = declare(lambda theta: sg.mean(torch.exp(1j * sg.sample("x", Normal, theta, 1.0, n=3))).abs())
    compiled = graph.compile(sg.SF())
    trace = compiled.sample(THETA)
    torch.testing.assert_close(trace.value, torch.exp(1j * trace.draws["x"]).mean().abs())
