"""A device that is not there is told before any work."""

from __future__ import annotations

import pytest
import torch

from dpvla.device import usable_device


def test_the_cpu_is_always_there() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "meta", "mps", "cuda:1:2"])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"--device {name}: expected auto, cpu, cuda or cuda:N"):
        usable_device(name)


def test_gpus_that_are_not_there_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"--device cuda is not there \(torch finds 0 GPUs\)"):
        usable_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_device("auto") == torch.device("cuda")
    assert usable_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"--device cuda:2 is not there \(torch finds 2 GPUs, cuda:0 to cuda:1\)"):
        usable_device("cuda:2")
