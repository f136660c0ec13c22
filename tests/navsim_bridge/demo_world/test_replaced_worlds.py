"""A world that another is to replace, killed anywhere; and marks that say nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from navsim_bridge.demo_world import DemoWorldConfig, OtherWorldError
from navsim_bridge.demo_world.build import CONTENTS, FINISHED, STARTED, _log_path, _prepare_root, log_names
from navsim_bridge.demo_world.config import LOCATIONS


def world(root: Path, **settings: Any) -> DemoWorldConfig:
    return DemoWorldConfig(root=str(root), quiet=True, **settings)


def finished(root: Path) -> DemoWorldConfig:
    """A finished world, as far as its marks and the names of its files go."""
    config = world(root, seed=1)
    files = [root / name / "file" for name in CONTENTS]
    files += [root / "maps" / location.name / "1" / "map.gpkg" for location in LOCATIONS]
    files += [_log_path(config, log) for log in log_names(config)]
    for path in (*files, root / "splits" / "navtrain.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    summary = {"settings": config.identity(), "logs": 1, "images": 2, "splits": {"navtrain": 3}}
    (root / FINISHED).write_text(json.dumps(summary))
    return config


def test_nobody_takes_what_is_half_removed_for_a_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, removed = finished(tmp_path), shutil.rmtree

    def stop(path: Path, **options: Any) -> None:
        if path.name == "sensor_blobs":
            raise KeyboardInterrupt
        removed(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            _prepare_root(world(tmp_path, seed=2, overwrite=True), tmp_path)
    assert (tmp_path / "sensor_blobs/file").exists()
    assert _prepare_root(former, tmp_path) is None, "it is to be made again"
    assert not [*tmp_path.iterdir()]


def test_a_kill_between_the_last_two_steps_leaves_no_mark_behind(tmp_path: Path) -> None:
    config = finished(tmp_path)
    (tmp_path / STARTED).write_text(json.dumps(config.identity()))
    found = _prepare_root(config, tmp_path)
    assert found is not None and found["images"] == 2
    assert not (tmp_path / STARTED).exists()


@pytest.mark.parametrize("lost", ["maps/*/*/map.gpkg", "navsim_logs/test/*.pkl", "splits/navtrain.yaml"])
def test_a_finished_world_that_lost_something_is_made_whole_again(lost: str, tmp_path: Path) -> None:
    config = finished(tmp_path)
    assert _prepare_root(config, tmp_path) is not None, "as it is, nothing is to be done"
    next(tmp_path.glob(lost)).unlink()
    assert _prepare_root(config, tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 3}', '{"settings": {}, "logs": "x"}', "[" * 100_000])
def test_a_mark_that_says_nothing_is_named_and_replaced_when_asked(content: str, tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / FINISHED).write_text(content)
    with pytest.raises(OtherWorldError, match=r"world\.json.*choose another root or pass --overwrite"):
        _prepare_root(world(tmp_path), tmp_path)
    assert _prepare_root(world(tmp_path, overwrite=True), tmp_path) is None
    assert not [*tmp_path.iterdir()]
