"""The error that ends a run."""


class TrainingError(RuntimeError):
    """A run could not go on. The message says where it was, what happened, and what is left."""
