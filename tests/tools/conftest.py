"""A toy world with a pretrained policy, made once for all tests of the tools; they write beside it, not into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.tools.real_tools import PRETRAIN, TOY_WORLD, call


@pytest.fixture(scope="session", autouse=True)
def no_data_roots() -> Iterator[None]:
    kept = {
        name: os.environ.pop(name, None) for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT", "NAVSIM_DEVKIT_ROOT")
    }
    yield
    os.environ.update({name: value for name, value in kept.items() if value is not None})


@pytest.fixture(scope="session")
def made_toy_place(tmp_path_factory: pytest.TempPathFactory, no_data_roots: None) -> Path:
    folder = tmp_path_factory.mktemp("made_toy_place")
    call("make_demo_world.py", *TOY_WORLD, cwd=folder)
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN))
    call("pretrain.py", "--config", "pretrain.yaml", "--out", "runs/pre", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def toy_place(made_toy_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a toy world, the recipe pretrain.yaml and its run runs/pre.

    Each file of tests has its own, so that none finds another's runs.
    """
    return shutil.copytree(made_toy_place, tmp_path_factory.mktemp("toy_place"), dirs_exist_ok=True)
