"""What training is opened with says which scenes it learns from, and whether they are the same as before."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from dpvla.sensors import DEFAULT_CAMERAS, Sensors
from navsim_bridge.data.config import DataConfig
from navsim_bridge.data.training_data import TrainingData, open_training_data
from navsim_bridge.files.logs import log_path
from navsim_bridge.metric_cache import CacheError, MetricCache, build_metric_cache
from navsim_bridge.metrics.reward import MetricReward
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.sensors import camera_names
from tests.navsim_bridge.conftest import LOG, World

SENSORS = Sensors(width=32, height=16)
NAMES = camera_names(DEFAULT_CAMERAS)
Open = Callable[..., TrainingData]


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """Three copies of the world's log with tokens and images of their own, of which the split names a fourth."""
    root = tmp_path / "data"
    for name in ("a", "b", "c"):
        frames = pickle.loads(log_path(world.root, "mini", LOG).read_bytes())
        for frame in frames:
            frame["token"] = name + frame["token"][1:]
            for camera in NAMES:
                frame["cams"][camera]["data_path"] = f"{name}/{camera}/{frame['token']}.jpg"
        path = log_path(root, "mini", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(frames))
        for record in world.records:
            for camera in NAMES:
                image = root / f"sensor_blobs/mini/{name}/{camera}/{name}{record.token[1:]}.jpg"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 36), (90, 90, 90)).save(image)
    split = root / "splits/three.yaml"
    split.parent.mkdir()
    split.write_text("data_split: mini\nscene_filter: {frame_interval: 4, log_names: [a, b, c]}\n")
    return root


@pytest.fixture
def opened(data: Path, world: World) -> Open:
    def run(reward_on: Any = "validation", root: Path = data, **options: Any) -> TrainingData:
        given: Any = {"split": "three", "data_root": str(root), "maps_root": str(world.maps), "workers": 1, **options}
        config = DataConfig(**given)
        return open_training_data(config, SENSORS, Accelerator(cpu=True), reward_on=reward_on)

    return run


def test_the_start_of_training_names_the_data(opened: Open, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = opened(validation_logs=1)
    said = capsys.readouterr().out
    assert (
        f"data: three ({data}/navsim_logs/mini): 21 scenes; 14 of 2 logs to train on, 7 of 1 log to validate with"
        in said
    )
    assert "NOT the whole split" not in said
    assert found.coverage == Coverage.whole(21)


def test_training_on_a_part_says_so(opened: Open, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "splits/three.yaml").write_text(
        "data_split: mini\nscene_filter: {frame_interval: 4, log_names: [a, b, c, gone]}\n"
    )
    image = next((data / "sensor_blobs/mini/b/CAM_F0").iterdir())
    image.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="1 of 4 logs are not in"):
        opened()
    found = opened(allow_missing=True)
    assert found.coverage == Coverage(20, None, {"missing_logs": 1, "missing_images": 1})
    assert "NOT the whole split three: 1 log is not there, 1 scene lacks camera files" in capsys.readouterr().out
    assert image.stem not in found.source.tokens
    assert found.trained_on("imitation").scenes == 20


@pytest.mark.parametrize("reward_on", ["source", "validation"])
def test_scenes_that_a_given_cache_lacks_are_not_trained_on(
    opened: Open, data: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], reward_on: str
) -> None:
    kept = {"source": [0, 1, 2, 14], "validation": [14, 15]}[reward_on]
    tokens = opened().source.tokens
    split = Split("few", "mini", SceneFilter(frame_interval=4, tokens=tuple(tokens[i] for i in kept)))
    build_metric_cache(data, world.maps, split, tmp_path / "cache", progress=False)
    options: Any = {"validation_logs": 1, "metric_cache": str(tmp_path / "cache")}
    with pytest.raises(CacheError, match="scenes are not in the metric cache"):
        opened(reward_on, **options)
    found = opened(reward_on, **options, allow_missing=True)
    lacking = {"source": 11, "validation": 5}[reward_on]
    assert found.coverage == Coverage(21 - lacking, 21, {"missing_cached": lacking})
    assert found.validation is not None
    assert [len(found.source), len(found.validation)] == {"source": [3, 7], "validation": [14, 2]}[reward_on]
    assert f"NOT the whole split three: {lacking} scenes are not in the metric cache" in capsys.readouterr().out


