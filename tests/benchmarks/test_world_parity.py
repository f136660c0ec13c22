"""Our scenes and scores equal the devkit's on a log with its official metric cache, and differences are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import world_parity
from navsim_bridge.golden.compare import PARTS, differences, with_part_of
from navsim_bridge.metric_cache import build_metric_cache, build_scenes, builder, jobs
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm_closed import planner
from navsim_bridge.pdm_closed.forecast import Forecast, forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, ReferencePlan
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import select_scenes
from tests.navsim_bridge.conftest import World


def run(root: Path, tmp_path: Path) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    status = world_parity.main(["--world", str(root), "--out", str(tmp_path / "parity.json")])
    table = json.loads((tmp_path / "parity.json").read_text())
    return status, {row["name"].split(" (ours")[0]: row for row in table["rows"]}, table


def copy_without(root: Path, tmp_path: Path, *left_out: str) -> Path:
    copy = tmp_path / "world"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*left_out))
    return copy


def test_a_world_equals_what_the_devkit_made_of_it(
    official_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows, table = run(official_world, tmp_path)
    assert status == 0
    for name in ("v1 scenes of the cache", *(f"v1 {part}" for part in PARTS), "v1 human: score",
                 "v1 human: all sub-scores", "v1 constant_velocity: all sub-scores"):  # fmt: skip
        assert (rows[name]["compared"], rows[name]["equal"]) == (17, 17), name
    for name in ("v2 scenes of v2_human.csv", "v2 human: all sub-scores", "v2 constant_velocity: all sub-scores"):
        assert (rows[name]["compared"], rows[name]["equal"]) == (40, 40), name
    assert rows["v2 human: average score"]["equal"] == rows["v2 constant_velocity: average score"]["equal"] == 1
    assert rows["v1 human: average score"]["missing"] == "no row average in the CSV"
    assert not any(row["exceptions"] for row in rows.values())
    assert {entry["name"]: entry["scenes"] for entry in table["caching"]} == {"v1": 17, "v2": 40}
    printed = capsys.readouterr().out
    assert "scenes/s per core" in printed
    assert "below the required" not in printed


def test_a_world_without_official_results_says_so(
    official_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_without(official_world, tmp_path, "*.csv", "official_metric_cache", "split_v2.yaml")
    status, rows, _ = run(root, tmp_path)
    assert status == 0
    assert all(row["missing"] for row in rows.values())
    assert rows["v2 scenes"]["missing"] == "no split_v2.yaml or no data/navsim_logs"
    assert "v1 centerline" in capsys.readouterr().out


def test_scenes_that_differ_are_listed_with_size_and_cause(
    official_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = builder.plan_references

    def ahead_of_time(scenes: list[PlannerScene], **options: Any) -> list[ReferencePlan]:
        plans = plan(scenes, **options)
        states = plans[3].states.copy()
        states[1:, :2] += 0.8 * (states[1:, :2] - states[0, :2])
        return [*plans[:3], dataclasses.replace(plans[3], states=states), *plans[4:]]

    monkeypatch.setattr(builder, "plan_references", ahead_of_time)
    root = copy_without(official_world, tmp_path, "v2_*.csv", "split_v2.yaml")
    status, rows, _ = run(root, tmp_path)
    assert status == 1
    assert rows["v1 reference plan"]["equal"] == 16
    (wrong,) = rows["v1 reference plan"]["exceptions"]
    assert wrong["difference"] > 1.0
    assert "differ from knot 1 on" in wrong["cause"]
    (lost,) = rows["v1 human: score"]["exceptions"]
    assert lost["token"] == wrong["token"]
    assert "ego_progress: ours" in lost["cause"]
    assert lost["cause"].endswith("(equal with the official reference plan)")
    printed = capsys.readouterr().out
    assert "below the required 99%" in printed
    assert f"v1 human: score: {wrong['token']}: ego_progress" in printed


def test_missing_and_foreign_scenes_are_counted(official_world: Path, tmp_path: Path) -> None:
    root = copy_without(official_world, tmp_path, "v2_*.csv", "split_v2.yaml", "official_metric_cache")
    lines = (root / "human.csv").read_text().splitlines()
    (root / "human.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(lines[-1].split(",")[1], "beef")]))
    status, rows, _ = run(root, tmp_path)
    assert status == 1
    row = rows["v1 scenes of human.csv"]
    assert (row["compared"], row["equal"]) == (18, 16)
    assert sorted(e["cause"] for e in row["exceptions"]) == ["only official", "only ours"]


@pytest.fixture(scope="module")
def scene(world: World) -> MetricScene:
    return next(iter(build_scenes(world.records[:1], world.root, world.maps)))


def test_equal_scenes_do_not_differ_whatever_the_order_of_their_polygons_and_lanes(scene: MetricScene) -> None:
    assert {size for size, _ in differences(scene, scene).values()} == {0.0}
    order = [1, 0]
    rings, ends = scene.polygon_ring_offsets, scene.ring_offsets
    assert rings[2] == 2  # the first two polygons have no holes
    swapped = dataclasses.replace(
        scene,
        route_lane_ids=scene.route_lane_ids[::-1],
        polygon_tokens=(*(scene.polygon_tokens[i] for i in order), *scene.polygon_tokens[2:]),
        polygon_types=(*(scene.polygon_types[i] for i in order), *scene.polygon_types[2:]),
        ring_offsets=np.array([0, ends[2] - ends[1], *ends[2:]]),
        vertices=np.concatenate([scene.vertices[ends[1] : ends[2]], scene.vertices[: ends[1]],
                                 scene.vertices[ends[2] :]]),
    )  # fmt: skip
    assert {size for size, _ in differences(scene, swapped).values()} == {0.0}


@pytest.mark.parametrize(
    ("part", "change", "size", "told"),
    [
        ("ego state", lambda s: {"ego_time_us": s.ego_time_us + 1}, np.inf, "time stamps"),
        ("ego state", lambda s: {"ego_state": s.ego_state + np.eye(11)[4] * 0.5}, 0.5, "column 4"),
        ("observation", lambda s: {"track_types": ("BICYCLE", *s.track_types[1:])}, np.inf, "is a"),
        ("observation", lambda s: {"track_first_speed": s.track_first_speed + 2.0}, 2.0, "first speed"),
        ("observation", lambda s: {"object_boxes": s.object_boxes + 3.0 * np.eye(5)[1]}, 3.0, "in frame"),
        ("observation", lambda s: {"track_tokens": ("new", *s.track_tokens[1:])}, np.inf, "only in the second"),
        ("route lanes", lambda s: {"route_lane_ids": s.route_lane_ids[1:]}, np.inf, "only in the first"),
        ("drivable polygons", lambda s: {"vertices": s.vertices + 0.25}, 0.25, "polygon"),
        ("drivable polygons", lambda s: {"polygon_tokens": ("x", *s.polygon_tokens[1:])}, np.inf, "only in the second"),
        ("centerline", lambda s: {"centerline": s.centerline + (2 * np.pi + 0.1) * np.eye(3)[2]}, 0.1, "from point 0"),
        ("centerline", lambda s: {"centerline": s.centerline[:-1]}, np.inf, "points"),
        ("reference plan", lambda s: {"reference_times_us": s.reference_times_us + 7}, np.inf, "up to 7 us"),
        ("reference plan", lambda s: {"reference_states": s.reference_states + 2.0 * np.eye(3)[0]}, 2.0, "up to 2 m"),
    ],
)
def test_each_part_is_told_apart(
    scene: MetricScene, part: str, change: Callable[..., Any], size: float, told: str
) -> None:
    changed = dataclasses.replace(scene, **change(scene))
    found = differences(scene, changed)
    assert found[part][0] == pytest.approx(size, rel=1e-6)
    assert told in found[part][1]
    assert {name for name, (other, _) in found.items() if other > 0} == {part}
    assert differences(scene, with_part_of(changed, scene, [part]))[part][0] == 0


def test_a_log_in_parts_remembers_what_touched_the_ego_in_earlier_scenes(
    official_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ignored = builder.plan_references, []

    def recorded(scenes: list[PlannerScene], **options: Any) -> list[ReferencePlan]:
        ignored.append(options["ignored"])
        return plan(scenes, **options)

    def touched(scene: PlannerScene, ignored: Any = ()) -> Forecast:
        return dataclasses.replace(forecast(scene, ignored), newly_ignored=(scene.token,))

    monkeypatch.setattr(builder, "forecast", touched)  # for scenes that an earlier run has built
    monkeypatch.setattr(planner, "forecast", touched)
    monkeypatch.setattr(builder, "plan_references", recorded)
    monkeypatch.setattr(jobs, "SCENES_PER_PART", 7)
    split = load_split(official_world / "split.yaml")
    data, maps = official_world / "data", official_world / "data/maps"
    tokens = build_metric_cache(data, maps, split, tmp_path, progress=False).tokens
    assert ignored == [set(), set(tokens[:7]), set(tokens[:14])]
    log = builder.scene_builder(select_scenes(split, data), data, maps)
    log.build(select_scenes(split, data)[14:], select_scenes(split, data)[:14])
    assert ignored[-1] == ignored[-2]
