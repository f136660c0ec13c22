"""The tracker as one Triton kernel: interpreted on the CPU, compiled for a GPU that is not there, run on a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.pdm import SceneBatch
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.simulate import fit_speed, interpolate, plan_knots, plan_times_us, query_times_us, track
from tests.paths import FIXTURES, ROOT

pytest.importorskip("triton")


def what_to_track(scenes: int, candidates: int) -> tuple[Tensor, Tensor]:
    """Global ego states (scene, 11) and poses (scene, candidate, 41, 3) of golden scenes; last plans stand still."""
    files = [read_golden(path) for path in sorted((FIXTURES / "golden_v1").glob("*.npz"))[:scenes]]
    batch = SceneBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals[:candidates] for file in files]))
    plans[:, -1] = 0.0
    ego = batch.ego_state.clone()
    ego[:, :2] += batch.origin
    counts = torch.full_like(batch.ego_time_us, plans.shape[2] + 1)
    knots, stamps = plan_knots(ego[:, :3], plans), plan_times_us(batch.ego_time_us)
    return ego, interpolate(knots, stamps, counts, query_times_us(batch.ego_time_us))


INTERPRET = """
import sys, torch
from navsim_bridge.pdm.compiled import triton_tracker
torch.save(triton_tracker.track(*torch.load(sys.argv[1], weights_only=True)), sys.argv[1])
"""


def test_the_kernel_follows_plans_as_the_tensor_code_does(tmp_path: Path) -> None:
    """In a process of its own: triton has to know before its import that it shall interpret."""
    ego, poses = what_to_track(5, 3)  # fewer plans than a program has lanes
    file = tmp_path / "tensors.pt"
    torch.save((ego, poses, fit_speed(poses)), file)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", INTERPRET, str(file)], env=environment, check=True)
    torch.testing.assert_close(torch.load(file, weights_only=True), track(ego, poses), rtol=0, atol=1e-9)


def test_the_kernel_compiles_for_a_gpu_without_fused_operations_or_single_precision() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from navsim_bridge.pdm.compiled import triton_tracker

    arrays = dict.fromkeys(("start", "poses", "speed", "scratch", "states"), "*fp64")
    signature = arrays | {"plans": "i32", "candidates": "i32", "LANES": "constexpr"}
    source = ASTSource(fn=triton_tracker._track, signature=signature, constexprs={"LANES": 32})
    options = {"num_warps": 1, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "f32" not in made.asm["ttir"]
    assert made.asm["cubin"]


@pytest.mark.gpu
def test_a_gpus_kernel_follows_plans_as_its_tensor_code_does() -> None:
    ego, poses = (tensor.cuda() for tensor in what_to_track(100, 24))
    assert choice.use_triton(poses)
    states = track(ego, poses)
    with choice.using("torch"):
        torch.testing.assert_close(states, track(ego, poses), rtol=0, atol=1e-9)
