"""The doctor names what is broken and what to do, and does not break itself."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dpvla.tensors import save_tensors
from navsim_bridge.doctor import examine, machine
from navsim_bridge.doctor.data import check_checkpoint, check_data, check_environment
from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding
from navsim_bridge.doctor.machine import (
    check_linear_algebra,
    check_navsim,
    check_packages,
    check_python,
    check_torchvision,
)
from navsim_bridge.doctor.scores import BUNDLED, check_scores
from tools import doctor as tool


def only(findings: Iterable[Finding]) -> Finding:
    found = list(findings)
    assert len(found) == 1, [str(f) for f in found]
    return found[0]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT", "NAVSIM_DEVKIT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one log that has camera files and one that has none, and one of four maps."""
    root = tmp_path / "data"
    for log in "ab":
        (root / "navsim_logs/mini").mkdir(parents=True, exist_ok=True)
        (root / f"navsim_logs/mini/{log}.pkl").touch()
    (root / "sensor_blobs/mini/a").mkdir(parents=True)
    (root / "maps/us-ma-boston/1").mkdir(parents=True)
    (root / "maps/us-ma-boston/1/map.gpkg").touch()
    (root / "maps/nuplan-maps-v1.0.json").write_text(json.dumps({"us-ma-boston": {"version": "1"}}))
    return root


def test_bundled_scenes_get_their_official_scores() -> None:
    finding = only(check_scores())
    assert finding.level == OK
    assert "504 sub-scores of 3 bundled scenes" in finding.what


def test_a_wrong_score_is_an_error(tmp_path: Path) -> None:
    source = sorted(BUNDLED.glob("*.npz"))[0]
    with np.load(source) as file:
        content = {name: file[name] for name in file.files}
    content["res_score"] = content["res_score"] + 1e-5
    np.savez(tmp_path / source.name, **content)
    finding = only(check_scores(tmp_path))
    assert finding.level == ERROR
    assert f"first {source.stem} plan" in finding.what
    assert only(check_scores(tmp_path / "nowhere")).level == ERROR


def test_the_inverse_of_numpy_issue_22502_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_linear_algebra()).level == OK
    right = np.linalg.inv

    def wrong(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.asarray(right(matrix))
        if len(matrix) == 24:
            result[17, 15] = 0.0
        return result

    monkeypatch.setattr(np.linalg, "inv", wrong)
    finding = only(check_linear_algebra())
    assert finding.level == ERROR
    assert "numpy>=1.24" in finding.remedy


@pytest.mark.parametrize("devkit", [True, False])
def test_the_unrelated_navsim_is_told_from_the_devkit(
    devkit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/navsim"
    (package / "common").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    if devkit:
        (package / "common/dataclasses.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    finding = only(check_navsim())
    assert finding.level == (OK if devkit else WARNING)
    assert ("but an unrelated project" in finding.what) is not devkit
    assert "navsim" not in sys.modules


def test_missing_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=1.26", "scipy>=99", "no-such-package>=1", "mypy>=99; extra == 'dev'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: needs)
    found = [str(f) for f in check_packages()]
    assert len(found) == 2
    assert "package scipy is" in found[0]
    assert "needed >=99 -> pip install 'scipy>=99'" in found[0]
    assert found[1] == "ERROR   package no-such-package is missing -> pip install 'no-such-package>=1'"
    monkeypatch.setattr(machine.metadata, "requires", lambda _: needs[:1])
    assert only(check_packages()).level == OK


def test_a_torchvision_of_another_torch_is_named_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version_of", {"torch": "2.5.1+cu124", "torchvision": "0.19.0"}.get)
    monkeypatch.setattr(machine.metadata, "requires", lambda _: ["numpy", "torch==2.4.0", "pillow>=5.3"])
    finding = only(check_torchvision())
    assert finding.level == ERROR
    assert "built for torch 2.4.0, found torch 2.5.1+cu124" in finding.what


def test_a_torchvision_that_crashes_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine._import_failure
    monkeypatch.setattr(machine, "_import_failure", lambda _: real("os; os.abort()"))
    finding = only(check_torchvision())
    assert finding.level == ERROR
    assert "cannot be imported" in finding.what
    assert real("json") is None
    assert real("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"


def test_python_out_of_range_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_python()).level == OK
    monkeypatch.setattr(machine, "PYTHONS", ((3, 98), (3, 99)))
    assert ">= 3.98 and < 3.99" in only(check_python()).remedy


def test_logs_camera_files_and_maps_are_counted(data: Path) -> None:
    found = {f.what: f.level for f in check_data(str(data), str(data / "maps"))}
    assert found[f"{data}/navsim_logs/mini: 2 logs, 1 with camera files"] == WARNING
    maps = next(what for what in found if "1 of 4 maps" in what)
    assert found[maps] == WARNING
    assert "us-nv-las-vegas-strip" in maps


def test_wrong_folders_are_errors_when_they_were_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_data(None, None)).level == WARNING  # nothing named, nothing there
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(data / "nowhere"))
    assert only(check_data(None, None)).level == ERROR
    levels = [f.level for f in check_environment()]
    assert levels == [ERROR, OK, OK]
    monkeypatch.setenv("NAVSIM_DEVKIT_ROOT", str(data))  # a folder, of something else
    devkit = list(check_environment())[-1]
    assert devkit.level == ERROR
    assert "holds no navsim/planning" in devkit.what
    assert devkit.remedy == "point it to the devkit's checkout"
    shutil.rmtree(data / "navsim_logs")
    assert "should hold navsim_logs" in only(check_data(str(data), None)).what


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(examine, "check_gpu", broken)
    monkeypatch.setattr(machine, "_import_failure", lambda _: None)
    findings = [str(f) for f in examine.examine()]
    assert any(line.startswith("ERROR   broken failed (RuntimeError: two lines)") for line in findings)
    assert all("\n" not in line for line in findings)
    assert any("bundled scenes equal" in line for line in findings)


