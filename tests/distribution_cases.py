"""Distributions of torch with their parameters, for the tests: each a function of four parameters of one draw."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import distributions as td
from torch.distributions import transforms as tt

from tests.problems import F64

THETA = torch.tensor([0.4, -0.3, 0.7, 0.2], dtype=F64)


class Case:
    """A distribution and its arguments: constants, and functions of four parameters of one draw."""

    def __init__(self, dist: Any, *args: Any, **kwargs: Any) -> None:
        self.dist = dist
        self.args = args
        self.kwargs = kwargs
        self.varying = sum(map(callable, (*args, *kwargs.values())))

    def arguments(self, fill: Callable[[Any, int], Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with every function `fn`, the i-th of them, replaced by `fill(fn, i)`."""
        count = itertools.count()
        args = [fill(a, next(count)) if callable(a) else a for a in self.args]
        return args, {k: fill(a, next(count)) if callable(a) else a for k, a in self.kwargs.items()}


def real(i):
    return lambda t: t[i]


def positive(i):
    return lambda t: t[i].exp()


def unit(i):
    return lambda t: t[i].sigmoid()


def weights(t):
    return t[:3].softmax(0)


def logits(t):
    return t[:3]


def pair(t):
    return t[:2]


def spread(t):
    return t[2:].exp()


def tril(t):
    return torch.diag(t[2:].exp()) + t[0] * torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=t.dtype)


def column(t):
    return t[2:].unsqueeze(1)


def covariance(t):
    return tril(t) @ tril(t).mT


def three(t):
    """A batch of its own within one draw."""
    return torch.stack([t[0], t[1] - t[2], t[3]])


def three_logits(t):
    return three(t).unsqueeze(1) * torch.tensor([1.0, -0.5], dtype=t.dtype)


def three_tril(t):
    return tril(t) * torch.tensor([1.0, 0.5, 2.0], dtype=t.dtype)[:, None, None]


def mixture(w, m):
    return td.MixtureSameFamily(td.Categorical(logits=w), td.Normal(m, 1.0))


def mixture_of_vectors(w, m):
    return td.MixtureSameFamily(td.Categorical(w), td.Independent(td.Normal(torch.stack([m, 2 * m, -m]), 0.5), 1))


def transformed(base, *maps):
    return td.TransformedDistribution(base, list(maps))


def affine(m, s):
    return transformed(td.Normal(m, 1.0), tt.AffineTransform(m, s))


def affine_of_a_vector(m, s):
    return transformed(td.Independent(td.Normal(m, s), 1), tt.AffineTransform(m, s, event_dim=1))


def affine_of_a_vector_by_scalars(m, s):
    return transformed(td.Independent(td.Normal(torch.stack([m, -m]), 1.0), 1), tt.AffineTransform(m, s))


def affine_of_three_vectors(m, s):
    base = td.Independent(td.Normal(m.expand(3, 2), 1.0), 1)
    return transformed(base, tt.AffineTransform(m, s, event_dim=1))


def affine_and_exp(m):
    return transformed(td.Normal(m, 1.0), tt.AffineTransform(0.5, 2.0), tt.ExpTransform())


def composed(m, s):
    return transformed(td.Normal(0 * m, 1.0), tt.ComposeTransform([tt.AffineTransform(m, s), tt.SigmoidTransform()]))


def used_before(m, s):
    """Torch's transforms remember their inverse once it was asked for."""
    affine_map = tt.AffineTransform(m, s)
    assert affine_map.inv is affine_map.inv
    return transformed(td.Normal(m, 1.0), affine_map)


def inverted(m, s):
    return transformed(td.LogNormal(m, s), tt.ExpTransform().inv, tt.AffineTransform(m, s).inv)


