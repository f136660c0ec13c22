import os
import pickle
import pickletools
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from navsim_bridge.logs import UnsafePickleError
from navsim_bridge.submission import SubmissionError, Team, read_submission, validate_submission, write_submission
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


def plans(*tokens, value=0.5):
    return {token: np.full((8, 3), value) for token in tokens}


@pytest.fixture
def submission(tmp_path):
    return write_submission(
        tmp_path / "submission.pkl", TEAM, [plans("00ab", "00cd"), plans("00ab", "00cd", value=1.0)]
    )


def test_the_devkits_classes_load_it(submission, tmp_path):
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


def test_it_names_only_what_numpy_1_and_the_devkit_have(submission):
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


def test_what_was_written_is_read_back(submission):
    metadata, predictions = read_submission(submission)
    assert metadata["country / region"] == "there"
    assert [sorted(seed) for seed in predictions] == [["00ab", "00cd"]] * 2
    np.testing.assert_array_equal(predictions[1]["00cd"], np.ones((8, 3), dtype=np.float32))


def test_a_good_submission_gets_warnings_only(submission, tmp_path):
    assert validate_submission(submission, ["00cd", "00ab"]) == ["2 seed: the leaderboard encourages three or more"]
    plain = write_submission(tmp_path / "x.pkl", Team("a", "b", "c", "d", "e"), [plans("00ab")] * 3)
    assert ["HTML link" in w or "not checked" in w for w in validate_submission(plain)] == [True, True]


def test_wrong_token_sets_are_refused(submission):
    with pytest.raises(SubmissionError, match=r"seed 0: 1 of 3 tokens are missing, first 00ef.*seed 1"):
        validate_submission(submission, ["00ab", "00cd", "00ef"])
    with pytest.raises(SubmissionError, match="seed 0: 1 tokens are not in the split, first 00cd"):
        validate_submission(submission, ["00ab"])


@pytest.mark.parametrize("predictions, message", [
    ([], "there are no predictions"),
    ([{}], "there are no predictions"),
    ([{"a": np.zeros((7, 3))}], r"token a: shape \(7, 3\)"),
    ([plans("a", value=np.nan)], "token a: NaN or infinite values"),
    ([plans("a"), plans("b")], "seed 1: 1 of 1 tokens are missing, first a"),
])  # fmt: skip
def test_bad_predictions_are_not_written(tmp_path, predictions, message):
    with pytest.raises(SubmissionError, match=message):
        write_submission(tmp_path / "x.pkl", TEAM, predictions)
    assert list(tmp_path.iterdir()) == []


def test_empty_metadata_is_refused(tmp_path):
    with pytest.raises(SubmissionError, match="the submission needs email, country / region"):
        write_submission(tmp_path / "x.pkl", Team("a", "b", " ", "d", ""), [plans("a")])


def test_changed_files_are_refused(submission, tmp_path):
    bad = tmp_path / "bad.pkl"
    data = submission.read_bytes()
    bad.write_bytes(data.replace(b"\x0binstitution", b"\x0binstitutiom"))
    with pytest.raises(SubmissionError, match="no key 'institution'"):
        validate_submission(bad)
    nan = np.full(24, np.nan, dtype=np.float32).tobytes()
    bad.write_bytes(data.replace(np.ones(24, dtype=np.float32).tobytes(), nan, 1))
    with pytest.raises(SubmissionError, match="seed 1, token 00ab: NaN or infinite values"):
        validate_submission(bad)
    bad.write_bytes(pickle.dumps({"predictions": print}))
    with pytest.raises(UnsafePickleError):
        validate_submission(bad)


def test_the_tool_exports_and_validates(world, tmp_path, capsys):
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
