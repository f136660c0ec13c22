"""The batched affine layer of all state-based networks, by the CPU library that is quicker on this machine.

PyTorch multiplies float32 matrices on the CPU with MKL, which leaves AVX-512 unused on other makers' CPUs. oneDNN, in
PyTorch as well, uses it there (measured updates: benchmarks/RESULTS.md).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_ONEDNN = 128 * 128  # weights of a layer; for smaller ones one batched MKL call beats a oneDNN call per member


def batched_affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight + bias`` for each member.

    Args:
        bias: (member, 1, out).
        x: (member, row, in).
        weight: (member, in, out).

    Returns:
        (member, row, out); the libraries differ by float rounding only.
    """
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    large = weight.shape[1] * weight.shape[2] >= SMALLEST_ONEDNN
    # torch.compile cannot trace the operator; compiled losses keep MKL.
    if on_cpu and large and not torch.compiler.is_compiling() and onednn_is_quicker():
        result: Tensor = _OneDNNAffine.apply(bias, x, weight)
        return result
    return torch.baddbmm(bias, x, weight)


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether this is a CPU with AVX-512 that MKL does not use, and PyTorch has oneDNN."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        description = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False  # not Linux: whose CPU it is cannot be told
    return "GenuineIntel" not in description


class _OneDNNAffine(torch.autograd.Function):
    """``baddbmm`` with one oneDNN call for each member."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.stack([_times_transposed(*member) for member in zip(x, weight.mT, bias[:, 0], strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_bias, for_x, for_weight = ctx.needs_input_grad
        return (
            gradient.sum(1, keepdim=True) if for_bias else None,
            torch.stack([_times_transposed(g, w) for g, w in zip(gradient, weight, strict=True)]) if for_x else None,
            torch.stack([_times_transposed(a, g) for a, g in zip(x.mT, gradient.mT, strict=True)])
            if for_weight
            else None,
        )


def _times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias`` of matrices by oneDNN; the one operator that takes plain tensors to it."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product
