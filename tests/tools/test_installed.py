"""What an installation without the checkout has: all programs as sub-commands, recipes, bundled scenes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel would be unpacked into."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    command += ["build", "--build-base", str(folder / "build"), "--build-lib", str(folder / "lib")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "lib"


def dpvla(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``dpvla WORDS`` from an empty directory."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENSCENE", "NUPLAN", "NAVSIM"))}
    environment |= {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "DPVLA_SCORER": "torch"}
    command = [sys.executable, "-m", "dpvla_tools", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


def test_every_program_is_a_sub_command(installed: Path, tmp_path: Path) -> None:
    told = dpvla(installed, tmp_path).stdout
    programs = {path.stem.replace("_", "-") for path in (ROOT / "tools").glob("[a-z]*.py")}
    assert programs == {line.split()[0] for line in told.splitlines()[2:]}
    assert max(map(len, told.splitlines())) <= 160


def test_the_bundled_scenes_and_recipes_are_there(installed: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert files == {
        str(p.relative_to(installed / "dpvla_configs")) for p in installed.rglob("dpvla_configs/**/*.yaml")
    }
    found = dpvla(installed, tmp_path, "doctor")
    assert found.returncode == 0 and "504 sub-scores of 3 bundled scenes equal the official ones" in found.stdout
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_found_by_its_name(installed: Path, tmp_path: Path) -> None:
    found = dpvla(installed, tmp_path, "pretrain", "--config", "pretrain_navsim", "--plan", "--imitation.epochs", "-1")
    assert found.returncode == 2 and "imitation.epochs" in found.stderr
    missing = dpvla(installed, tmp_path, "pretrain", "--config", "pretrain_demoo")
    assert (
        missing.returncode == 2 and "--config pretrain_demo " in missing.stderr and "\n" not in missing.stderr.strip()
    )


def test_an_unknown_program_is_refused_with_the_nearest(installed: Path, tmp_path: Path) -> None:
    found = dpvla(installed, tmp_path, "evaluat")
    assert found.returncode == 2 and "nearest: evaluate" in found.stderr
