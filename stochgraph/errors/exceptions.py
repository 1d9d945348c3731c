"""Every error that stochgraph raises on purpose. Each message names the node, its axes and the remedy."""


class StochgraphError(ValueError):
    """Base class of the errors below."""


class DeclarationError(StochgraphError):
    """The declaration does not describe a stochastic computation graph."""


class CompileError(StochgraphError):
    """The chosen estimators do not fit the graph."""


class InputError(StochgraphError, TypeError):
    """The inputs are not those that the graph takes."""


class SamplingError(StochgraphError):
    """A draw, its log-probability or a value went wrong while the graph was running."""


class FunctionError(SamplingError, RuntimeError):
    """A function that the graph was given went wrong on a draw, or cannot be mapped over draws by `torch.vmap`.

    Raised from the original error, whose traceback begins in the function.
    """


class SolverError(StochgraphError):
    """An implicit update was not solved, or cannot be differentiated where it was."""


class VerificationError(StochgraphError):
    """The graph cannot be enumerated exactly."""


class LoweringError(StochgraphError):
    """There is no flat program of the graph; the message says what stands in the way."""