def test_the_exit_status_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path) -> None:
    monkeypatch.setattr(machine, "_import_failure", lambda _: None)
    monkeypatch.setattr(examine, "check_packages", lambda: iter(()))
    tool.main(["--data-root", str(data), "--maps-root", str(data / "maps")])
    assert "0 broken" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        tool.main(["--data-root", str(data), "--maps-root", str(data / "maps"), "--split", "nope"])
    assert end.value.code == 1
    assert "ERROR   no split 'nope'" in capsys.readouterr().out
    (data / "bad.csv").write_text("name\nx\n")
    with pytest.raises(SystemExit):
        tool.main(["--data-root", str(data), "--maps-root", str(data / "maps"), "--split", str(data / "bad.csv")])
    assert f"ERROR   {data / 'bad.csv'}: no column 'token'; it has name\n" in capsys.readouterr().out


def test_every_byte_and_number_of_a_checkpoint_is_looked_at_and_written_down_anew(tmp_path: Path) -> None:
    weights = tmp_path / "model/model.safetensors"
    save_tensors(weights, {"a": torch.ones(4)})
    (tmp_path / "model/config.json").write_text("{}")
    assert only(check_checkpoint(str(tmp_path))).level == WARNING
    tool.main(["--write-manifest", str(tmp_path)])
    assert only(check_checkpoint(str(tmp_path))).level == OK
    save_tensors(weights, {"a": torch.zeros(4)})
    found = only(check_checkpoint(str(tmp_path)))
    assert found.level == ERROR and "model.safetensors is damaged" in found.what and "--write-manifest" in found.what
    save_tensors(weights, {"a": torch.full((4,), torch.nan)})
    tool.main(["--write-manifest", str(tmp_path)])
    assert "a holds NaN" in only(check_checkpoint(str(tmp_path))).what


@pytest.mark.parametrize("option", ["--write-manifest", "--checkpoint"])
def test_a_folder_that_is_no_checkpoint_gets_no_manifest(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if option == "--checkpoint":
        assert only(check_checkpoint(str(tmp_path))).level == ERROR
    else:
        with pytest.raises(SystemExit, match="no checkpoint, model or adapters"):
            tool.main([option, str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
