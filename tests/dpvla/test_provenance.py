"""What made a result: the device that computed it, not the machine's best one."""

from __future__ import annotations

import pytest
import torch

from dpvla.provenance import made_by


def test_the_device_is_the_one_that_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {torch.device(device).index or 0}")
    made = {device: made_by(device=device)["device"] for device in ("cpu", "cuda", "cuda:1", None)}
    assert made == {"cpu": "cpu", "cuda": "GPU 0", "cuda:1": "GPU 1", None: "GPU 0"}


def test_every_seed_is_kept() -> None:
    assert made_by(3)["seed"] == 3 and made_by([3, 4])["seed"] == [3, 4] and made_by()["seed"] is None
