"""The batched affine layer: oneDNN gives what MKL gives, and is taken only where it is the quicker one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpvla.state_based.networks import stacked_matmul
from dpvla.state_based.networks.stacked_matmul import batched_affine, onednn_is_quicker

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """oneDNN is taken on any CPU; the list gets an entry for each of its calls."""
    calls: list[int] = []
    multiply = stacked_matmul._times_transposed

    def counted(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(1)
        return multiply(a, b, bias)

    monkeypatch.setattr(stacked_matmul, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(stacked_matmul, "_times_transposed", counted)
    return calls


def tensors(members: int, rows: int, inputs: int, outputs: int, requires_grad: bool = True) -> list[Tensor]:
    """Bias, x, weight."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((members, 1, outputs), (members, rows, inputs), (members, inputs, outputs))
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes]


@onednn
@pytest.mark.parametrize("shape", [(2, 64, 128, 128), (1, 7, 33, 512), (3, 1, 256, 200)])
def test_onednn_agrees_with_float64(by_onednn: list[int], shape: tuple[int, int, int, int]) -> None:
    """Result and all three gradients, to float32 rounding of sums of up to 512 products."""
    given = tensors(*shape)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    result, expected = batched_affine(*given), torch.baddbmm(*exact)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(result, given, upstream)
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    assert len(by_onednn) == 3 * shape[0]
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-4)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-4)


@onednn
def test_only_the_wanted_gradients_are_computed(by_onednn: list[int]) -> None:
    """Frozen parameters: the gradient reaches x at one more product for each member."""
    bias, x, weight = tensors(2, 16, 128, 128)
    batched_affine(bias.detach(), x, weight.detach()).sum().backward()
    assert len(by_onednn) == 2 + 2
    assert x.grad is not None and bias.grad is None and weight.grad is None
    torch.testing.assert_close(x.grad, weight.detach().sum(-1).unsqueeze(1).expand_as(x), rtol=1e-5, atol=1e-4)


@onednn
def test_an_x_that_all_members_share(by_onednn: list[int]) -> None:
    """Inputs expanded over the members (stride 0) are taken as they are."""
    bias, x, weight = tensors(2, 16, 128, 128, requires_grad=False)
    shared = x[:1].expand(2, -1, -1)
    torch.testing.assert_close(
        batched_affine(bias, shared, weight), torch.baddbmm(bias, shared, weight), rtol=1e-5, atol=1e-4
    )
    assert len(by_onednn) == 2


def test_small_layers_and_other_types_stay_with_one_batched_call(by_onednn: list[int]) -> None:
    """One call for each member costs more than it gains there; float64 has no oneDNN kernel."""
    small = tensors(2, 16, 64, 64)
    assert torch.equal(batched_affine(*small), torch.baddbmm(*small))
    double = [tensor.double() for tensor in tensors(2, 16, 128, 128)]
    assert torch.equal(batched_affine(*double), torch.baddbmm(*double))
    assert not by_onednn


def test_compiled_losses_stay_with_mkl(by_onednn: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails on the operator."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    given = tensors(2, 16, 128, 128)
    assert torch.equal(batched_affine(*given), torch.baddbmm(*given))
    assert not by_onednn


@onednn
@pytest.mark.parametrize(
    ("maker", "capability", "quicker"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_onednn_is_for_avx512_that_mkl_leaves_unused(
    monkeypatch: pytest.MonkeyPatch, maker: str, capability: str, quicker: bool
) -> None:
    """The choice follows the CPU's maker and instructions."""
    monkeypatch.setattr(Path, "read_text", lambda path: f"vendor_id\t: {maker}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn_is_quicker.__wrapped__() is quicker