TEMPERATURE = torch.tensor(0.7, dtype=F64)
THREE = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
CASES = {
    "Bernoulli": Case(td.Bernoulli, unit(0)),
    "Bernoulli(logits)": Case(td.Bernoulli, logits=real(0)),
    "Beta": Case(td.Beta, positive(0), positive(1)),
    "Binomial": Case(td.Binomial, 5, unit(0)),
    "Binomial(logits)": Case(td.Binomial, total_count=5, logits=real(0)),
    "Categorical": Case(td.Categorical, weights),
    "Categorical(logits)": Case(td.Categorical, logits=logits),
    "Cauchy": Case(td.Cauchy, real(0), positive(1)),
    "Chi2": Case(td.Chi2, positive(0)),
    "ContinuousBernoulli": Case(td.ContinuousBernoulli, unit(0)),
    "Dirichlet": Case(td.Dirichlet, lambda t: t[:3].exp()),
    "Exponential": Case(td.Exponential, positive(0)),
    "FisherSnedecor": Case(td.FisherSnedecor, positive(0), positive(1)),
    "Gamma": Case(td.Gamma, positive(0), positive(1)),
    "Geometric": Case(td.Geometric, unit(0)),
    "Geometric(logits)": Case(td.Geometric, logits=real(0)),
    "Gumbel": Case(td.Gumbel, real(0), positive(1)),
    "HalfCauchy": Case(td.HalfCauchy, positive(0)),
    "HalfNormal": Case(td.HalfNormal, positive(0)),
    "InverseGamma": Case(td.InverseGamma, positive(0), positive(1)),
    "Kumaraswamy": Case(td.Kumaraswamy, positive(0), positive(1)),
    "LKJCholesky": Case(td.LKJCholesky, 3, positive(0)),
    "Laplace": Case(td.Laplace, real(0), positive(1)),
    "LogNormal": Case(td.LogNormal, real(0), positive(1)),
    "LogisticNormal": Case(td.LogisticNormal, pair, spread),
    "LowRankMultivariateNormal": Case(td.LowRankMultivariateNormal, pair, column, spread),
    "Multinomial": Case(td.Multinomial, 4, weights),
    "Multinomial(logits)": Case(td.Multinomial, total_count=4, logits=logits),
    "MultivariateNormal": Case(td.MultivariateNormal, pair, covariance),
    "MultivariateNormal(precision)": Case(td.MultivariateNormal, pair, precision_matrix=covariance),
    "MultivariateNormal(scale_tril)": Case(td.MultivariateNormal, pair, scale_tril=tril),
    "NegativeBinomial": Case(td.NegativeBinomial, 3, unit(0)),
    "NegativeBinomial(logits)": Case(td.NegativeBinomial, positive(0), logits=real(1)),
    "Normal": Case(td.Normal, real(0), positive(1)),
    "Normal(scale, loc)": Case(td.Normal, scale=positive(1), loc=real(0)),
    "OneHotCategorical": Case(td.OneHotCategorical, weights),
    "OneHotCategorical(logits)": Case(td.OneHotCategorical, logits=logits),
    "Poisson": Case(td.Poisson, positive(0)),
    "RelaxedBernoulli": Case(td.RelaxedBernoulli, TEMPERATURE, unit(0)),
    "RelaxedBernoulli(t, logits)": Case(td.RelaxedBernoulli, positive(1), logits=real(0)),
    "RelaxedOneHotCategorical": Case(td.RelaxedOneHotCategorical, TEMPERATURE, weights),
    "StudentT": Case(td.StudentT, positive(0), real(1), positive(2)),
    "VonMises": Case(td.VonMises, real(0), positive(1)),
    "Weibull": Case(td.Weibull, positive(0), positive(1)),
    "Independent": Case(lambda m, s: td.Independent(td.Normal(m, s), 1), pair, spread),
    "mixture": Case(mixture, logits, three),
    "mixture of vectors": Case(mixture_of_vectors, weights, pair),
    "affine map": Case(affine, real(0), positive(1)),
    "affine map, used before": Case(used_before, real(0), positive(1)),
    "affine map by numbers": Case(affine_and_exp, real(0)),
    "affine map of a vector": Case(affine_of_a_vector, pair, spread),
    "affine map of a vector by scalars": Case(affine_of_a_vector_by_scalars, real(0), positive(1)),
    "composed map": Case(composed, real(0), positive(1)),
    "inverted map": Case(inverted, real(0), positive(1)),
}
BATCHES = {
    "Bernoulli": Case(td.Bernoulli, logits=three),
    "Beta": Case(td.Beta, lambda t: three(t).exp(), positive(1)),
    "Binomial, counts": Case(td.Binomial, torch.tensor([2.0, 3.0, 4.0], dtype=F64), unit(0)),
    "Categorical": Case(td.Categorical, logits=three_logits),
    "Dirichlet": Case(td.Dirichlet, lambda t: three_logits(t).exp()),
    "Independent, one of two": Case(lambda m: td.Independent(td.Bernoulli(logits=m.expand(2, 3)), 1), logits),
    "LowRankMultivariateNormal": Case(td.LowRankMultivariateNormal, three_logits, column, spread),
    "Multinomial": Case(td.Multinomial, 4, logits=three_logits),
    "MultivariateNormal, loc": Case(td.MultivariateNormal, three_logits, scale_tril=tril),
    "MultivariateNormal, scale": Case(td.MultivariateNormal, pair, scale_tril=three_tril),
    "MultivariateNormal, constant": Case(td.MultivariateNormal, pair, scale_tril=THREE[:, None, None] * torch.eye(2)),
    "Normal, both": Case(td.Normal, three, lambda t: three(t).exp()),
    "Normal, crossed": Case(td.Normal, lambda t: three(t).unsqueeze(1), spread),
    "Normal, loc": Case(td.Normal, three, positive(1)),
    "Normal, scale": Case(td.Normal, real(0), lambda t: three(t).exp()),
    "Normal, constant loc": Case(td.Normal, loc=THREE, scale=positive(1)),
    "Normal, constant scale": Case(td.Normal, real(0), THREE),
    "OneHotCategorical": Case(td.OneHotCategorical, logits=three_logits),
    "Poisson": Case(td.Poisson, lambda t: three(t).exp()),
    "RelaxedBernoulli": Case(td.RelaxedBernoulli, TEMPERATURE, logits=three),
    "StudentT": Case(td.StudentT, positive(0), three, 1.5),
    "VonMises": Case(td.VonMises, three, positive(1)),
    "affine map": Case(affine, three, positive(1)),
    "affine map, scale": Case(affine, real(0), lambda t: three(t).exp()),
    "affine map of three vectors": Case(affine_of_three_vectors, pair, spread),
    "mixture": Case(mixture, lambda t: three_logits(t), lambda t: three_logits(t) + 1),
}
