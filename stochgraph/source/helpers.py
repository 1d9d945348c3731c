"""Functions that a written module brings along, each only where something needs it."""

HELPERS = {
    "scaled": '''
def scaled(values, factor):
    """Every tensor of a tree, times a factor of its leading dimensions."""

    def scale(leaf):
        return leaf * factor.reshape(factor.shape + (1,) * (leaf.dim() - factor.dim()))

    return tree_map(scale, values)
''',
    "discounted": '''
def discounted(values, rate, dim):
    """Entry t of a dimension times the rate to the power of t."""
    values = values if values.is_floating_point() else values.double()
    steps = torch.arange(values.shape[dim], dtype=values.dtype)
    return values * (rate**steps).reshape([-1] + [1] * (values.dim() - dim - 1))
''',
    "sum_without": '''
def sum_without(values, i, dim):
    """The sum over a dimension, entry i left out."""
    return values.sum(dim) - values.index_select(dim, i.reshape(1)).squeeze(dim)
''',
    "mean_without": '''
def mean_without(values, i, dim):
    """The mean over a dimension, entry i left out."""
    return sum_without(values, i, dim) / (values.shape[dim] - 1)
''',
    "mean_of_others": '''
def mean_of_others(values, dims):
    """For each entry the mean of all other entries along some dimensions."""
    values = values if values.is_floating_point() else values.double()
    total = values.sum(dims, keepdim=True)
    return (total - values) / max(values.numel() // total.numel() - 1, 1)
''',
    "zero_at": '''
def zero_at(values, i, dim):
    """The values with zeros at entry i of a dimension."""
    there = torch.arange(values.shape[dim]) == i
    return torch.where(there.reshape([-1] + [1] * (values.dim() - dim - 1)), 0.0, values)
''',
    "increments": '''
def increments(values, dim):
    """What each entry of a dimension adds to the one before it."""
    return torch.diff(values, dim=dim, prepend=torch.zeros_like(values.narrow(dim, 0, 1)))
''',
    "number": '''
def number(values):
    """Truth values and small integers as whole numbers: torch adds truth values by `or`."""
    small = (torch.bool, torch.uint8, torch.int8, torch.int16)
    return values.long() if values.dtype in small else values
''',
    "log_prob_of": '''
def log_prob_of(distribution):
    """The log-probability of one draw given its parents; a function builds its distribution."""

    def log_prob(draw, *parents):
        before = Distribution._validate_args
        # Checks look at values, which torch.vmap forbids.
        Distribution.set_default_validate_args(False)
        try:
            return distribution(*parents).log_prob(draw).sum()
        finally:
            Distribution.set_default_validate_args(before)

    return log_prob
''',
    "replayed": '''
class Replay(TorchFunctionMode):
    """Recorded noise in the place of fresh noise."""

    in_place = "normal_ uniform_ exponential_ cauchy_ log_normal_ geometric_"
    fresh = {torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint}
    fresh |= {getattr(torch.Tensor, name) for name in in_place.split()}

    def __init__(self, noise):
        super().__init__()
        self.noise = list(noise)

    def __torch_function__(self, fn, types, args=(), kwargs=None):
        return self.noise.pop(0) if fn in self.fresh else fn(*args, **(kwargs or {}))


def replayed(distribution):
    """One draw, of recorded noise and of its parents; a function builds its distribution."""

    def draw(noise, *parents):
        before = Distribution._validate_args
        # Checks look at values, which torch.vmap forbids.
        Distribution.set_default_validate_args(False)
        try:
            with Replay(noise) as replay:
                value = distribution(*parents).rsample()
        finally:
            Distribution.set_default_validate_args(before)
        if replay.noise:
            raise ValueError("the draw is no function of its noise alone, as gamma draws are none")
        return value

    return draw
''',
    "per_draw": '''
def per_draw(log_prob, axes):
    """One number for each entry of the leading dimensions: what is behind them is one draw's."""
    return log_prob.flatten(axes).sum(-1) if log_prob.dim() > axes else log_prob
''',
    "moved": '''
def moved(params, gradient, rate):
    """The parameters after a step, with one rate for all of them or one for each."""
    rates = tree_map(lambda _: rate, params) if isinstance(rate, torch.Tensor) else rate
    return tree_map(lambda p, g, r: p + r * g, params, gradient, rates)
''',
}
_NEEDS = {"mean_without": ["sum_without"]}


def with_needed(names: set[str]) -> list[str]:
    """The helpers, and those that they call, in the order in which they stand."""
    found = names | {needed for name in names for needed in _NEEDS.get(name, [])}
    return [name for name in HELPERS if name in found]
