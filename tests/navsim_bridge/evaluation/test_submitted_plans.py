"""Plans that agents give: of any sampling, and out of a submission file, with the scores of the agent that wrote it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvla.files import FileError
from dpvla.plan import Plan
from dpvla.registry import import_plugin
from navsim_bridge.agents import AGENTS, constant_velocity, human
from navsim_bridge.agents.agent import Plans
from navsim_bridge.agents.crew import Crew, plan_together
from navsim_bridge.agents.plans import by_candidate, by_sampling, checked, each, joined
from navsim_bridge.agents.submission_agent import SubmissionAgent
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.metric_scenes import LoadScenes, recorded_scenes, scenes_from_cache
from navsim_bridge.evaluation.run import SceneFailureError, evaluate
from navsim_bridge.files.submissions import SubmissionError, SubmittedPlan, read_submission, write_submission_file
from navsim_bridge.metric_cache import MetricCache, build_metric_cache
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.submission import v1, v2
from navsim_bridge.submission.team import Team
from tests.navsim_bridge.conftest import World
from tests.paths import ROOT
from tools import evaluate as tool
from tools import export_submission

TEAM = Team("a", "b", "c", "d", "e")
TEAM_OPTIONS = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
SAMPLINGS = ((8, 0.5), (40, 0.1), (6, 0.5), (8, 0.5), (1, 4.0), (10, 0.5), (40, 0.1))
"""Of the seven scenes."""


@pytest.fixture(scope="module")
def cache(world: World, tmp_path_factory: pytest.TempPathFactory) -> MetricCache:
    folder = tmp_path_factory.mktemp("cache")
    return build_metric_cache(world.root, world.maps, world.split, folder, progress=False)


@pytest.fixture(scope="module")
def load(cache: MetricCache) -> LoadScenes:
    return scenes_from_cache(cache)


def mixed(records: Sequence[SceneRecord]) -> list[Plan]:
    """Straight on at the present speed, each scene sampled otherwise, as the place in its log says."""
    found = []
    for record in records:
        count, interval = SAMPLINGS[record.first_frame // 4 % len(SAMPLINGS)]
        speed = float(np.hypot(*record.velocity))
        times = np.arange(1, count + 1) * interval
        found.append(Plan(np.stack([times * speed, 0 * times, 0 * times], axis=-1).astype(np.float32), interval))
    return found


def scores(evaluation: Evaluation) -> dict[str, list[float]]:
    return dict(zip(evaluation.tokens, evaluation.values.tolist()))


def test_plans_of_several_samplings_score_together_as_alone(world: World, load: LoadScenes) -> None:
    records = world.records
    assert len({(len(plan.poses), plan.interval) for plan in mixed(records)}) == 5
    together = evaluate(mixed, records, load, progress=False)
    assert [part.rows for part in together.parts] == [tuple(range(7))]
    for record in records:
        alone = evaluate(mixed, [record], load, progress=False)
        assert scores(alone)[record.token] == scores(together)[record.token]
        assert alone.reasons[record.token] == together.reasons[record.token]
    usual = [r for r, (count, _) in zip(records, SAMPLINGS) if count == 8]
    straight = scores(evaluate(constant_velocity, usual, load, progress=False))
    for record in usual:
        assert scores(together)[record.token] == pytest.approx(straight[record.token], abs=1e-6)
    shuffled = evaluate(mixed, records[::-1], load, progress=False)
    assert scores(shuffled) == scores(together)


def test_a_plan_that_says_the_usual_sampling_is_the_usual_one(world: World, load: LoadScenes) -> None:
    def said(records: Sequence[SceneRecord]) -> list[Plan]:
        return each(human(records))

    assert scores(evaluate(said, world.records, load, progress=False)) == scores(
        evaluate(human, world.records, load, progress=False)
    )


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda records: np.zeros((len(records), 40, 3)), r"shape \(1, 40, 3\), expected \(1, 8, 3\); for another"),
        (lambda records: [Plan(np.zeros((8, 2)))] * len(records), r"of shape \(pose, 3\), found float64 \(8, 2\)"),
        (lambda records: [Plan(np.zeros((0, 3)))] * len(records), "at least one pose"),
        (lambda records: [Plan(np.zeros((8, 3)), -1.0)] * len(records), "must be a number of seconds .* found -1.0"),
        (lambda records: [Plan(np.full((8, 3), "x"))] * len(records), "must be numbers"),
        (lambda records: [Plan(np.full((5, 3), np.nan), 0.1)] * len(records), "candidate 0 holds NaN"),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(
    world: World, load: LoadScenes, give: Callable[[Sequence[SceneRecord]], Plans], message: str
) -> None:
    with pytest.raises(SceneFailureError, match=message):
        evaluate(give, world.records, load, progress=False)


def test_a_metric_of_the_usual_plans_refuses_others_by_its_name(world: World) -> None:
    import_plugin(str(ROOT / "examples/metric.py"))  # its name stays: a module is imported once in a process
    with pytest.raises(SceneFailureError, match=r"metric ade scores plans of 8 poses, 0\.5 s apart, and no others"):
        evaluate(mixed, world.records, recorded_scenes, metric=make_metric("ade"), progress=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.1, 0.5])), min_size=1, max_size=12))
def test_plans_are_grouped_and_none_is_lost(samplings: list[tuple[int, float]]) -> None:
    plans = [Plan(np.full((count, 3), i), interval) for i, (count, interval) in enumerate(samplings)]
    groups = by_sampling(plans)
    assert sorted(place for group in groups for place in group.places) == list(range(len(plans)))
    assert len(groups) == len(set(samplings))
    for group in groups:
        for place, poses in zip(group.places, group.poses):
            assert poses.tolist() == plans[place].poses.tolist() and group.interval == plans[place].interval


def test_what_agents_give_is_brought_to_one_form() -> None:
    usual, other = np.zeros((2, 8, 3), dtype=np.float32), [Plan(np.ones((3, 3)), 1.0)]
    assert checked(usual, 2) is usual and checked(other, 1) is other
    assert isinstance(joined([usual, usual]), np.ndarray) and len(joined([usual, usual])) == 4
    assert [len(plan.poses) for plan in joined([usual, other])] == [8, 8, 3]  # type: ignore[union-attr]
    assert [len(plans) for plans in by_candidate(np.zeros((2, 5, 8, 3)), 2)] == [2] * 5
    assert [len(plans) for plans in by_candidate([usual, [*other, *other]], 2)] == [2, 2]
    for wrong, message in (
        (other, "gave 1 plans for 2 scenes"),
        ([*other, "x"], "for some scenes, and 'x' for another"),
    ):
        with pytest.raises(ValueError, match=message):
            checked(wrong, 2)
    with pytest.raises(ValueError, match=r"proposed plans of shape \(2, 5, 7, 3\)"):
        by_candidate(np.zeros((2, 5, 7, 3)), 2)


def test_a_submission_keeps_what_the_agent_gave_and_scores_as_it(
    world: World, load: LoadScenes, tmp_path: Path
) -> None:
    (plans,) = plan_together(lambda: mixed, world.records, Crew.alone(), progress=False)
    tokens = [r.token for r in world.records]
    path = v1.write_submission(tmp_path / "s.pkl", TEAM, [dict(zip(tokens, each(plans)))])
    ((held,),) = read_submission(path).stages
    assert [len(held[token].poses) for token in tokens] == [len(plan.poses) for plan in mixed(world.records)]
    agent = SubmissionAgent(path)
    found, expected = (evaluate(who, world.records, load, progress=False) for who in (agent, mixed))
    assert found.to_csv() == expected.to_csv()
    staged = v2.write_submission(
        tmp_path / "t.pkl", TEAM, *({t: p for t, p in zip(tokens, each(plans)) if (t in tokens[:3]) is first}
                                    for first in (True, False))
    )  # fmt: skip
    assert evaluate(SubmissionAgent(staged), world.records, load, progress=False).to_csv() == expected.to_csv()


@pytest.fixture
def no_more_agents() -> Iterator[None]:
    before = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(before)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.usefixtures("no_more_agents")
def test_the_tool_scores_a_file_as_the_agent_that_wrote_it(
    world: World, cache: MetricCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AGENTS["mixed"] = mixed
    data = ["--split", "small", "--data-root", str(world.root)]
    scored = [*data, "--metric-cache", str(cache.path)]
    file = str(tmp_path / "s.pkl")
    export_submission.main(["--agent", "mixed", *data, *TEAM_OPTIONS, "--out", file])
    tool.main(["--agent", "mixed", *scored, "--out", str(tmp_path / "agent")])
    tool.main(["--agent", "submission", "--submission", file, *scored, "--out", str(tmp_path / "file")])
    assert rows(tmp_path / "file") == rows(tmp_path / "agent")
    about = summary(tmp_path / "file")
    assert about["submission"]["path"] == file and len(about["submission"]["sha256"]) == 64
    assert about["trained_on"] is None and "submission" not in summary(tmp_path / "agent")
    others = ["--agent", "submission", "--submission", file, *scored, "--workers", "2", "--device", "cpu"]
    tool.main([*others, "--out", str(tmp_path / "two")])
    assert (tmp_path / "two/scores.csv").read_bytes() == (tmp_path / "file/scores.csv").read_bytes()

    export_submission.main(["--agent", "constant_velocity", *data, *TEAM_OPTIONS, "--out", file, "--overwrite"])
    with pytest.raises(SystemExit, match=r"holds the results of another evaluation .*submission"):
        tool.main(["--agent", "submission", "--submission", file, *scored, "--out", str(tmp_path / "file")])
    capsys.readouterr()


def test_scenes_without_a_plan_are_named_before_any_work(
    world: World, cache: MetricCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [r.token for r in world.records]
    plans = dict(zip(tokens, constant_velocity(world.records)))
    path = v1.write_submission(tmp_path / "s.pkl", TEAM, [{t: plans[t] for t in tokens[2:]} | {"ff": plans[tokens[0]]}])
    words = ["--agent", "submission", "--submission", str(path), "--split", "small", "--data-root", str(world.root),
             "--metric-cache", str(cache.path), "--out", str(tmp_path / "out")]  # fmt: skip
    lacking = rf"s\.pkl has no plans of 2 of 7 scenes, first {tokens[0]}; ask for the rest with --allow-missing"
    with pytest.raises(SystemExit, match=lacking):
        tool.main(words)
    capsys.readouterr()
    tool.main([*words, "--allow-missing"])
    said = capsys.readouterr()
    assert "s.pkl: scenes that are not scored have plans, too: 1, first ff" in said.err
    assert "submission on small (5 of 7 scenes)" in said.out and "NOT the score of small" in said.out
    assert summary(tmp_path / "out")["left_out"] == {"missing_plans": 2}
    none = v1.write_submission(tmp_path / "n.pkl", TEAM, [{"ff": plans[tokens[0]]}])
    with pytest.raises(SystemExit, match=r"n\.pkl has no plans of 7 of 7 scenes"):
        tool.main([*words[:3], str(none), *words[4:-1], str(tmp_path / "none"), "--allow-missing"])


def test_the_seeds_of_a_file_are_its_samples(world: World, load: LoadScenes, tmp_path: Path) -> None:
    tokens = [r.token for r in world.records]
    seeds = [dict(zip(tokens, of_seed(world.records))) for of_seed in (constant_velocity, human)]
    path = v1.write_submission(tmp_path / "s.pkl", TEAM, seeds)
    first, second = SubmissionAgent(path, samples=2).propose(world.records)
    assert [plan.poses.tolist() for plan in first] == constant_velocity(world.records).tolist()
    assert [plan.poses.tolist() for plan in second] == human(world.records).astype(np.float32).tolist()
    with pytest.raises(SubmissionError, match=r"--samples 3: .* holds 2 predictions a scene"):
        SubmissionAgent(path, samples=3)
    words = ["--agent", "submission", "--submission", str(path), "--split", "small", "--data-root", str(world.root),
             "--maps-root", str(world.maps), "--out", str(tmp_path / "out"), "--samples", "2"]  # fmt: skip
    tool.main(words)
    scored = summary(tmp_path / "out")
    alone = evaluate(constant_velocity, world.records, load, progress=False)
    assert scored["averages"]["score"] == alone.averages["score"] and scored["samples_per_scene"] == 2
    assert scored["over_samples"]["mean"]["score"] != scored["averages"]["score"]


def test_a_plan_that_cannot_be_scored_fails_its_scene_alone(world: World, load: LoadScenes, tmp_path: Path) -> None:
    tokens = [r.token for r in world.records]
    plans = {t: SubmittedPlan.of(Plan(p)) for t, p in zip(tokens, constant_velocity(world.records))}
    plans[tokens[3]] = SubmittedPlan(np.full((8, 3), np.nan, dtype=np.float32), (8, 4, 0.5))
    path = write_submission_file(tmp_path / "s.pkl", TEAM.metadata(), [[plans]])
    agent = SubmissionAgent(path)
    with pytest.raises(SceneFailureError, match=rf"{tokens[3]} .*s\.pkl: plan of scene {tokens[3]}: NaN or infinite"):
        evaluate(agent, world.records, load, progress=False)
    found = evaluate(agent, world.records, load, allow_failures=True, progress=False)
    assert list(found.failures) == [tokens[3]] and found.valid.sum() == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--agent", "submission"], "--agent submission needs --submission FILE"),
        (["--agent", "stand_still", "--submission", "x"], "--submission belongs to --agent submission"),
        (["--agent", "submission", "--submission", "x", "--omega", "1"], "--omega belongs to --agent dpvla"),
        (["--agent", "stand_still", "--samples", "2"], "--samples belongs to --agent dpvla"),
        (["--agent", "submission", "--submission", "x"], "no file x"),
    ],
)
def test_options_that_do_not_fit_are_refused(world: World, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        tool.main([*words, "--split", "small", "--data-root", str(world.root), "--maps-root", str(world.maps),
                   "--out", str(tmp_path / "out")])  # fmt: skip


def test_a_file_that_has_changed_meanwhile_is_refused(world: World, tmp_path: Path) -> None:
    plans = dict(zip([r.token for r in world.records], constant_velocity(world.records)))
    path = v1.write_submission(tmp_path / "s.pkl", TEAM, [plans])
    with pytest.raises(SubmissionError, match=r"s\.pkl has changed since this was started"):
        SubmissionAgent(path, sha256="0" * 64)
    with pytest.raises(FileError, match="where a file is to be read"):
        SubmissionAgent(tmp_path)
    with pytest.raises(SystemExit, match="--agent submission is a submission already"):
        export_submission.main(["--agent", "submission", "--submission", str(path), "--split", "small", *TEAM_OPTIONS])


def test_the_metric_is_the_same_for_all_samplings(world: World, load: LoadScenes) -> None:
    """What results say of the metric does not hang on the plans."""
    metric = PDMS()
    assert evaluate(mixed, world.records, load, metric=metric, progress=False).about["name"] == metric.about["name"]
    assert metric.interval is None
