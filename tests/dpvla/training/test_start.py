"""Starting from weights: a second round keeps, merges or discards adapters, and says so; omega travels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.config import ConfigError
from dpvla.encoders.config import EncoderConfig
from dpvla.manifest import MANIFEST
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.config import LoRAConfig
from dpvla.models.head_configs import HeadConfig
from dpvla.models.sampling import Sampling
from dpvla.tensors import CheckpointError
from dpvla.training.run_directory import Run, TrainedOn
from dpvla.training.start import open_start, refuse_other_start, starting_point
from tests.dpvla.models.tiny_policies import make_batch, make_policy, randomize_adapters
from tests.written_runs import write_run

IMITATION = TrainedOn("imitation", "navtrain", 6, ("log1",))
DIPOLE = TrainedOn("dipole", "navtest", 2, ("log2",), weights="adapters")


@pytest.fixture
def policy() -> DPVLA:
    policy = make_policy(DPVLAConfig.tiny())
    policy.add_adapters(ADAPTERS, 4, 4)
    randomize_adapters(policy)
    policy.sampling, policy.precision = Sampling(ADAPTERS, 2.5), "bf16"
    return policy


@pytest.fixture
def checkpoint(policy: DPVLA, tmp_path: Path) -> Path:
    found = tmp_path / "run/checkpoints/step_00000004"
    policy.save_pretrained(found / "model")
    policy.save_adapters(found / "adapters")
    write_run(found, DPVLAConfig.tiny(), 0, [IMITATION, DIPOLE])
    return found


def plans(policy: DPVLA, omega: float | None = None) -> torch.Tensor:
    batch = make_batch(policy.config)
    return policy.sample(policy.encode(batch), 3, omega, torch.Generator().manual_seed(1))


def test_weights_that_come_from_nothing_are_of_unknown_origin(tmp_path: Path) -> None:
    make_policy(DPVLAConfig.tiny()).save_pretrained(tmp_path / "model")
    write_run(tmp_path, DPVLAConfig.tiny(), 0, [])
    assert open_start(tmp_path).trained_on == (TrainedOn.unknown(),)


def test_omega_and_precision_travel_with_the_adapters(policy: DPVLA, checkpoint: Path) -> None:
    assert json.loads((checkpoint / "adapters/sampling.json").read_text()) == {
        "omega": 2.5, "precision": "bf16", "num_steps": None, "policies": [*ADAPTERS], "adapters": [*ADAPTERS],
        "manifest": True,
    }  # fmt: skip
    loaded = open_start(checkpoint.parents[1]).load_dpvla()
    assert (loaded.sampling.omega, loaded.precision) == (2.5, "bf16")
    assert torch.equal(plans(loaded), plans(policy, omega=2.5))
    assert not torch.equal(plans(loaded), plans(policy, omega=1.0))


def test_adapters_of_the_first_version_take_the_omega_of_their_run(policy: DPVLA, checkpoint: Path) -> None:
    (checkpoint / "adapters/sampling.json").unlink()
    with pytest.raises(ValueError, match=r"sampling\.json is missing"):  # of a later one
        open_start(checkpoint).load()
    (checkpoint / "adapters" / MANIFEST).unlink()
    run = yaml.safe_load((checkpoint / "run.yaml").read_text())
    run["config"] = {"dipole": {"omega": 0.25}}
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(run))
    assert open_start(checkpoint).load().sampling.omega == 0.25


@pytest.mark.parametrize("content", ['{"omega": -1, "precision": "no"}', '{"omega": "x", "precision": "no"}', "[", "[]",
                                     '{"omega": NaN, "precision": "no"}', '{"omega": 1, "precision": "fp16"}',
                                     '{"omega": 1, "precision": "no", "w": 2}'])  # fmt: skip
def test_a_damaged_description_of_sampling_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "adapters/sampling.json").write_text(content)
    with pytest.raises(ValueError, match=r"sampling\.json"):
        open_start(checkpoint).load()


def test_a_bare_model_has_no_adapters_and_has_not_seen_their_scenes(checkpoint: Path) -> None:
    bare = open_start(checkpoint / "model")
    assert bare.adapters is None and bare.trained_on == (IMITATION,)
    assert not bare.load().has_adapters


def test_a_checkpoint_that_lost_its_adapters_is_not_taken_for_its_model(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "adapters")
    with pytest.raises(CheckpointError, match=r"adapters is not there, although .*get the whole"):
        open_start(checkpoint)


def test_a_model_of_unknown_origin_says_so(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model").rename(tmp_path / "copied")
    assert open_start(tmp_path / "copied").trained_on == (TrainedOn.unknown(),)


def test_a_second_round_keeps_the_adapters_by_default(policy: DPVLA, checkpoint: Path) -> None:
    first = starting_point(open_start(checkpoint), "keep", ADAPTERS, LoRAConfig(4, 4))
    for mine, theirs in zip(first.policy.adapter_parameters(), policy.adapter_parameters()):
        assert torch.equal(mine, theirs)
    assert first.trained_on == (IMITATION, DIPOLE) and first.about["adapters"] == "its own kept"
    assert first.about["omega"] == 2.5


def test_kept_adapters_of_another_size_are_refused_with_the_options_that_fit(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 4 and alpha 4.*--lora\.rank 4 --lora\.alpha 4, or"):
        starting_point(open_start(checkpoint), "keep", ADAPTERS, LoRAConfig())


def test_discarded_adapters_leave_no_trace_in_what_the_weights_have_seen(checkpoint: Path) -> None:
    first = starting_point(open_start(checkpoint), "discard", ADAPTERS, LoRAConfig())
    assert not first.policy.has_adapters and first.trained_on == (IMITATION,)
    assert "discarded" in first.about["adapters"]


def test_merged_adapters_move_into_the_model_and_stay_in_what_it_has_seen(checkpoint: Path) -> None:
    before = DPVLA.from_pretrained(checkpoint / "model")
    first = starting_point(open_start(checkpoint), "merge", ADAPTERS, LoRAConfig())
    assert not first.policy.has_adapters and first.model is None
    assert first.trained_on == (IMITATION, replace(DIPOLE, weights="model"))
    assert "merged into the model with omega 2.5" in first.about["adapters"]
    moved = [
        name for name, value in first.policy.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    ]
    assert moved and all(name.startswith("head.") for name in moved)


def test_a_merge_is_the_guided_combination_to_first_order() -> None:
    """Halving the updates must quarter what merging misses: exact to first order."""
    gaps = []
    for size in (0.04, 0.02):
        policy = make_policy(DPVLAConfig.tiny())
        policy.config = replace(policy.config, diffusion=replace(policy.config.diffusion, clip_ratio=None))
        policy.add_adapters(ADAPTERS, 4, 4)
        randomize_adapters(policy)
        for layer in policy.adapter_parameters()[1::2]:
            layer.data *= size
        base = plans(policy, omega=0.0)
        guided = plans(policy, omega=1.5)
        policy.merge_adapters(1.5)
        assert not policy.has_adapters and (guided - base).abs().max() > 1e-4
        gaps.append(float((plans(policy) - guided).abs().max()))
    assert gaps[1] < 0.35 * gaps[0]


def test_a_merge_of_one_linear_layer_is_exact() -> None:
    policy = make_policy(DPVLAConfig.tiny())
    policy.add_adapters(ADAPTERS, 4, 8)
    randomize_adapters(policy)
    layer: Any = policy.head.blocks[0].mlp.up  # type: ignore[union-attr]
    x = torch.randn(5, layer.in_features)
    with torch.no_grad():
        positive, negative = layer(x, (0, 1), shared=True)
        policy.merge_adapters(1.5)
        torch.testing.assert_close(layer(x), 2.5 * positive - 1.5 * negative, rtol=1e-4, atol=1e-4)


def test_the_weights_of_another_model_are_refused_for_a_new_training(checkpoint: Path) -> None:
    config = DPVLAConfig.tiny()
    wanted = replace(config, diffusion=replace(config.diffusion, loss_weighting="eps"))
    assert DPVLA.from_pretrained(checkpoint / "model", config=wanted).config == wanted
    assert isinstance(config.head, HeadConfig) and isinstance(config.encoder, EncoderConfig)
    for other in (
        replace(config, diffusion=replace(config.diffusion, output="eps")),
        replace(config, head=replace(config.head, heads=2)),
        replace(config, encoder=replace(config.encoder, image_width=192)),
    ):
        with pytest.raises(ConfigError, match="give the same model options"):
            DPVLA.from_pretrained(checkpoint / "model", config=other)


def test_a_run_that_goes_on_may_name_its_start_otherwise_but_not_another_one(
    checkpoint: Path, tmp_path: Path, policy: DPVLA
) -> None:
    def opened(before: dict[str, Any]) -> Run:
        return Run(tmp_path, None, None, checkpoint, before, {})  # type: ignore[arg-type]

    start = open_start(checkpoint)
    run = opened({"config": {"checkpoint": "runs/a"}, "start": {"weights_sha256": start.weights_hash()}})
    refuse_other_start(run, "checkpoint", "runs/a")  # as it was written, whatever lies there now
    refuse_other_start(run, "checkpoint", str(checkpoint.resolve()))
    randomize_adapters(policy, seed=5)
    policy.save_adapters(checkpoint / "adapters")  # the same model with other adapters
    for other in (str(checkpoint), str(checkpoint / "model"), None):
        with pytest.raises(ConfigError, match="holds other weights"):
            refuse_other_start(run, "checkpoint", other)
    old = opened({"config": {"checkpoint": "runs/a"}})  # of the first version: it kept no hash, but the model
    refuse_other_start(old, "checkpoint", str(checkpoint / "model"))
    policy.merge_adapters()
    policy.save_pretrained(tmp_path / "another")
    with pytest.raises(ConfigError, match="holds other weights"):
        refuse_other_start(old, "checkpoint", str(tmp_path / "another"))
