"""A log with official scores (tests/fixtures/world_v1_log, world_v1_subset), unpacked in the official layout: seven
scenes from its middle for most tests, and all of it with the official metric cache."""

import io
import json
import lzma
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dpvla.algorithms.dipole import ADAPTERS
from dpvla.models import DPVLA, DPVLAConfig
from navsim_bridge.agents import human
from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from tests.navsim_bridge.two_stage_world import TwoStageWorld, write_two_stage_world
from tests.paths import FIXTURES

FIXTURE = FIXTURES / "world_v1_subset"
WHOLE_LOG = FIXTURE.parent / "world_v1_log"
LOG = "2026.01.01.02.00.00_veh-92_00000_00040"
SEVEN_SCENES = slice(24, 62)
"""Frames of the log that give seven scenes."""
LOCATION, VERSION = "us-nv-las-vegas-strip", "9.15.1915"


MakeFrame = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class World:
    root: Path
    split_file: Path
    split: Split
    records: list[SceneRecord]

    @property
    def maps(self) -> Path:
        return self.root / "maps"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_log(root, SEVEN_SCENES)
    write_map(root / "maps")
    rules = {"num_history_frames": 4, "num_future_frames": 10, "frame_interval": 4, "has_route": True}
    split_file = root / "splits/small.yaml"
    split_file.parent.mkdir()
    split_file.write_text(yaml.safe_dump({"data_split": "mini", "scene_filter": rules}))
    split = load_split(split_file)
    return World(root, split_file, split, select_scenes(split, root))


@pytest.fixture(scope="session")
def checkpoint(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random policy with adapters, and images to look at."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    policy = DPVLA.from_config(DPVLAConfig.tiny())
    plans = torch.from_numpy(human(world.records)).float()
    status = torch.tensor(np.array([[*r.velocity, *r.acceleration] for r in world.records]), dtype=torch.float32)
    policy.plan_coding.fit(plans, status)
    policy.add_adapters(ADAPTERS, 4, 4)
    with torch.no_grad():
        for parameter in policy.head.parameters():  # away from its zero-initialized gates
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save_pretrained(folder / "model")
    policy.save_adapters(folder / "adapters")
    for i, record in enumerate(world.records):
        for path in record.cameras.values():
            (folder / "sensor_blobs/mini" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (192, 108), (20 * i, 100, 100)).save(folder / "sensor_blobs/mini" / path)
    return folder


@pytest.fixture(scope="session")
def official_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole log in the layout that `benchmarks/world_parity.py` reads: 17 scenes of v1, 40 of v2."""
    root = tmp_path_factory.mktemp("official_world")
    write_log(root / "data", slice(None))
    write_map(root / "data/maps")
    for file in (*WHOLE_LOG.glob("*.csv"), *WHOLE_LOG.glob("*.yaml")):
        shutil.copy(file, root)
    with tarfile.open(fileobj=io.BytesIO(unpacked(WHOLE_LOG / "official_metric_cache.tar.xz"))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            path = root / f"official_metric_cache/{LOG}/unknown/{Path(member.name).stem}/metric_cache.pkl"
            path.parent.mkdir(parents=True)
            path.write_bytes(lzma.compress(content.read(), preset=0))  # as the devkit writes it
    return root


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> TwoStageWorld:
    """One group of a two-stage split: two recorded scenes and six synthetic ones. Not to be changed."""
    return write_two_stage_world(tmp_path_factory.mktemp("two_stages"))


def unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def write_log(root: Path, frames: slice) -> None:
    path = root / f"navsim_logs/mini/{LOG}.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(pickle.loads(unpacked(WHOLE_LOG / "log.pkl.xz"))[frames]))


def write_map(root: Path) -> None:
    path = root / LOCATION / VERSION / "map.gpkg"
    path.parent.mkdir(parents=True)
    path.write_bytes(unpacked(FIXTURE / "map.gpkg.xz"))
    (root / "nuplan-maps-v1.0.json").write_text(json.dumps({LOCATION: {"version": VERSION, "layers": {}}}))


@pytest.fixture
def frame() -> MakeFrame:
    """A minimal log frame; keywords replace its values."""

    def make(index: int, **values: Any) -> dict[str, Any]:
        return {
            "token": f"{index:016x}",
            "timestamp": 1_000_000 + 500_000 * index,
            "map_location": LOCATION,
            "roadblock_ids": ["1"],
            "ego2global_translation": np.array([10.0 * index, 0.0, 0.0]),
            "ego2global_rotation": np.array([1.0, 0.0, 0.0, 0.0]),
            "ego_dynamic_state": [20.0, 0.0, 0.0, 0.0],
            "driving_command": np.array([0, 1, 0, 0]),
            "cams": {},
            **values,
        }

    return make
