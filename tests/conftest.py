"""Shared set-up: tiny tensors are fastest on one thread, and tests must not contend for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from dpvla.parallel import available_cores

torch.set_num_threads(1)
MOST_WORKERS = 4  # each loads torch, and holds its own worlds


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for ``-n auto``: also a container's limit counts."""
    return min(MOST_WORKERS, available_cores())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))
