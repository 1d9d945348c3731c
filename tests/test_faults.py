"""A few series of faults; `python -m tests.faults --hours 1` plays them for longer."""

import random
from collections import Counter

import pytest

from tests.faults import Series, left_alone


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return left_alone(tmp_path_factory.mktemp("faults") / "alone")


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 12))])
def test_a_run_under_faults_ends_as_one_left_alone(tmp_path, alone, seed):
    """Kills at system calls, signals, errors of the disk, other people's files: nothing is lost, nothing is raw."""
    count: Counter[str] = Counter()
    Series(tmp_path / "run", alone, random.Random(seed), count).play()
    assert count["starts"] == 7
