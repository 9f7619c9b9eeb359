"""For all tests: the checkpoints here are so small that a second thread costs more than it gives."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the servers that are started