def test_moved_data_keeps_its_fingerprint(opened: Open, data: Path, tmp_path: Path) -> None:
    first = opened(validation_logs=1).fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    for image in (moved / "sensor_blobs").rglob("*.jpg"):
        os.utime(image, (1, 1))
    assert opened(validation_logs=1, root=moved).fingerprint == first
    assert opened(validation_logs=1, workers=2).fingerprint == first


def test_changed_data_changes_the_fingerprint(opened: Open, data: Path) -> None:
    first, rewarded = opened().fingerprint, opened("source").fingerprint
    assert rewarded != first
    assert opened(validation_logs=2).fingerprint != first  # other scenes are learned from
    image = next((data / "sensor_blobs/mini/b/CAM_F0").iterdir())
    before = image.read_bytes()
    Image.new("RGB", (640, 360), (9, 90, 90)).save(image)
    assert opened().fingerprint != first
    image.write_bytes(before[:-4] + b"else")  # as long as before
    assert opened().fingerprint != first
    image.write_bytes(before)
    assert opened().fingerprint == first

    log = log_path(data, "mini", "a")
    frames = pickle.loads(log.read_bytes())
    boxes = frames[5]["anns"]["gt_boxes"]
    boxes[:, 0] += 1e-3  # read by the reward alone
    log.write_bytes(pickle.dumps(frames))
    assert opened().fingerprint == first
    assert opened("source").fingerprint != rewarded
    frames[5]["ego2global_translation"] = np.add(frames[5]["ego2global_translation"], (1e-3, 0, 0))
    log.write_bytes(pickle.dumps(frames))
    assert opened().fingerprint != first


def test_scenes_of_another_folder_are_trained_on_when_asked(opened: Open, data: Path) -> None:
    shutil.copytree(data / "navsim_logs/mini", data / "navsim_logs/other")
    shutil.copytree(data / "sensor_blobs/mini", data / "sensor_blobs/other")
    found = opened(data_split="other")
    assert {r.data_split for r in found.source.records} == {"other"}
    listed = data / "scores.csv"
    listed.write_text("token,score\n" + "\n".join(f"{t},1.0" for t in found.source.tokens[:5]) + "\naverage,1.0\n")
    with pytest.raises(ValueError, match="all of its 5 scenes are in mini and in other"):
        opened(split=str(listed))
    assert len(opened(split=str(listed), data_split="mini").source) == 5


def cache_of(found: TrainingData) -> MetricCache:
    assert isinstance(found.reward, MetricReward) and isinstance(found.reward.scenes, MetricCache)
    return found.reward.scenes


def test_lists_of_one_name_have_metric_caches_of_their_own(opened: Open, data: Path) -> None:
    tokens = opened().source.tokens
    lists = []
    for folder, some in (("x", tokens[:3]), ("y", tokens[3:5])):
        (data / folder).mkdir()
        lists.append(data / folder / "scores.csv")
        lists[-1].write_text("\n".join(("token", *some)))
    caches = [cache_of(opened("source", split=str(path))) for path in lists]
    assert [len(cache) for cache in caches] == [3, 2]
    assert all(cache.path.name.startswith("scores-") for cache in caches)
    caches[0].verify()  # the second has not replaced it
    assert cache_of(opened("source")).path == data / "metric_cache/three"


def test_too_many_validation_logs_are_refused_with_a_number_that_works(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"validation_logs is 8, but the scenes lie in 3 logs .*--validation-logs 1"):
        opened(validation_logs=8)
