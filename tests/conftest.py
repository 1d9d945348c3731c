"""One thread, as the tests' tensors are small and waiting threads slow them down; no terminal; one default dtype."""

import os
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # ledgers are as wide as the terminal, and processes of pytest-xdist are told of one


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Code of the pages may set torch's default dtype: the next test begins with its own."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
