"""The plug-in fits the devkit's environment: Python 3.9, numpy and the standard library, its configuration found."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib
import yaml

import dpvla
import dpvla_devkit
from dpvla_devkit import address, protocol
from navsim_bridge.files.frames import ALL_CAMERAS
from tests.dpvla_devkit.conftest import Devkit
from tests.paths import ROOT

FOLDER = ROOT / "dpvla_devkit"
FILES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_file_is_python_3_9_and_imports_nothing_that_the_devkit_has_not(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    lines = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in lines if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in lines if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names}
    assert others <= {"numpy", "dpvla_devkit"} | ({"navsim"} if path.name == "agent.py" else set())
    assert "__future__" in names or not any(isinstance(node, ast.AnnAssign | ast.arg) for node in ast.walk(tree))


def test_the_rest_is_imported_without_the_devkit() -> None:
    code = "import sys, dpvla_devkit, dpvla_devkit.served_policy; print(sorted({*sys.modules} & {'navsim', 'torch'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_hydras_configuration_makes_the_agent_with_its_own_defaults(devkit: Devkit) -> None:
    text = (FOLDER / "config/agent/dpvla.yaml").read_text()
    config = yaml.safe_load(text)
    assert (config.pop("_target_"), config.pop("_convert_")) == ("dpvla_devkit.Agent", "all")
    parameters = inspect.signature(devkit.make).parameters
    assert list(config) == list(parameters)
    for name in ("address", "timeout", "patience"):
        assert config[name] == parameters[name].default
    sampling = config["trajectory_sampling"]
    assert sampling["time_horizon"] / sampling["interval_length"] == protocol.POSES
    assert config["address"] == address.DEFAULT
    assert (FOLDER / "config/__init__.py").is_file()  # pkg:// finds packages


def test_both_environments_speak_of_the_same_things() -> None:
    assert set(protocol.CAMERAS) == set(ALL_CAMERAS)
    assert dpvla_devkit.__version__ == dpvla.__version__
    with pytest.raises(AttributeError, match="has no attribute 'Agents'"):
        _ = dpvla_devkit.Agents


def test_the_wheel_holds_code_and_configuration_and_asks_for_numpy_alone(tmp_path: Path) -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == ["numpy"] and project["requires-python"] == ">=3.9"
    source = tmp_path / "dpvla_devkit"
    for path in (*FILES, FOLDER / "pyproject.toml", FOLDER / "config/agent/dpvla.yaml"):
        copy = source / path.relative_to(FOLDER)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("dpvla_devkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if "dist-info" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert held == {f"dpvla_devkit/{path.relative_to(FOLDER).as_posix()}" for path in FILES} | {
        "dpvla_devkit/config/agent/dpvla.yaml"
    }
    assert re.findall("^Requires-Dist: (.*)$", metadata, re.MULTILINE) == ["numpy"]
    assert f"\nVersion: {dpvla.__version__}\n" in metadata
