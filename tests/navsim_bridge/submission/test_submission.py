from __future__ import annotations

import os
import pickle
import pickletools
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpvla.files import FileError
from navsim_bridge.files.pickles import UnsafePickleError, dump_plain_pickle
from navsim_bridge.files.submissions import (
    DEVKIT_NAMES,
    SubmissionError,
    Trajectory,
    TrajectorySampling,
    read_submission,
)
from navsim_bridge.submission import check
from navsim_bridge.submission.check import Expected, check_submission
from navsim_bridge.submission.team import Team
from navsim_bridge.submission.v1 import write_submission
from tests.navsim_bridge.conftest import World
from tools import export_submission

TEAM = Team("<a href='https://example.org'>team</a>", "A. Author", "a@example.org", "here", "there")
DEVKIT = {
    "navsim/common/dataclasses.py": """
from dataclasses import dataclass
import numpy
from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
@dataclass
class Trajectory:
    poses: numpy.ndarray
    trajectory_sampling: TrajectorySampling
    def __post_init__(self):
        raise AssertionError("unpickling must not call this")
""",
    "nuplan/planning/simulation/trajectory/trajectory_sampling.py": """
from dataclasses import dataclass
@dataclass(frozen=True)
class TrajectorySampling:
    num_poses: int = None
    time_horizon: float = None
    interval_length: float = None
""",
}
LOAD = """
import pickle, sys, numpy
content = pickle.load(open(sys.argv[1], "rb"))
trajectory = content["predictions"][1]["00ab"]
assert type(trajectory).__module__ == "navsim.common.dataclasses"
assert type(trajectory.trajectory_sampling).__module__.startswith("nuplan.planning.simulation")
assert trajectory.poses.dtype == numpy.float32 and trajectory.poses.shape == (8, 3)
sampling = trajectory.trajectory_sampling
assert (sampling.num_poses, sampling.time_horizon, sampling.interval_length) == (8, 4, 0.5)
print(list(content), float(trajectory.poses.sum()))
"""


def plans(*tokens: str, value: float = 0.5) -> dict[str, NDArray[np.float32]]:
    return {token: np.full((8, 3), value) for token in tokens}


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    return write_submission(
        tmp_path / "submission.pkl", TEAM, [plans("00ab", "00cd"), plans("00ab", "00cd", value=1.0)]
    )


