"""A group of a two-stage split with official caches (tests/fixtures/two_stage_v1), unpacked in the official layout."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from navsim_bridge.splits.scene_filter import Split, load_split
from navsim_bridge.splits.scenes import SceneRecord, find_scenes
from tests.paths import FIXTURES

FIXTURE = FIXTURES / "two_stage_v1"
LOG = "2026.01.14.01.00.00_veh-97_00000_00024"
LOCATION, VERSION = "us-pa-pittsburgh-hazelwood", "9.17.1937"


@dataclass(frozen=True)
class TwoStageWorld:
    """A folder as `benchmarks/two_stage_parity.py` takes it, but for what the devkit scored."""

    root: Path
    split: Split
    records: list[SceneRecord]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def maps(self) -> Path:
        return self.root / "data/maps"

    @property
    def pickles(self) -> Path:
        return self.root / "data/two_stage/synthetic_scene_pickles"

    @property
    def official_cache(self) -> Path:
        return self.root / "metric_cache"

    @property
    def split_file(self) -> Path:
        return self.root / "config/two_stage.yaml"


def write_two_stage_world(root: Path) -> TwoStageWorld:
    """Unpack the fixture below ``root``."""
    _write(root / f"data/navsim_logs/mini/{LOG}.pkl", _unpacked("log.pkl.xz"))
    _write(root / f"data/maps/{LOCATION}/{VERSION}/map.gpkg", _unpacked("map.gpkg.xz"))
    _write(root / "data/maps/nuplan-maps-v1.0.json", json.dumps({LOCATION: {"version": VERSION}}).encode())
    for name, content in _members("scenes.tar.xz"):
        _write(root / f"data/two_stage/synthetic_scene_pickles/{name}.pkl", content)
    for name, content in _members("official_metric_cache.tar.xz"):
        packed = lzma.compress(content, preset=0)  # as the devkit writes it
        _write(root / f"metric_cache/{LOG}/unknown/{name}/metric_cache.pkl", packed)
    (root / "config/scene_filter").mkdir(parents=True)
    for file in ("two_stage.yaml", "scene_filter/two_stage.yaml"):
        shutil.copy(FIXTURE / file, root / "config" / file)
    split = load_split(root / "config/two_stage.yaml", root / "data")
    return TwoStageWorld(root, split, find_scenes(split, root / "data").records)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _unpacked(name: str) -> bytes:
    return lzma.decompress((FIXTURE / name).read_bytes())


def _members(name: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(_unpacked(name))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            yield Path(member.name).stem, content.read()
