"""Submissions of two stages (NAVSIM v2): written, checked, joined; and joining those of one stage."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpvla.plan import Plan
from navsim_bridge.files.pickles import UnsafePickleError
from navsim_bridge.files.submissions import STAGES, SubmissionError, SubmittedPlan, read_submission
from navsim_bridge.files.submissions import write_submission_file as write_file
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.two_stage import Group
from navsim_bridge.submission import v1, v2
from navsim_bridge.submission.check import Expected, check_submission
from navsim_bridge.submission.merge import merge_submissions
from navsim_bridge.submission.team import Team
from tests.paths import FIXTURES
from tools import export_submission

OFFICIAL = FIXTURES / "two_stage/submission.pkl"
TEAM = Team("team", "A. Author", "a@example.org", "here", "there")
NONE = Team("", "", "", "", "")
FIRST = [f"{i:016x}" for i in range(4)]
SECOND = [f"{i:017x}" for i in range(8)]
GROUPS = tuple(
    Group(FIRST[2 * g], FIRST[2 * g + 1], ((SECOND[4 * g], SECOND[4 * g + 1]), (SECOND[4 * g + 2], SECOND[4 * g + 3])))
    for g in range(2)
)
ALL = Expected((tuple(FIRST), tuple(SECOND)), GROUPS)


def plans(tokens: list[str], value: float = 0.5) -> dict[str, NDArray[np.float32]]:
    return {token: np.full((8, 3), value + i, dtype=np.float32) for i, token in enumerate(tokens)}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return v2.write_submission(tmp_path / "submission.pkl", TEAM, plans(FIRST), plans(SECOND))


def test_what_the_devkit_wrote_is_read_and_found_complete() -> None:
    found = read_submission(OFFICIAL)
    first, second = (stage[0] for stage in found.stages)
    assert found.two_stages and (len(first), len(second)) == (8, 24)
    assert {len(token) for token in first} == {16} and {len(token) for token in second} == {17}
    assert {plan.sampling for plan in (*first.values(), *second.values())} == {(8, 4.0, 0.5)}
    assert check_submission(OFFICIAL, Expected((tuple(first), tuple(second))), usual=True) == []


def test_what_was_written_is_read_back(whole: Path) -> None:
    found = read_submission(whole)
    assert found.two_stages and found.metadata == TEAM.metadata()
    for (stage,), tokens in zip(found.stages, (FIRST, SECOND)):
        assert {token: plan.poses.tolist() for token, plan in stage.items()} == {
            token: plan.tolist() for token, plan in plans(tokens).items()
        }
    assert check_submission(whole, ALL, usual=True) == []


def test_it_names_only_what_numpy_1_and_the_devkit_have(whole: Path) -> None:
    texts = [argument for _, argument, _ in pickletools.genops(whole.read_bytes()) if isinstance(argument, str)]
    named = {(a, b) for a, b in pairwise(texts) if a.split(".")[0] in ("navsim", "nuplan", "numpy") and "." not in b}
    assert named == {
        ("navsim.common.dataclasses", "Trajectory"),
        ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
    }
    assert b"numpy._core" not in whole.read_bytes() and all(key in texts for key in STAGES)


def written(path: Path, first: Any, second: Any, **texts: Any) -> Path:
    """A file with whatever is given for the stages: lists of dicts of arrays or of `SubmittedPlan`s."""
    stages = [
        [{t: p if isinstance(p, SubmittedPlan) else SubmittedPlan.of(Plan(p)) for t, p in d.items()} for d in stage]
        for stage in (first, second)
    ]
    return write_file(path, {**TEAM.metadata(), **texts}, stages)


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing token": (
        lambda path: written(path, [plans(FIRST[1:])], [plans(SECOND)]),
        f"first stage: 1 of 4 tokens are missing, first {FIRST[0]}, so that 1 of 2 groups cannot be scored",
    ),
    "a missing follow-up": (
        lambda path: written(path, [plans(FIRST)], [plans([SECOND[1], *SECOND[4:]])]),
        f"second stage: 3 of 8 tokens are missing, first {SECOND[0]}, so that 1 of 2 groups cannot be scored",
    ),
    "an extra token": (
        lambda path: written(path, [plans([*FIRST, "ff"])], [plans(SECOND)]),
        "first stage: 1 token not in the split, first ff",
    ),
    "stages in each other's place": (
        lambda path: written(path, [plans(SECOND)], [plans(FIRST)]),
        "first stage: 4 of 4 tokens are missing",
    ),
    "two dicts in a stage": (
        lambda path: written(path, [plans(FIRST)] * 2, [plans(SECOND)]),
        "first_stage_predictions must hold exactly one dict, found 2",
    ),
    "no dict in a stage": (
        lambda path: written(path, [plans(FIRST)], []),
        "second_stage_predictions must hold exactly one dict, found 0; there are no predictions in second_stage",
    ),
    "a pose that is no number": (
        lambda path: written(path, [plans(FIRST)], [{**plans(SECOND), SECOND[3]: np.full((8, 3), np.nan)}]),
        f"second stage, token {SECOND[3]}: NaN or infinite values",
    ),
    "seven poses": (
        lambda path: written(path, [plans(FIRST)], [{t: np.zeros((7, 3)) for t in SECOND}]),
        rf"second stage, token {SECOND[0]}: 7 poses every 0.5 s, where the format has 8 every 0.5 s \(and 7 more",
    ),
    "another interval": (
        lambda path: written(path, [{**plans(FIRST), FIRST[2]: SubmittedPlan(np.zeros((8, 3)), (8, 0.8, 0.1))}],
                             [plans(SECOND)]),
        f"first stage, token {FIRST[2]}: 8 poses every 0.1 s, where",
    ),
    "a token in both stages": (
        lambda path: written(path, [plans(FIRST)], [plans([*SECOND, FIRST[1]])]),
        f"1 token in both stages, first {FIRST[1]}",
    ),
    "empty texts": (
        lambda path: written(path, [plans(FIRST)], [plans(SECOND)], email=" "),
        "'email' is empty or not text: ' '",
    ),
    "a submission of one stage": (
        lambda path: v1.write_submission(path, TEAM, [plans(FIRST)]),
        "it is a submission of version 1.1, where the split needs first_stage_predictions and second_stage_predictions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_told(name: str, tmp_path: Path) -> None:
    make, message = BROKEN[name]
    with pytest.raises(SubmissionError, match=rf"x\.pkl: .*{message}"):
        check_submission(make(tmp_path / "x.pkl"), ALL, usual=True)


def test_a_submission_of_two_stages_is_none_of_a_split_of_one(whole: Path) -> None:
    with pytest.raises(SubmissionError, match="it is a submission of version 2, where the split needs predictions"):
        check_submission(whole, Expected((tuple(FIRST),)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"first_stage_predictions": []}, "no key 'second_stage_predictions'"),
        ({"first_stage_predictions": [], "second_stage_predictions": {}}, "must be a list of dicts, with one"),
        ({"first_stage_predictions": [{"t": 1}], "second_stage_predictions": [{}]}, "first stage, token t: expected a"),
        ({"first_stage_predictions": [{}], "second_stage_predictions": [{7: 1}]}, "second stage: a token must be"),
    ],
)
def test_what_is_no_submission_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({**TEAM.metadata(), **content}))
    with pytest.raises(SubmissionError, match=rf"x\.pkl: .*{message}"):
        read_submission(tmp_path / "x.pkl")


def test_a_hostile_file_is_not_run(tmp_path: Path) -> None:
    for thing in (print, Path("x"), Team):
        content = {**TEAM.metadata(), "first_stage_predictions": [{"t": thing}], "second_stage_predictions": [{}]}
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UnsafePickleError):
            read_submission(tmp_path / "x.pkl")


def test_bad_predictions_are_not_written(tmp_path: Path) -> None:
    for first, second, message in (
        ({}, plans(SECOND), "there are no predictions in first_stage_predictions"),
        (plans(FIRST), {SECOND[0]: np.zeros((7, 3))}, r"shape \(7, 3\), expected \(8, 3\)"),
        (plans(FIRST), plans([FIRST[0]]), "1 token in both stages"),
        (plans(FIRST), {SECOND[0]: np.full((8, 3), np.inf)}, "second stage, token .*: NaN or infinite"),
    ):
        with pytest.raises(SubmissionError, match=message):
            v2.write_submission(tmp_path / "x.pkl", TEAM, first, second)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=len(FIRST + SECOND), max_size=len(FIRST + SECOND)))
def test_parts_of_any_kind_join_to_the_whole(tmp_path_factory: pytest.TempPathFactory, share: list[int]) -> None:
    place = tmp_path_factory.mktemp("parts")
    everything = {**plans(FIRST), **plans(SECOND)}
    files = []
    for part in sorted(set(share)):
        mine = {token: everything[token] for token, owner in zip(FIRST + SECOND, share) if owner == part}
        first, second = ({t: p for t, p in mine.items() if t in stage} for stage in (FIRST, SECOND))
        files.append(v2.write_submission(place / f"{part}.pkl", TEAM, first, second, part=True))
    if len(files) == 1:
        return
    merged = merge_submissions(files, place / "whole.pkl", NONE, ALL)
    found = read_submission(merged)
    assert check_submission(merged, ALL, usual=True) == [] and found.metadata == TEAM.metadata()
    for (stage,), tokens in zip(found.stages, (FIRST, SECOND)):
        assert stage.keys() == set(tokens)
        assert all((stage[token].poses == everything[token]).all() for token in tokens)
    if len(files) > 2:
        with pytest.raises(SubmissionError, match="tokens are missing"):
            merge_submissions(files[1:], place / "lacking.pkl", NONE, ALL)
        assert not (place / "lacking.pkl").exists()


def test_files_that_do_not_fit_each_other_are_not_joined(whole: Path, tmp_path: Path) -> None:
    other = v2.write_submission(tmp_path / "b.pkl", Team("x", "b", "c", "d", "e"), {}, plans(["9" * 17]), part=True)
    with pytest.raises(SubmissionError, match=r"'team_name' is 'team' in .* and 'x' in .*; say which with --team-name"):
        merge_submissions([whole, other], tmp_path / "c.pkl", NONE)
    named = merge_submissions([whole, other], tmp_path / "c.pkl", Team("y", "b", "c", "d", "e"))
    assert read_submission(named).metadata["team_name"] == "y"
    again = v2.write_submission(tmp_path / "d.pkl", TEAM, plans(["8" * 16]), plans(SECOND[:2]))
    with pytest.raises(
        SubmissionError, match=rf"submission\.pkl and .*d\.pkl both have plans of 2 tokens, first {SECOND[0]}"
    ):
        merge_submissions([whole, again], tmp_path / "e.pkl", NONE)
    one = v1.write_submission(tmp_path / "f.pkl", TEAM, [plans(FIRST)])
    with pytest.raises(SubmissionError, match=r"is a submission of version 2, .*f\.pkl of 1\.1"):
        merge_submissions([whole, one], tmp_path / "e.pkl", NONE)
    with pytest.raises(SubmissionError, match="nothing to merge"):
        merge_submissions([whole], tmp_path / "e.pkl", NONE)


def test_files_of_one_stage_are_seeds_of_the_same_scenes_or_parts_of_others(tmp_path: Path) -> None:
    one = v1.write_submission(tmp_path / "1.pkl", TEAM, [plans(FIRST[:2]), plans(FIRST[:2], 7.0)])
    two = v1.write_submission(tmp_path / "2.pkl", TEAM, [plans(FIRST[:2], 9.0)])
    rest = v1.write_submission(tmp_path / "3.pkl", TEAM, [plans(FIRST[2:]), plans(FIRST[2:], 5.0)])
    (seeds,) = read_submission(merge_submissions([one, two], tmp_path / "seeds.pkl", NONE)).stages
    assert [float(seed[FIRST[0]].poses[0, 0]) for seed in seeds] == [0.5, 7.0, 9.0]
    (seeds,) = read_submission(merge_submissions([one, rest], tmp_path / "parts.pkl", NONE)).stages
    assert [sorted(seed) for seed in seeds] == [FIRST, FIRST]
    assert [float(seed[FIRST[2]].poses[0, 0]) for seed in seeds] == [0.5, 5.0]
    with pytest.raises(SubmissionError, match="parts must have the same number of seeds"):
        merge_submissions([two, rest], tmp_path / "x.pkl", NONE)


def test_plans_of_another_sampling_stay_as_they_are(tmp_path: Path) -> None:
    dense = Plan(np.arange(120.0).reshape(40, 3), 0.1)
    path = v2.write_submission(tmp_path / "x.pkl", TEAM, {FIRST[0]: dense}, {SECOND[0]: Plan(dense.poses[:1], 4.0)})
    first, second = (stage[0] for stage in read_submission(path).stages)
    assert first[FIRST[0]].sampling == (40, 40 * 0.1, 0.1) and second[SECOND[0]].sampling == (1, 4.0, 4.0)
    scored = first[FIRST[0]].as_scored()
    assert scored.interval == 0.1 and scored.poses.tolist() == dense.poses.tolist()
    assert "1 plan of 40 poses every 0.1 s" in check_submission(path)[0]


@pytest.mark.parametrize("private", [False, True])
def test_the_tool_checks_a_split_without_its_data(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], private: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    mapping = None if private else [[g.now, g.previous, [list(pair) for pair in g.pairs]] for g in GROUPS]
    rules = {"tokens": FIRST, "reactive_synthetic_initial_tokens": SECOND, "include_synthetic_scenes": True,
             "num_future_frames": 8, "frame_interval": 1}  # fmt: skip
    content = {"data_split": "test", "scene_filter": rules, "reactive_all_mapping": mapping}
    Path("stages.yaml").write_text(yaml.safe_dump(content))
    assert Expected.listed_by(load_split("stages.yaml")) == (Expected(ALL.stages) if private else ALL)
    export_submission.main(["--check", str(whole), "--split", "stages.yaml"])
    assert "is a valid submission of 4 and 8 scenes in two stages" in capsys.readouterr().out
    part = v2.write_submission("part.pkl", TEAM, plans(FIRST), plans(SECOND[2:]))
    groups = "" if private else ", so that 1 of 2 groups cannot be scored"
    with pytest.raises(SystemExit, match=f"second stage: 2 of 8 tokens are missing, first {SECOND[0]}{groups}"):
        export_submission.main(["--check", str(part), "--split", "stages.yaml"])
    rest = v2.write_submission("rest.pkl", TEAM, {}, plans(SECOND[:2]), part=True)
    export_submission.main(["--merge", str(part), str(rest), "--split", "stages.yaml", "--out", "all.pkl"])
    export_submission.main(["--check", "all.pkl", "--split", "stages.yaml"])
    odd = v2.write_submission("odd.pkl", TEAM, plans(FIRST), dict.fromkeys(SECOND, Plan(np.zeros((40, 3)), 0.1)))
    export_submission.main(["--validate", str(odd), "--split", "stages.yaml"])
    with pytest.raises(SystemExit, match=r"40 poses every 0\.1 s, where the format has 8"):
        export_submission.main(["--check", str(odd), "--split", "stages.yaml"])
    for words, message in (
        (["--check", "a", "--merge", "b"], "--check and --merge are different things to do"),
        (["--merge", "a", "b", "--seeds", "3"], "--seeds belongs to planning, not to --merge"),
        (["--check", "a", "--shard", "1/2"], "--shard belongs to writing, not to --check"),
    ):
        with pytest.raises(SystemExit, match=message):
            export_submission.main(words)
