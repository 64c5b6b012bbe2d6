"""One thread: the tests are small, and their machine may be busy."""

import torch

torch.set_num_threads(1)
