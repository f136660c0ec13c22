"""Equality with the official scorer on stored scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from navsim_bridge.golden.v1 import FRAGILE_COLUMNS, GoldenScene, read_golden
from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans, simulate_plans
from navsim_bridge.pdm.score import PDMScores
from tests.paths import GOLDEN_V1


@pytest.fixture(scope="module")
def golden() -> tuple[list[GoldenScene], SceneBatch, torch.Tensor, PDMScores]:
    """Every fixture, packed and scored once."""
    files = [read_golden(path) for path in sorted(GOLDEN_V1.glob("*.npz"))]
    batch = SceneBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    return files, batch, plans, score_plans(batch, plans)


def stored(files: list[GoldenScene], name: str) -> NDArray[Any]:
    return np.stack([file.results[name] for file in files])


def test_fixtures_cover_every_family(golden: tuple[list[GoldenScene], SceneBatch, torch.Tensor, PDMScores]) -> None:
    families = {file.family for file in golden[0]}
    assert families == {
        "straight", "curve", "scurve", "turn90", "intersection", "carpark", "degenerate", "direct_tracks",
    }  # fmt: skip


@pytest.mark.parametrize("name", SUB_SCORES)
def test_sub_score_equals_the_official_one(
    golden: tuple[list[GoldenScene], SceneBatch, torch.Tensor, PDMScores], name: str
) -> None:
    files, _, _, scores = golden
    firm = ~stored(files, "dbg_fragile")[..., list(FRAGILE_COLUMNS[name])].any(-1)
    ours, official = getattr(scores, name).numpy(), stored(files, f"res_{name}")
    assert firm.sum() > 0.99 * firm.size
    tolerance = 1e-6 if name in ("ego_progress", "score") else 0.0
    np.testing.assert_allclose(ours[firm], official[firm], rtol=0, atol=tolerance)


def test_explanations_equal_the_official_ones(
    golden: tuple[list[GoldenScene], SceneBatch, torch.Tensor, PDMScores],
) -> None:
    files, _, _, scores = golden
    fragile = stored(files, "dbg_fragile").any(-1)
    for ours, name in (
        (scores.collision_time_index, "dbg_collision_time_idx"),
        (scores.ttc_time_index, "dbg_ttc_time_idx"),
        (scores.comfort_flags, "dbg_comfort_flags"),
    ):
        np.testing.assert_array_equal(ours.numpy()[~fragile], stored(files, name)[~fragile], err_msg=name)
    wrong = scores.ego_areas.numpy() != stored(files, "dbg_ego_areas")
    assert wrong.mean() < 1e-5  # single poses may sit on an edge without changing a score
    np.testing.assert_allclose(scores.progress_raw, stored(files, "dbg_progress_raw"), rtol=0, atol=1e-6)
    reference = stored(files, "dbg_ref_progress_raw")[:, 0]
    np.testing.assert_allclose(scores.reference_progress_raw, reference, rtol=0, atol=1e-6)


def test_simulated_states_equal_the_official_ones(
    golden: tuple[list[GoldenScene], SceneBatch, torch.Tensor, PDMScores],
) -> None:
    files, batch, plans, _ = golden
    states = simulate_plans(batch, plans)
    states[..., :2] += batch.origin[:, None, None]
    for file, ours in zip(files, states.numpy()):
        chosen = ours[1:][file.results["sim_states_idx"]]
        np.testing.assert_allclose(chosen, file.results["sim_states"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours[0], file.results["ref_sim_states"], rtol=0, atol=1e-5)


def test_reader_needs_no_results_and_names_missing_inputs(tmp_path: Path) -> None:
    source = sorted(GOLDEN_V1.glob("*.npz"))[0]
    with np.load(source) as file:
        fields = {name: file[name] for name in file.files}
    results = ("res_", "dbg_", "sim_", "ref_no", "ref_drivable", "ref_ego", "ref_score", "ref_sim", "ref_states_interp")
    inputs = {name: value for name, value in fields.items() if not name.startswith(results)}
    np.savez(tmp_path / "bare.npz", **inputs)
    bare, full = read_golden(tmp_path / "bare.npz"), read_golden(source)
    plans = torch.from_numpy(full.proposals)[None]
    ours = [score_plans(SceneBatch.from_scenes([item.scene]), plans).score for item in (bare, full)]
    assert torch.equal(*ours)
    del inputs["centerline"]
    np.savez(tmp_path / "broken.npz", **inputs)
    with pytest.raises(ValueError, match=r"broken\.npz.*centerline"):
        read_golden(tmp_path / "broken.npz")
