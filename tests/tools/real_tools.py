"""Calling the real tools at toy size."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from tests.paths import ROOT

TOY_WORLD = ("--num-train-logs", "2", "--num-test-logs", "1", "--log-seconds", "24", "--image-width", "128",
             "--image-height", "72", "--workers", "1")  # fmt: skip


def run(tool: str, *options: str, cwd: Path, launcher: tuple[str, ...] = (), status: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENSCENE", "NUPLAN", "NAVSIM"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(ROOT / "tools" / tool), *options]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == status, (
        f"{tool} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout + done.stderr


def toy_recipe(name: str, path: Path, **groups: dict[str, Any]) -> None:
    """A shipped recipe with some values made small."""
    recipe = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    recipe |= {"validation_logs": 1} if "validation_logs" in recipe else {}
    for group, values in groups.items():
        recipe[group] |= values
    path.write_text(yaml.safe_dump(recipe))


PRETRAIN = {
    "split": "navtrain",
    "model": {
        "encoder": {"name": "timm:test_convnext", "pretrained": False, "image_width": 96, "image_height": 48,
                    "stride": 12, "width": 96,
                    "timm_options": {"patch_size": 6, "dims": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}},
        "head": {"preset": "tiny"},
    },
    "imitation": {"epochs": 2, "batch_size": 4},
    "loop": {"lr": 1e-3, "lr_schedule": "cosine", "save_every": 2, "log_every": 1, "trackers": []},
}  # fmt: skip
"""A recipe that takes seconds."""


def call(tool: str, *options: str, cwd: Path, status: tuple[int, ...] = (0,)) -> str:
    """A tool's ``main`` in this process, which spares its imports; returns what it said."""
    path = ROOT / "tools" / tool
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    said, ended, before = io.StringIO(), 0, Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            spec.loader.exec_module(module)
            module.main(list(options))
    except SystemExit as stop:
        ended = stop.code if isinstance(stop.code, int) else 1
        said.write(str(stop.code))
    finally:
        os.chdir(before)
    assert ended in status, said.getvalue()[-3000:]
    return said.getvalue()


def refused(tool: str, *options: str, cwd: Path) -> str:
    """What a tool says that must end with an error."""
    text = call(tool, *options, cwd=cwd, status=(1, 2))
    assert "Traceback" not in text
    return text
