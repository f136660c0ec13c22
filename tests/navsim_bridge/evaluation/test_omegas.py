"""One look at each scene serves several omegas and samples, and each comes to what it would alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpvla.batch import DrivingBatch
from dpvla.models import DPVLA
from dpvla.models.scene_context import SceneContext
from navsim_bridge.agents import constant_velocity, stand_still
from navsim_bridge.agents.crew import Crew
from navsim_bridge.evaluation import run as evaluating
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.metric_scenes import scenes_from_cache
from navsim_bridge.evaluation.omegas import folder_of, write_omegas
from navsim_bridge.evaluation.results import Identity, ResultsError, check_results, write_evaluation
from navsim_bridge.evaluation.run import SceneFailureError, evaluate, evaluate_each
from navsim_bridge.evaluation.samples import oracle
from navsim_bridge.metric_cache import MetricCache, build_metric_cache
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.conftest import World
from tools import evaluate as tool

OMEGAS = (0.0, 0.5, 4.0)


@pytest.fixture(scope="module")
def cache(world: World, tmp_path_factory: pytest.TempPathFactory) -> MetricCache:
    out = tmp_path_factory.mktemp("cache")
    return build_metric_cache(world.root, world.maps, world.split, out, progress=False)


@pytest.fixture
def score(world: World, cache: MetricCache, checkpoint: Path, tmp_path: Path) -> Callable[..., None]:
    """The tool on the tiny policy."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "navsim_logs").symlink_to(world.root / "navsim_logs")
    (root / "sensor_blobs").symlink_to(checkpoint / "sensor_blobs")

    def run(out: Path, *options: str) -> None:
        tool.main(["--agent", "dpvla", "--checkpoint", str(checkpoint), "--split", str(world.split_file), "--data-root",
                   str(root), "--metric-cache", str(cache.path), "--out", str(out), *options])  # fmt: skip

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def summary_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    content["provenance"].pop("command")
    return content


def test_several_omegas_equal_separate_evaluations_to_the_bit_and_share_the_encoder(
    score: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluating, "SCENES_AT_ONCE", 4)
    looks: list[str] = []
    encode = DPVLA.encode

    def counted(policy: DPVLA, batch: DrivingBatch) -> SceneContext:
        looks.extend(batch.tokens)
        return encode(policy, batch)

    monkeypatch.setattr(DPVLA, "encode", counted)
    score(tmp_path / "all", "--omega", "0,0.5,4")
    assert len(looks) == len(set(looks)) == 7
    said = capsys.readouterr().out
    for omega in OMEGAS:
        score(tmp_path / "one", "--omega", f"{omega:g}", "--overwrite")
        found = folder_of(tmp_path / "all", omega)
        assert (found / "scores.csv").read_bytes() == (tmp_path / "one/scores.csv").read_bytes()
        assert summary_of(found) == summary_of(tmp_path / "one")
        assert summary_of(found)["omega"] == omega
    table = rows_of(tmp_path / "all/omega.csv")
    assert [(float(row["omega"]), row["failed"]) for row in table] == [(omega, "0") for omega in OMEGAS]
    for row, omega in zip(table, OMEGAS):
        averages = summary_of(folder_of(tmp_path / "all", omega))["averages"]
        assert all(float(row[name]) == mean for name, mean in averages.items())
    assert len({row["ego_progress"] for row in table}) == 3  # they differ, so that equal files mean something
    assert (tmp_path / "all/omega.md").read_text() in said
    assert said.count("What the weights were trained on is unknown") == 1


