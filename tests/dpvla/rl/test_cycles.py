"""Cycles of roll-outs and updates: where tokens come from changes nothing, and what a scene costs is logged."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.algorithms.algorithm import RolloutBatch
from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import ADAPTERS, Dipole
from dpvla.batch import RewardFunction
from dpvla.config import ConfigError
from dpvla.models import DPVLA
from dpvla.models.head import DiTHead
from dpvla.rl.config import RolloutConfig, TokensConfig
from dpvla.rl.flops import SceneFlops, scene_flops
from dpvla.rl.stage import RolloutStage
from dpvla.rl.token_store import open_tokens
from dpvla.training.loop import train
from tests.dpvla.training.test_resume import LOOP, assert_same_files, describe
from tests.gpu.tiny_driving import make_policy, numbers
from tests.scenes_in_memory import ScenesInMemory, prefer_left

EPOCHS = 2


def fresh() -> tuple[DPVLA, ScenesInMemory]:
    """Adapters as they are before the first update."""
    policy, source = make_policy(clip_ratio=1.5)
    with torch.no_grad():
        policy.merge_adapters()
    policy.add_adapters(ADAPTERS, 4)
    return policy, source


def make_stage(folder: Path | None, limit_gb: float = 8.0, cycles: int = 2, **more: Any) -> RolloutStage:
    policy, source = fresh()
    accelerator = Accelerator(cpu=True)
    config = RolloutConfig(
        group_size=3, cycles=cycles, epochs_per_cycle=EPOCHS, batch_size=4, scenes_per_call=4, context_cache_gb=limit_gb
    )
    tokens = TokensConfig(directory=None if folder is None else str(folder), **more)
    algorithm = Dipole(DipoleConfig())
    stage = RolloutStage(policy, algorithm, source, prefer_left, config, accelerator, 7, None, describe, tokens)
    stage.token_files = open_tokens(tokens, policy, source, accelerator, 4, agreed=False)
    return stage


@contextmanager
def counting_policies() -> Iterator[list[int]]:
    """How many policies every call of the head runs."""
    counts: list[int] = []
    plain = DiTHead.denoise

    def denoise(head: DiTHead, x_t: Any, t: Any, context: Any) -> Any:
        counts.append(context.num_policies)
        return plain(head, x_t, t, context)

    with patch.object(DiTHead, "denoise", denoise):
        yield counts


@pytest.mark.parametrize("omega", [0.5, 3.0])
def test_policies_that_are_equal_are_sampled_once_with_the_same_plans(omega: float) -> None:
    policy, source = fresh()
    context = policy.encode(source.batch(range(4)))
    expected = policy.sample(context, 3, omega, generator=numbers())
    with policy.knowing_equals() as equal, counting_policies() as counts:
        plans = policy.sample(context, 3, omega, generator=numbers())
    steps = policy.config.diffusion.num_steps
    assert equal and counts == [1] * steps
    torch.testing.assert_close(plans, expected, rtol=1e-4, atol=1e-4)
    with counting_policies() as counts:
        policy.sample(context, 3, omega, generator=numbers())
    assert counts == [2] * steps


@pytest.mark.parametrize(("down", "up", "equal"), [(False, False, True), (True, False, True), (False, True, False)])
def test_policies_are_equal_where_their_updates_are(down: bool, up: bool, equal: bool) -> None:
    """Updates of zero are equal whatever they are made of; one number of one layer tells two others apart."""
    policy, _ = fresh()
    layer: Any = policy.head.blocks[0].mlp.up  # type: ignore[union-attr]
    with torch.no_grad():
        layer.adapter_down[1, 0, 0] += down
        layer.adapter_up[1, 0, 0] += up * 1e-8
    with policy.knowing_equals() as found:
        assert found == equal
    with torch.no_grad():
        layer.adapter_up[0, 0, 0] = layer.adapter_up[1, 0, 0] = 0.3
    with policy.knowing_equals() as found:
        assert found == (not down)


@pytest.fixture(scope="module")
def flops() -> list[SceneFlops]:
    """Of a first cycle, whose policies are equal, and of later ones."""
    policy, _ = fresh()
    policy.freeze_encoder()
    return [scene_flops(policy, Dipole(DipoleConfig()), 3, equals_once=once) for once in (True, False)]


@pytest.mark.parametrize("where", ["disk", "memory", "nowhere"])
def test_the_cost_of_a_scene_is_logged_for_every_cycle(tmp_path: Path, where: str, flops: list[SceneFlops]) -> None:
    stage = make_stage(tmp_path if where == "disk" else None, limit_gb=8.0 * (where == "memory"))
    assert flops[0].roll_out < 0.6 * flops[1].roll_out
    # Where tokens are too large to be kept, that is found out from a first portion: four of the six scenes.
    encodings = {"disk": 0.0, "memory": 1.0, "nowhere": 1 + EPOCHS + 4 / 6}[where]
    logged = [(step, values) for step, values in followed(stage) if "speed/tflop_per_scene" in values]
    assert [step for step, _ in logged] == [4, 8]
    for (_, values), expected in zip(logged, flops):
        assert values["speed/tflop_per_scene"] == pytest.approx(expected.cycle(EPOCHS, encodings) / 1e12)


def followed(stage: RolloutStage) -> list[tuple[int, dict[str, float]]]:
    """What a stage tracks while its adapters move."""
    tracked: list[tuple[int, dict[str, float]]] = []
    batches = stage.batches(0, lambda step, values: tracked.append((step, dict(values))), nullcontext)
    for _ in range(stage.steps):
        assert len(next(batches).context) in (2, 4)
        with torch.no_grad():
            for number, parameter in enumerate(stage.policy.adapter_parameters()):
                parameter[0] += 0.001 * number
    return tracked


def test_a_run_from_disk_that_is_stopped_ends_bit_for_bit_as_in_one_go(tmp_path: Path) -> None:
    """Whoever wrote the tokens, and however far they are read ahead."""
    ends = []
    for name, stops in (("straight", [0]), ("broken", [3, 5, 0])):
        for stop in stops:
            stage = make_stage(tmp_path / f"tokens_{name}", ahead=1 + stop)
            config = replace(LOOP, steps=stage.steps, stop_after_step=stop)
            with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
                ends.append(train(stage, config, tmp_path / name, stage.accelerator))
    assert_same_files(*ends)
    waits = [[row["step"] for row in rows(tmp_path / name) if row.get("waited")] for name in ("straight", "broken")]
    assert waits == [["4", "8"]] * 2


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [row | {"waited": row.get("speed/token_wait", "")} for row in csv.DictReader(file)]


def test_encoding_again_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    stage = make_stage(None, limit_gb=0.0)
    batches = stage.batches(0, lambda step, values: None, nullcontext)
    next(batches)
    said = capsys.readouterr().out
    assert "GiB of memory, more than context_cache_gb = 0.0: encoding every batch afresh, 36 scenes more" in said
    assert "hours that --tokens.directory would save" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_images_decoded_by_a_thread_or_by_processes_are_the_same(workers: int) -> None:
    found = []
    for stage in (make_stage(None, 0.0, cycles=1), make_stage(None, 0.0, cycles=1, workers=workers)):
        batches = stage.batches(0, lambda step, values: None, nullcontext)
        found.append([next(batches).context.tokens for _ in range(stage.steps)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_reward_that_tells_no_plans_apart_is_refused_before_the_first_update() -> None:
    def of_scenes(tokens: Sequence[str], plans: Tensor) -> dict[str, Tensor]:
        value = torch.tensor([float(len(token)) for token in tokens], dtype=torch.float64)
        return {"score": value[:, None].expand(plans.shape[:2])}

    def of_standing(tokens: Sequence[str], plans: Tensor) -> dict[str, Tensor]:
        return {"score": (plans == 0).all(-1).all(-1).double()}

    def first(beta: float, reward: RewardFunction) -> RolloutBatch:
        policy, source = make_policy()
        config = RolloutConfig(group_size=3, epochs_per_cycle=1, batch_size=4, scenes_per_call=4)
        algorithm = Dipole(DipoleConfig(beta=beta))
        stage = RolloutStage(policy, algorithm, source, reward, config, Accelerator(cpu=True), 7, None, describe)
        return next(stage.batches(0, lambda step, values: None, nullcontext))

    with pytest.raises(ConfigError, match=r"same for all plans, even for standing still .*--metric"):
        first(1.0, of_scenes)
    assert not first(0.0, of_scenes).targets["advantages"].any()  # the control
    assert not first(1.0, of_standing).targets["advantages"].any()  # a policy that is no good yet
