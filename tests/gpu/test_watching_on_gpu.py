"""What is watched on a GPU follows CUDA's device rules and gives the CPU's numbers."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.models import DPVLA
from dpvla.rl.config import RolloutConfig, TokensConfig, WatchConfig
from dpvla.rl.held_out import HeldOut
from dpvla.rl.stage import RolloutStage
from dpvla.rl.watching import Watch, Watched
from tests.gpu.pretended import PretendedGPU
from tests.gpu.tiny_driving import make_policy, training_on
from tests.scenes_in_memory import ScenesInMemory, prefer_left


def watched(
    policy: DPVLA, source: ScenesInMemory, accelerator: Accelerator, gpu: PretendedGPU | None = None
) -> dict[str, float]:
    """What a cycle logs, and what held-out scenes give."""
    policy.to(accelerator.device)
    config, tokens = RolloutConfig(group_size=3, epochs_per_cycle=2, batch_size=4, scenes_per_call=4), TokensConfig()
    watch = Watch(WatchConfig(scenes=3), Watched({"other": prefer_left}, ("score",)), accelerator, 0)
    held_out = HeldOut(source, {"": prefer_left, "other": prefer_left}, config, tokens, accelerator)
    algorithm = Dipole(DipoleConfig())
    stage = RolloutStage(
        policy,
        algorithm,
        source,
        prefer_left,
        config,
        accelerator,
        0,
        None,
        lambda directory, cycles: None,
        tokens,
        watch,
        held_out,
    )
    tracked: dict[str, float] = {}
    batches = stage.batches(0, lambda step, values: tracked.update(values), nullcontext)
    if gpu is not None:
        gpu.forget()
    next(batches)
    found = tracked | dict(stage.evaluate(0))
    if gpu is not None:
        assert not gpu.unready, "something was read before it was there"
    return {name: value for name, value in found.items() if not name.startswith("speed/")}


def test_what_is_watched_on_a_gpu_is_what_a_cpu_gives() -> None:
    expected = watched(*make_policy(), Accelerator(cpu=True))
    gpu, made = PretendedGPU(), make_policy()
    with training_on(gpu) as accelerator, torch.no_grad():
        found = watched(*made, accelerator, gpu)
    assert {"rollout/from_pretrained_m", "rl/update_size_positive", "alarm/score_lost", "heldout/other/score"} < {
        *found
    }
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
