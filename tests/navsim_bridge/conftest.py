"""Seven scenes with official scores (tests/fixtures/world_v1_subset), unpacked in the official layout."""

import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from navsim_bridge.scene_filter import Split, load_split
from navsim_bridge.scenes import SceneRecord, select_scenes

FIXTURE = Path(__file__).parent.parent / "fixtures/world_v1_subset"
LOG = "2026.01.01.02.00.00_veh-92_00000_00040"
LOCATION, VERSION = "us-nv-las-vegas-strip", "9.15.1915"


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
    unpack("log.pkl.xz", root / f"navsim_logs/mini/{LOG}.pkl")
    unpack("map.gpkg.xz", root / f"maps/{LOCATION}/{VERSION}/map.gpkg")
    (root / "maps/nuplan-maps-v1.0.json").write_text(json.dumps({LOCATION: {"version": VERSION, "layers": {}}}))
    rules = {"num_history_frames": 4, "num_future_frames": 10, "frame_interval": 4, "has_route": True}
    split_file = root / "splits/small.yaml"
    split_file.parent.mkdir()
    split_file.write_text(yaml.safe_dump({"data_split": "mini", "scene_filter": rules}))
    split = load_split(split_file)
    return World(root, split_file, split, select_scenes(split, root))


def unpack(name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.decompress((FIXTURE / name).read_bytes()))


@pytest.fixture
def frame() -> Callable[..., dict[str, Any]]:
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
