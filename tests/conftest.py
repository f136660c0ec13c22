"""Shared set-up: tiny tensors are fastest on one thread, and tests must not contend for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
