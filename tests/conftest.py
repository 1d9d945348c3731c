"""One thread: the tests' tensors are small, and threads that wait for each other only slow them down."""

import torch

torch.set_num_threads(1)
