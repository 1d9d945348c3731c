"""The device of a run's tensors: of the parameters, and with them of tasks, trajectories and gradients.

Ranks on one machine share out its GPUs: "cuda" is a different one for each, as far as there are enough.

Simulators step on the processor whatever the device is, and what they return is moved. All randomness begins with a
generator on the processor, which seeds the device's own: some draws are made here, some there.
"""

import os

import torch

from stochgraph.errors.checks import shown

from .configuration import ConfigurationError


def device_named(name: str) -> torch.device:
    """The device that a configuration names: "cpu", or "cuda" or "cuda:1" on a machine that has it.

    Raises:
        ConfigurationError: there is no such device, or not on this machine.

    Example:
        >>> from stochgraph.algorithms.training.devices import device_named
        >>> device_named("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device={shown(name)} is not known: choose 'cpu', 'cuda' or 'cuda:0', ...") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device={shown(name)} is not supported: choose 'cpu', 'cuda' or 'cuda:0', ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        there = f"{count} of them, from 'cuda:0'" if count else "none: choose 'cpu'"
        raise ConfigurationError(f"device={shown(name)} is not there: torch finds {there}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return device