def test_the_devkits_classes_load_it(submission: Path, tmp_path: Path) -> None:
    for name, code in DEVKIT.items():
        file = tmp_path / "devkit" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "devkit")}
    done = subprocess.run([sys.executable, "-c", LOAD, submission], capture_output=True, text=True, env=environment,
                          cwd=tmp_path, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    keys = ["team_name", "authors", "email", "institution", "country / region", "predictions"]
    assert done.stdout.strip() == f"{keys} 24.0"
    assert "navsim" not in sys.modules


def test_it_names_only_what_numpy_1_and_the_devkit_have(submission: Path) -> None:
    strings, named = [], set()
    data = submission.read_bytes()
    for opcode, argument, _ in pickletools.genops(data):
        assert opcode.name not in ("GLOBAL", "INST")
        if isinstance(argument, str):
            strings.append(argument)
    for module, name in pairwise(strings):
        if module.split(".")[0] in ("navsim", "nuplan", "numpy") and "." not in name:
            named.add((module, name))
    assert named == {
        ("navsim.common.dataclasses", "Trajectory"),
        ("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
    }
    assert "dtype" in strings
    assert b"numpy._core" not in data
    assert data[:2] == b"\x80\x04"  # protocol 4


def test_what_was_written_is_read_back(submission: Path) -> None:
    found = read_submission(submission)
    assert found.metadata["country / region"] == "there" and not found.two_stages
    (predictions,) = found.stages
    assert [sorted(seed) for seed in predictions] == [["00ab", "00cd"]] * 2
    np.testing.assert_array_equal(predictions[1]["00cd"].poses, np.ones((8, 3), dtype=np.float32))


def test_a_good_submission_gets_warnings_only(submission: Path, tmp_path: Path) -> None:
    assert check_submission(submission, Expected((("00cd", "00ab"),))) == [
        "2 seeds: the leaderboard encourages three or more"
    ]
    plain = write_submission(tmp_path / "x.pkl", Team("a", "b", "c", "d", "e"), [plans("00ab")] * 3)
    assert ["HTML link" in w or "not checked" in w for w in check_submission(plain)] == [True, True]


def test_wrong_token_sets_are_refused(submission: Path) -> None:
    with pytest.raises(SubmissionError, match=r"seed 0: 1 of 3 tokens are missing, first 00ef.*seed 1"):
        check_submission(submission, Expected((("00ab", "00cd", "00ef"),)))
    with pytest.raises(SubmissionError, match="seed 0: 1 token not in the split, first 00cd"):
        check_submission(submission, Expected((("00ab",),)))


@pytest.mark.parametrize("predictions, message", [
    ([], "there are no predictions"),
    ([{}], "there are no predictions"),
    ([{"a": np.zeros((7, 3))}], r"token a: shape \(7, 3\)"),
    ([plans("a", value=np.nan)], "token a: NaN or infinite values"),
    ([plans("a"), plans("b")], "seed 1: 1 of 1 tokens are missing, first a"),
])  # fmt: skip
def test_bad_predictions_are_not_written(
    tmp_path: Path, predictions: list[dict[str, NDArray[Any]]], message: str
) -> None:
    with pytest.raises(SubmissionError, match=message):
        write_submission(tmp_path / "x.pkl", TEAM, predictions)
    assert list(tmp_path.iterdir()) == []


def test_empty_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="the submission needs email, country / region"):
        write_submission(tmp_path / "x.pkl", Team("a", "b", " ", "d", ""), [plans("a")])


def test_changed_files_are_refused(submission: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pkl"
    data = submission.read_bytes()
    bad.write_bytes(data.replace(b"\x0binstitution", b"\x0binstitutiom"))
    with pytest.raises(SubmissionError, match="no key 'institution'"):
        check_submission(bad)
    nan = np.full(24, np.nan, dtype=np.float32).tobytes()
    bad.write_bytes(data.replace(np.ones(24, dtype=np.float32).tobytes(), nan, 1))
    with pytest.raises(SubmissionError, match="seed 1, token 00ab: NaN or infinite values"):
        check_submission(bad)
    bad.write_bytes(pickle.dumps({"predictions": print}))
    with pytest.raises(UnsafePickleError):
        check_submission(bad)


def write_plans(path: Path, poses: Any, horizon: Any, interval: Any, num_poses: Any = None, **other: Any) -> Path:
    """A submission of one plan with any sampling, pickled as the devkit does."""
    sampling = TrajectorySampling(len(poses) if num_poses is None else num_poses, horizon, interval)
    plan = Trajectory(poses, sampling)
    for name in other.get("without", ()):
        del plan.__dict__[name]
    content = {**TEAM.metadata(), "predictions": [{"00ab": plan}]}
    path.write_bytes(dump_plain_pickle(content, DEVKIT_NAMES))
    return path


@pytest.mark.parametrize(("poses", "horizon", "interval", "note"), [
    (np.zeros((40, 3), "f4"), 4.0, 0.1, "1 plan of 40 poses every 0.1 s: the scorer interpolates at 10 Hz up to 4 s"),
    (np.zeros((40, 3), "f4"), 40 * 0.1, 0.1, "1 plan of 40 poses every 0.1 s"),
    (np.zeros((3, 3), "f4"), 3 * 0.1, 0.1, "standing from 0.3 s on"),  # 3 * 0.1 > 0.3
    (np.zeros((1, 3), "f4"), 2, 2, "^1 plan of 1 pose every 2 s: .* standing from 2 s on"),
    (np.zeros((12, 3), "f4"), 6.0, 0.5, "1 plan of 12 poses every 0.5 s: .* reads nothing later"),
    (np.zeros((13, 3), "f4"), 4.0, 4.0 / 13, "1 plan of 13 poses"),
    (np.zeros((8, 3), "f8"), 4.0, 0.5, "1 plan with poses in float64"),
    (np.zeros((8, 3), "f2"), 4.0, 0.5, "1 plan with poses in float16"),
    (np.zeros((8, 3), "i8"), 4, 0.5, "1 plan with poses in int64"),
    (np.zeros((8, 3), "f4"), 4.0000001, 0.5, "1 plan with a horizon of 4.0000001 s, whose poses end at 4 s"),
    (np.zeros((6, 3), "f4"), 4, 0.5, "1 plan of 6 poses every 0.5 s: .* standing from 3 s on"),
    (np.zeros((8, 3), "f4"), 4, 0.1, "1 plan of 8 poses every 0.1 s: .* standing from 0.8 s on"),
    (np.zeros((8, 3), "f4"), 3.6, 0.5, "with a horizon of 3.6 s, whose poses end at 4 s"),
    (np.full((8, 3), 1).astype(object), 4, 0.5, "1 plan with poses in object"),
    (np.array([[np.float32(1), 2, True]] * 8, dtype=object), 4, 0.5, "1 plan with poses in object"),
    (np.array([["1", "2", "0.5"]] * 8), 4, 0.5, "1 plan with poses in <U3"),
    (np.zeros((8, 3), "f4"), np.float64(4), np.float32(0.5), None),
    (np.zeros((8, 3), "f4"), np.int64(4), np.array(0.5), None),
])  # fmt: skip
def test_what_the_official_scorer_takes_is_not_refused(
    tmp_path: Path, poses: Any, horizon: Any, interval: Any, note: str | None
) -> None:
    path = write_plans(tmp_path / "x.pkl", poses, horizon, interval)
    warnings = check_submission(path, Expected((("00ab",),)))
    assert warnings[-1].startswith("1 seed")
    if note is None:
        assert len(warnings) == 1
    else:
        assert re.search(note, warnings[0])


def test_a_number_of_poses_that_nothing_reads_is_noted_only(tmp_path: Path) -> None:
    path = write_plans(tmp_path / "x.pkl", np.zeros((8, 3), "f4"), 4, 0.5, num_poses=np.int32(40))
    assert "num_poses np.int32(40) for 8 poses: the scorer does not read it" in check_submission(path)[0]
    path = write_plans(tmp_path / "x.pkl", np.zeros((8, 3), "f4"), 1, 1, without=["trajectory_sampling"])
    assert len(check_submission(path, Expected((("00ab",),)))) == 1  # the class's own: 4 s every 0.5 s


@pytest.mark.parametrize(("poses", "horizon", "interval", "message"), [
    (np.zeros((40, 3), "f4"), 4, 0.5, "40 poses, but 4 s every 0.5 s are 8: the scorer would leave out the rest"),
    (np.zeros((8, 3), "f4"), 3.5, 0.5, "8 poses, but 3.5 s every 0.5 s are 7"),
    (np.zeros((8, 3), "f4"), 1e300, 1e-5, "1e[+]300 s every 1e-05 s are more times than the official scorer can list"),
    (np.full((8, 3), None), 4, 0.5, "NaN or infinite values"),
    (np.full((8, 3), 10**400), 4, 0.5, "poses of type object, expected numbers"),
    ([[0, 0, 0]] * 8, 4, 0.5, "expected a Trajectory whose poses are a numpy array"),
    (np.zeros((8, 3), "f4"), None, 0.5, "positive numbers of seconds, found horizon None, interval 0.5"),
    (np.zeros((8, 3), "f4"), "4", 0.5, "found horizon '4'"),
    (np.zeros((8, 3), "f4"), 4, -0.5, "found horizon 4, interval -0.5"),
    (np.zeros((8, 3), "f4"), np.nan, 0.5, "found horizon nan"),
    (np.zeros((8, 3), "f4"), np.inf, 0.5, "found horizon inf"),
    (np.zeros((8, 3), "f4"), np.array([4, 4]), 0.5, "found horizon array"),
    (np.zeros((8, 3), "f4"), 8e-6, 1e-6, "below the microseconds"),
    (np.zeros((0, 3), "f4"), 4, 0.5, r"shape \(0, 3\), expected \(poses, 3\)"),
    (np.zeros((8, 2), "f4"), 4, 0.5, r"shape \(8, 2\)"),
    (np.zeros(24, "f4"), 4, 0.5, r"shape \(24,\)"),
    (np.full((8, 3), 1e308), 4, 0.5, "values of more than 1e[+]06 m or rad"),
    ("poses", 4, 0.5, "expected a Trajectory whose poses are a numpy array, found 'poses'"),
    (np.zeros((8, 3), "f4"), 10**300, 0.5, "positive numbers of seconds, found horizon <a whole number of 997 bits>"),
    (np.zeros((8, 3), "U1"), 4, 0.5, "<U1, expected numbers"),
    (np.full((40, 3), np.inf), 4, 0.1, "NaN or infinite values"),
])  # fmt: skip
def test_what_the_official_scorer_would_die_of_or_misread_is_refused(
    tmp_path: Path, poses: Any, horizon: Any, interval: Any, message: str
) -> None:
    path = write_plans(tmp_path / "x.pkl", poses, horizon, interval)
    with pytest.raises(SubmissionError, match=rf"x\.pkl: seed 0, token 00ab: .*{message}"):
        check_submission(path)


def test_poses_that_are_no_plain_numbers_are_not_even_read(tmp_path: Path) -> None:
    for poses, message in ((np.full((8, 3), {}), "objects that are not all numbers"), (np.zeros((8, 3), "c8"), "'c8'")):
        path = write_plans(tmp_path / "x.pkl", poses, 4, 0.5)
        with pytest.raises(ValueError, match=rf"x\.pkl: not a readable pickle .*: byte \d+: .*{message}"):
            check_submission(path)


def test_a_deeply_nested_value_is_not_written_out(tmp_path: Path) -> None:
    nested: Any = "x"
    for _ in range(15):
        nested = [nested, nested]
    path = write_plans(tmp_path / "x.pkl", np.zeros((8, 3), "f4"), nested, 0.5)
    with pytest.raises(SubmissionError, match=r"found horizon \[\["):
        check_submission(path)


@pytest.mark.parametrize(("content", "message"), [
    (["no dict"], "expected a dict, found list"),
    ({1: 2}, r"no key 'team_name'; found \[1\]"),
    ({"predictions": {"a": 1}}, "predictions must be a list of dicts"),
    ({"predictions": [["a"]]}, "predictions must be a list of dicts"),
    ({"predictions": [{5: 1}]}, "seed 0: a token must be a text .*, found 5"),
    ({"predictions": [{"": 1}]}, "seed 0: a token must be a text"),
    ({"predictions": [{"a\nb": 1}]}, r"seed 0: a token must be a text .*, found 'a\\nb'"),
    ({"predictions": [{"t": [1]}]}, r"seed 0, token t: expected a Trajectory, found \[1\]"),
    ({"predictions": [{"t": np.zeros((8, 3))}]}, "seed 0, token t: expected a Trajectory, found array"),
])  # fmt: skip
def test_what_is_no_submission_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.pkl"
    with_team = {**TEAM.metadata(), **content} if isinstance(content, dict) and 1 not in content else content
    path.write_bytes(pickle.dumps(with_team))
    with pytest.raises(SubmissionError, match=rf"x\.pkl: {message}") as raised:
        check_submission(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_metadata_may_be_anything_and_is_refused_where_it_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    values: list[Any] = [None, 5, [], [[]], " ", ["a", 5], 2**2000, b"x" * 10**6, {"a": "b"}, np.zeros(3)]
    for value in values:
        path.write_bytes(pickle.dumps({**TEAM.metadata(), "email": value, "predictions": []}))
        with pytest.raises(SubmissionError, match="'email' is empty or not text: ") as raised:
            check_submission(path)
        assert len(str(raised.value)) < 500


def test_only_the_first_of_many_problems_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({**TEAM.metadata(), "predictions": [{}] * 3000}))
    with pytest.raises(SubmissionError, match="there are no predictions"):
        check_submission(path)
    write_submission(path, TEAM, [plans("a")])
    with pytest.raises(SubmissionError, match="1 of 1 tokens are missing") as raised:
        check_submission(path, Expected((("b",),)))
    assert len(str(raised.value)) < 500
    assert len(check._first_of(["x"] * 3000)) == check.MOST_NOTES + 1


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero", "."):
        with pytest.raises(FileError, match="where a file is to be read"):
            check_submission(tmp_path / name)


def test_a_submission_is_not_replaced_unasked(world: World, tmp_path: Path) -> None:
    team = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
    options = ["--split", "small", "--data-root", str(world.root), "--out", str(tmp_path / "s.pkl"), *team]
    export_submission.main(["--agent", "constant_velocity", *options])
    before = (tmp_path / "s.pkl").read_bytes()
    with pytest.raises(SystemExit, match=r"s\.pkl exists: .*--overwrite"):
        export_submission.main(["--agent", "stand_still", *options])
    assert (tmp_path / "s.pkl").read_bytes() == before
    export_submission.main(["--agent", "stand_still", *options, "--overwrite"])
    assert (tmp_path / "s.pkl").read_bytes() != before
    for out, message in ((tmp_path, "is a folder, where a file is to be written"),
                         (tmp_path / "s.pkl/x", "is no folder")):  # fmt: skip
        with pytest.raises(SystemExit, match=message):
            export_submission.main(["--agent", "stand_still", *options, "--out", str(out)])
    with pytest.raises(SystemExit, match="--device cuda:99 is not there"):
        export_submission.main(["--agent", "stand_still", *options, "--overwrite", "--device", "cuda:99"])


def test_a_second_export_to_a_file_is_refused_at_once(world: World, tmp_path: Path) -> None:
    options = ["--split", str(world.split_file), "--data-root", str(world.root), "--out", str(tmp_path / "s.pkl")]
    team = ["--team-name", "t", "--authors", "a", "--email", "e", "--institution", "i", "--country", "c"]
    hold = "import sys; from dpvla.files import one_writer\nwith one_writer(sys.argv[1], lock='.s.pkl.lock'): input()"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / ".s.pkl.lock").exists() or not (tmp_path / ".s.pkl.lock").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(SystemExit, match=f"is being written by process {holder.pid}"):
            export_submission.main(["--agent", "stand_still", *options, *team])
    finally:
        holder.kill()
        holder.wait()
    (tmp_path / ".s.pkl.abcd1234.part").touch()  # of an export that was killed
    (tmp_path / "s.pkl").write_bytes(b"which may have been whole before its lock went")
    export_submission.main(["--agent", "stand_still", *options, *team])
    assert [path.name for path in tmp_path.iterdir()] == ["s.pkl"] and (tmp_path / "s.pkl").stat().st_size > 100


def test_the_tool_exports_and_validates(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "submission.pkl"
    team = ["--team-name", "a", "--authors", "b", "--email", "c", "--institution", "d", "--country", "e"]
    common = ["--split", "small", "--data-root", str(world.root)]
    export_submission.main(["--agent", "constant_velocity", "--out", str(out), *common, *team])
    export_submission.main(["--validate", str(out), *common])
    captured = capsys.readouterr()
    assert captured.out.count("is a valid submission of 7 scenes") == 2
    assert "warning: team_name holds no HTML link" in captured.err
    with pytest.raises(SystemExit, match="the submission needs team_name"):
        export_submission.main(["--agent", "stand_still", "--out", str(out), *common])
