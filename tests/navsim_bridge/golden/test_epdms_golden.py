"""EPDMS equals the official one on stored scenes, for both human filters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from navsim_bridge.golden.v2 import FRAGILE_COLUMNS, read_golden_epdms
from navsim_bridge.pdm import (
    EPDMSBatch,
    SceneBatch,
    epdms_scores,
    epdms_terms,
    score_plans,
    simulate_plans,
    two_frame_extended_comfort,
)
from navsim_bridge.pdm.chunks import PER_SCENE
from navsim_bridge.pdm.encounters import Traffic
from navsim_bridge.pdm.epdms import EXTENDED_COMFORT, MULTIPLIERS, TERMS, EPDMSTerms
from navsim_bridge.pdm.geometry import ego_center
from navsim_bridge.pdm.objects import ObjectBatch
from navsim_bridge.traffic.log_replay import LogReplay
from tests.paths import GOLDEN_V2

CONTINUOUS = ("ego_progress", "score", "score_without_ec", "pdm_score")


class Golden:
    """Every fixture, packed and scored once."""

    def __init__(self) -> None:
        paths = sorted(GOLDEN_V2.glob("*.npz"))
        self.files = [read_golden_epdms(path) for path in paths]
        self.batch = EPDMSBatch.from_scenes([file.scene for file in self.files])
        self.plans = torch.from_numpy(np.stack([file.proposals for file in self.files]))
        self.terms = epdms_terms(self.batch, self.plans)
        previous = torch.stack([file.previous_motion() for file in self.files])
        seconds = torch.tensor([file.previous_seconds for file in self.files])
        self.comfort = two_frame_extended_comfort(self.terms.motion, previous, seconds)
        v1 = GOLDEN_V2.parent / "golden_v1"
        self.fragile = np.stack([np.load(v1 / path.name)["dbg_fragile"] for path in paths])

    def stored(self, name: str) -> NDArray[np.float64]:
        return np.stack([file.results[name] for file in self.files])

    def expect(self, ours: torch.Tensor, field: str) -> None:
        plain = field.removeprefix("unf_").removeprefix("res_").removeprefix("main_")
        firm = ~self.fragile[..., list(FRAGILE_COLUMNS[plain])].any(-1)
        assert firm.mean() > 0.95
        tolerance = 1e-6 if plain in CONTINUOUS else 0.0
        official = self.stored(field)
        np.testing.assert_allclose(ours.numpy()[firm], official[firm], rtol=0, atol=tolerance, err_msg=field)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def test_fixtures_hold_every_case(golden: Golden) -> None:
    assert {file.family for file in golden.files} == {
        "straight", "curve", "scurve", "turn90", "intersection", "carpark", "degenerate", "direct_tracks",
    }  # fmt: skip
    for name in TERMS:
        if name != "ego_progress":
            assert {0.0, 1.0} <= set(golden.stored(f"unf_{name}").ravel()), name
    assert 0 < golden.batch.has_human.sum() < len(golden.files)
    assert any((golden.stored(f"unf_{name}") != golden.stored(f"res_{name}")).any() for name in TERMS)
    assert (golden.stored("res_score") != golden.stored("main_score")).any()
    assert bool(golden.batch.object_is_light.any())
    assert len(set(golden.batch.past_count.tolist())) > 1


@pytest.mark.parametrize("name", [*TERMS, "pdm_score"])
def test_sub_scores_before_the_human_filter_equal_the_official_ones(golden: Golden, name: str) -> None:
    golden.expect(getattr(epdms_scores(golden.terms, "off"), name), f"unf_{name}")


@pytest.mark.parametrize("name", [*TERMS, EXTENDED_COMFORT, "pdm_score", "score", "score_without_ec"])
def test_released_columns_equal_the_official_ones(golden: Golden, name: str) -> None:
    golden.expect(getattr(epdms_scores(golden.terms, "v2.1.2", golden.comfort), name), f"res_{name}")


@pytest.mark.parametrize("name", ["score", "score_without_ec"])
def test_scores_of_the_corrected_filter_equal_the_official_ones(golden: Golden, name: str) -> None:
    golden.expect(getattr(epdms_scores(golden.terms, "fixed", golden.comfort), name), f"main_{name}")


def test_the_corrected_product_equals_the_official_one(golden: Golden) -> None:
    fixed = epdms_scores(golden.terms, "fixed")
    product = torch.stack([getattr(fixed, name) for name in MULTIPLIERS]).prod(0)
    golden.expect(product, "main_multiplicative_metrics_prod")


def test_the_recorded_driver_scores_as_officially(golden: Golden) -> None:
    official = np.stack([[file.results[f"human_{name}"] for name in TERMS] for file in golden.files])
    np.testing.assert_array_equal(golden.terms.human.numpy(), official)


def test_debug_values_equal_the_official_ones(golden: Golden) -> None:
    np.testing.assert_allclose(golden.terms.progress_raw, golden.stored("dbg_progress_raw"), rtol=0, atol=1e-6)
    firm = ~golden.fragile.any(-1)
    for ours, name in (
        (golden.terms.collision_time_index, "dbg_collision_time_idx"),
        (golden.terms.ttc_time_index, "dbg_ttc_time_idx"),
    ):
        np.testing.assert_array_equal(ours.numpy()[firm], golden.stored(name)[firm], err_msg=name)


def test_objects_that_overlap_the_ego_at_the_start_are_left_out_as_officially(golden: Golden) -> None:
    some = False
    for row, file in enumerate(golden.files):
        present = golden.batch.scenes.object_mask[row].any(0).numpy()
        removed = {token for token, seen in zip(file.scene.track_tokens, present) if not seen}
        assert removed == set(file.results["removed_tokens"].tolist())
        some = some or bool(removed)
    assert some


def test_scores_do_not_depend_on_neighbors_or_chunks(golden: Golden) -> None:
    whole = golden.terms
    few = [5, 0, 3]
    for limit in (2, 8):
        parts = epdms_terms(golden.batch.select(few), golden.plans[few, :5], max_plans_in_flight=limit)
        torch.testing.assert_close(parts.values, whole.values[few, :5], rtol=0, atol=1e-9)
        torch.testing.assert_close(parts.human, whole.human[few], rtol=0, atol=1e-9, equal_nan=True)


def test_recorded_traffic_that_is_given_plan_by_plan_comes_to_the_same(golden: Golden) -> None:
    some = golden.plans[:, :4]
    given = epdms_terms(golden.batch, some, traffic=LogReplay().simulate)
    for field in dataclasses.fields(EPDMSTerms):
        ours, expected = getattr(given, field.name), getattr(golden.terms, field.name)
        expected = expected if field.metadata == PER_SCENE else expected[:, :4]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9, equal_nan=True, msg=field.name)


def test_each_plan_and_its_reference_meet_the_traffic_of_that_plan_and_the_driver_his_own(golden: Golden) -> None:
    """Traffic that is there for the second plan alone, or for the recorded driver alone."""
    plans = golden.plans[:, :1].expand(-1, 2, -1, -1)

    def traffic(kept: int, asked: list[int]) -> Traffic:
        def simulate(scenes: EPDMSBatch, states: torch.Tensor) -> ObjectBatch:
            asked.append(states.shape[1])
            objects = LogReplay().simulate(scenes, states)
            there = torch.arange(len(objects.object_mask)) % states.shape[1] == kept
            there = there if states.shape[1] == 2 else torch.full_like(there, kept == 2)
            return dataclasses.replace(objects, object_mask=objects.object_mask & there[:, None, None])

        return simulate

    empty = epdms_terms(golden.batch, plans, traffic=traffic(3, []))
    calls: list[int] = []
    second = epdms_terms(golden.batch, plans, traffic=traffic(1, calls), max_plans_in_flight=4096)
    own = epdms_terms(golden.batch, plans, traffic=traffic(2, []))
    assert calls == [2, 1], "the drivers of all scenes are asked about once"
    assert torch.equal(second.values[:, 0], empty.values[:, 0])
    torch.testing.assert_close(second.values[:, 1], golden.terms.values[:, 0], rtol=0, atol=1e-9)
    assert (second.values[:, 1] != empty.values[:, 1]).any()
    assert torch.equal(second.human.nan_to_num(), empty.human.nan_to_num())
    torch.testing.assert_close(own.human, golden.terms.human, equal_nan=True)
    assert (own.human.nan_to_num() != empty.human.nan_to_num()).any()
    assert torch.equal(own.values, empty.values)
    assert torch.equal(second.reference_multiplier[:, 1], golden.terms.reference_multiplier[:, 0])


def test_what_stands_in_the_way_of_the_reference_in_the_traffic_of_one_plan_costs_that_plans_reference(
    golden: Golden,
) -> None:
    plans = golden.plans[:, :1].expand(-1, 2, -1, -1)
    half_way = ego_center(simulate_plans(golden.batch.scenes, plans)[:, 0])[:, 20]

    def simulate(scenes: EPDMSBatch, states: torch.Tensor) -> ObjectBatch:
        objects = LogReplay().simulate(scenes, states)
        boxes, mask = objects.object_boxes.clone(), torch.zeros_like(objects.object_mask)
        if states.shape[1] == 2:
            boxes[1::2, :, 0, :2] = half_way[:, None]
            mask[1::2, 20:, 0] = True
        kinds = {"track_stopped": torch.ones_like(objects.track_stopped), "object_boxes": boxes, "object_mask": mask}
        return dataclasses.replace(objects, track_skipped=torch.zeros_like(objects.track_skipped), **kinds)

    found = epdms_terms(golden.batch, plans, traffic=simulate, max_plans_in_flight=4096).reference_multiplier
    assert (found[:, 1] <= found[:, 0]).all() and (found[:, 1] < found[:, 0]).any()


def test_reader_needs_no_results_and_names_missing_inputs(tmp_path: Path) -> None:
    source = sorted(GOLDEN_V2.glob("*.npz"))[0]
    with np.load(source) as file:
        fields = {name: file[name] for name in file.files}
    results = ("res_", "unf_", "main_", "dbg_", "sim_", "prev_sim", "weighted_", "removed_", "two_frame", "human_")
    keep = ("human_trajectory", "human_kind")
    inputs = {name: value for name, value in fields.items() if not name.startswith(results) or name in keep}
    np.savez(tmp_path / "bare.npz", **inputs)
    bare, full = read_golden_epdms(tmp_path / "bare.npz"), read_golden_epdms(source)
    assert bare.results == {}
    plans = torch.from_numpy(full.proposals)[None]
    ours = [epdms_terms(EPDMSBatch.from_scenes([item.scene]), plans).values for item in (bare, full)]
    assert torch.equal(*ours)
    assert bare.previous_seconds == pytest.approx(float(fields["two_frame_dt_s"]), abs=1e-9)
    del inputs["past_states_raw"]
    np.savez(tmp_path / "broken.npz", **inputs)
    with pytest.raises(ValueError, match=r"broken\.npz.*past_states_raw"):
        read_golden_epdms(tmp_path / "broken.npz")


def test_a_red_token_names_the_last_of_lanes_and_connectors(tmp_path: Path) -> None:
    with np.load(GOLDEN_V2 / "public_027_turn90.npz") as file:
        fields = {name: file[name] for name in file.files}
    token, square = "57601", np.array([[0.0, 0.0], [9.0, 0.0], [9.0, 9.0], [0.0, 9.0]])
    for name, more in (("map_tokens", token), ("map_types", "LANE")):
        fields[name] = np.append(fields[name], more)
    fields["map_coords"] = np.concatenate([fields["map_coords"], square])
    fields["map_ring_offsets"] = np.append(fields["map_ring_offsets"], len(fields["map_coords"]))
    fields["map_poly_ring_offsets"] = np.append(fields["map_poly_ring_offsets"], len(fields["map_ring_offsets"]) - 1)
    np.savez(tmp_path / "both.npz", **fields)
    v2 = read_golden_epdms(tmp_path / "both.npz").scene.v2
    assert v2 is not None and v2.light_tokens == (token,)
    np.testing.assert_array_equal(v2.vertices, square)


def test_scenes_of_one_version_are_refused_by_the_other(golden: Golden) -> None:
    scene = golden.files[0].scene
    with pytest.raises(ValueError, match=f"{scene.token}.*frame_offsets"):
        score_plans(SceneBatch.from_scenes([scene]), golden.plans[:1])