def test_the_omega_that_a_policy_was_trained_with_is_marked(
    score: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(tmp_path / "all", "--omega", "0,1")
    assert [row["trained_with"] for row in rows_of(tmp_path / "all/omega.csv")] == ["False", "True"]
    assert "| 1 (trained with) |" in capsys.readouterr().out


def test_samples_are_told_apart_and_the_first_is_what_one_alone_is(
    score: Callable[..., None], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(tmp_path / "one")
    score(tmp_path / "three", "--samples", "3")
    said = capsys.readouterr().out
    assert (tmp_path / "three/scores.csv").read_bytes() == (tmp_path / "one/scores.csv").read_bytes()
    one, three = summary_of(tmp_path / "one"), summary_of(tmp_path / "three")
    over = three["over_samples"]
    different = {key for key in one if one[key] != three[key]}
    assert different == {"samples_per_scene", "over_samples"}
    rows = rows_of(tmp_path / "three/samples.csv")
    assert [(r["token"], r["sample"]) for r in rows] == [(r.token, f"{k}") for r in world.records for k in range(3)]
    scores = np.array([float(row["score"]) for row in rows]).reshape(7, 3)
    assert over["mean"]["score"] == pytest.approx(scores.mean())
    assert over["standard_deviation"]["score"] == pytest.approx(scores.mean(axis=0).std(ddof=1))
    assert over["oracle_best"]["score"] == pytest.approx(scores.max(axis=1).mean())
    assert over["oracle_best"]["score"] > over["mean"]["score"]
    assert "no method" in over["oracle_best_is"] and "oracle best of 3, chosen by the true score" in said
    assert [float(r["score"]) for r in rows_of(tmp_path / "three/scores.csv")[:-1]] == scores[:, 0].tolist()
    with pytest.raises(SystemExit, match="samples_per_scene 3 there, 1 asked for"):
        score(tmp_path / "three")
    score(tmp_path / "three", "--overwrite")
    assert not (tmp_path / "three/samples.csv").exists()


class Fake:
    """Proposes what agents plan, without those (candidate, scene) that are not finite."""

    def __init__(self, agents: Sequence[Callable[..., NDArray[Any]]], lost: set[tuple[int, str]]) -> None:
        self.agents, self.lost = agents, lost

    def __call__(self, records: Sequence[SceneRecord], candidate: int = 0) -> NDArray[Any]:
        plans = np.array(self.agents[candidate](records), dtype=np.float64)
        for row, record in enumerate(records):
            if (candidate, record.token) in self.lost:
                plans[row, 3] = np.nan
        return plans

    def propose(self, records: Sequence[SceneRecord]) -> NDArray[Any]:
        return np.stack([self(records, candidate) for candidate in range(len(self.agents))], axis=1)

    def require_finite(self, plans: NDArray[Any], candidate: int) -> None:
        if not np.isfinite(plans).all():
            raise ValueError(f"candidate {candidate} is not finite")


AGENTS = (constant_velocity, stand_still, constant_velocity)
Lost = set[tuple[int, int]]


def of_each(world: World, cache: MetricCache, lost: Lost, allow_failures: bool = True) -> list[Evaluation]:
    fake = Fake(AGENTS, {(candidate, world.records[row].token) for candidate, row in lost})
    return evaluate_each(lambda: fake, world.records, scenes_from_cache(cache), Crew.alone(), len(AGENTS),
                         allow_failures=allow_failures, progress=False)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(lost=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=6))
def test_a_candidate_fails_for_itself_alone(world: World, cache: MetricCache, lost: Lost) -> None:
    found = of_each(world, cache, lost)
    whole = of_each(world, cache, set())
    for candidate, (one, all_of_it) in enumerate(zip(found, whole, strict=True)):
        tokens = [world.records[row].token for row in range(7) if (candidate, row) in lost]
        assert list(one.failures) == tokens
        assert set(one.failures.values()) <= {f"ValueError: candidate {candidate} is not finite"}
        np.testing.assert_array_equal(one.values[one.valid], all_of_it.values[one.valid])
    best = oracle(found)
    values = np.stack([one.values[:, -1] for one in found])
    assert set(best.failures) == {r.token for r, score in zip(world.records, values.T) if np.isnan(score).all()}
    expected = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    np.testing.assert_array_equal(best.values[best.valid, -1], expected[best.valid])
    rows = [row for part in best.parts for row in part.rows]
    assert rows == sorted(rows)


def test_without_leave_to_fail_one_candidate_stops_all(world: World, cache: MetricCache) -> None:
    with pytest.raises(SceneFailureError, match=f"scene {world.records[2].token} .*candidate 1 is not finite"):
        of_each(world, cache, {(1, 2)}, allow_failures=False)


def test_the_oracle_takes_the_best_plan_of_every_scene_and_the_first_of_equal_ones(
    world: World, cache: MetricCache
) -> None:
    load = scenes_from_cache(cache)
    moving, still = (evaluate(agent, world.records, load, progress=False) for agent in (constant_velocity, stand_still))
    best = oracle([moving, still, moving])
    takes_still = still.values[:, -1] > moving.values[:, -1]
    assert 0 < takes_still.sum() < 7
    np.testing.assert_array_equal(best.values, np.where(takes_still[:, None], still.values, moving.values))
    assert best.reasons == {token: (still if chosen else moving).reasons[token]
                            for token, chosen in zip(best.tokens, takes_still.tolist())}  # fmt: skip


def write(
    out: Path, world: World, evaluations: Sequence[Evaluation], overwrite: bool = False
) -> tuple[str, list[Path]]:
    omegas = [float(i) for i in range(len(evaluations))]
    runs = {
        folder_of(out, omega): Identity(
            agent="x", split=world.split, data_root=world.root, seed=0, omega=omega, checkpoint=None
        )
        for omega in omegas
    }
    return write_omegas(out, runs, [[one] for one in evaluations], trained_with=None, overwrite=overwrite,
                        records=world.records, cache=None, coverage=Coverage.whole(7))  # fmt: skip


def test_an_omega_whose_scenes_all_fail_takes_no_other_with_it(
    world: World, cache: MetricCache, tmp_path: Path
) -> None:
    found = of_each(world, cache, {(1, row) for row in range(7)} | {(2, 0)})
    with pytest.raises(ResultsError, match=r"^omega 1: all 7 scenes failed; first .* 2 omegas are written$"):
        write(tmp_path, world, found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["omega.csv", "omega.md", "omega_0", "omega_2"]
    assert [(row["omega"], row["scenes_scored"], row["failed"]) for row in rows_of(tmp_path / "omega.csv")] == [
        ("0.0", "7", "0"), ("2.0", "6", "1"),
    ]  # fmt: skip


def test_an_omega_with_failures_leaves_its_whole_results_and_the_others_are_written(
    world: World, cache: MetricCache, tmp_path: Path
) -> None:
    write(tmp_path, world, of_each(world, cache, set()))
    before = (tmp_path / "omega_1/scores.csv").read_bytes()
    (tmp_path / "omega_2/scores.csv").unlink()
    failing = of_each(world, cache, {(1, 4)})
    with pytest.raises(ResultsError, match=r"omega 1: .*now it would be 6 of 7 scenes \(1 scene failed\)"):
        write(tmp_path, world, failing)
    assert (tmp_path / "omega_1/scores.csv").read_bytes() == before
    assert (tmp_path / "omega_2/scores.csv").exists()
    said, _ = write(tmp_path, world, failing, overwrite=True)
    assert "omega 1: 1 of 7 scenes FAILED" in said
    assert (tmp_path / "omega_1/scores.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("omega", "name"),
    [(0.0, "omega_0"), (1, "omega_1"), (0.1 + 0.2, "omega_0.30000000000000004"), (1e30, "omega_1e+30")],
)
def test_folders_of_omegas_differ_as_they_do(omega: float, name: str) -> None:
    assert folder_of("out", omega) == Path("out") / name


def test_a_sample_without_any_scene_has_no_summary(world: World, cache: MetricCache, tmp_path: Path) -> None:
    found = of_each(world, cache, {(1, row) for row in range(7)})
    with pytest.raises(ValueError, match="all 7 scenes failed; there is no average"):
        write_evaluation(tmp_path, *found, agent="x", split=world.split, records=world.records, data_root=world.root,
                         seed=0)  # fmt: skip
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["scores.csv", "summary.json", "samples.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_place_of_a_result_is_named_before_anything_is_scored(
    tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=f"{name} is a folder"):
        check_results(tmp_path, {"metric": {}}, overwrite)
