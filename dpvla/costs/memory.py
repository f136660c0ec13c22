"""Bytes that a computation holds at most, found by doing it on tensors without numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dpvla.models import DrivingPolicy
from dpvla.tensors import materialize


def without_numbers() -> FakeTensorMode:
    """Inside, tensors have shapes and no memory.

    They are the CPU's: its attention keeps for the backward pass what a GPU's does.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_policy(policy: DrivingPolicy) -> None:
    """Put an empty policy (``empty_parameters``) on tensors without numbers; call it inside ``without_numbers``."""
    materialize(policy, "cpu")
    policy.assume_fitted()


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive; what exists before is told to it by ``hold``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def peak_of(self, work: Callable[[], object]) -> int:
        """The most that was alive during ``work``."""
        self.peak = self.now
        work()
        return self.peak

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return made


def update_peak(policy: DrivingPolicy, loss: Callable[[], Tensor]) -> int:
    """Bytes at the peak of forward and backward beside AdamW's moments; inside ``without_numbers``."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]

    def update() -> None:
        with policy.autocast():
            value = loss()
        value.backward()

    live = LiveBytes()
    with live:
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
        for tensor in (*policy.parameters(), *policy.buffers(), *moments):
            live.hold(tensor)
        return live.peak_of(update)


def forward_peak(policy: DrivingPolicy, work: Callable[[], object]) -> int:
    """Bytes at the peak of work without gradients, the policy's own among them; inside ``without_numbers``."""
    live = LiveBytes()
    with live, torch.no_grad():
        for tensor in (*policy.parameters(), *policy.buffers()):
            live.hold(tensor)
        return live.peak_of(work)
