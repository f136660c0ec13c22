"""Without the [state] extra every tool that needs a simulator names the remedy in one line and writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from tools import collect_exorl, make_ogbench_data, train_state_based

SIMULATORS = ("mujoco", "dm_control", "ogbench", "gymnasium")
MAZE = "pointmaze-medium-navigate"


@pytest.fixture
def no_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment without them: no module, no metadata."""
    version = metadata.version

    def missing(package: str) -> str:
        if package in SIMULATORS:
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", missing)
    for name in [name for name in sys.modules if name.partition(".")[0] in SIMULATORS]:
        monkeypatch.delitem(sys.modules, name)
    for name in SIMULATORS:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_simulators")
@pytest.mark.parametrize(
    "main, command",
    [
        (make_ogbench_data.main, f"--env {MAZE} --episodes 1 --steps 5 --workers 1 --quiet"),
        (collect_exorl.main, "--domain walker --episodes 1 --steps 5 --quiet"),
        (train_state_based.main, f"--env {MAZE}-singletask-v0 --data DATA"),
        (train_state_based.main, "--env puzzle-3x3-play-singletask-v0 --data DATA"),
        (train_state_based.main, "--env walker-walk --data DATA"),
    ],
)
def test_tools_name_the_remedy_and_leave_out_as_it_was(
    main: Callable[[list[str]], None], command: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SystemExit, match=r"error: .*'?(ogbench|dm_control|mujoco)'?.*; .*pip install -e '\.\[state\]'$"
    ):
        main([*command.replace("DATA", str(data)).split(), "--out", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.rglob("*")} <= {"out", ".lock"}, "the lock blocks nobody"
