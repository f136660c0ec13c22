"""An image store is what decoding gives, goes on where it was stopped, and is refused where it is of something else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from dpvla import kept_open
from dpvla.sensors import DEFAULT_CAMERAS, Sensors
from navsim_bridge.data import image_store, images
from navsim_bridge.data.config import DataConfig
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.data.image_store import MANIFEST, ImageStore, ImageStoreError, pack_images
from navsim_bridge.data.training_data import open_training_data
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names
from tests.navsim_bridge.conftest import World
from tests.paths import OPEN_FILES
from tools import pack_images as tool

SENSORS = Sensors(width=32, height=16)
SCENE = int(np.prod(SENSORS.shape))


def image_of(root: Path, record: SceneRecord, camera: str = "CAM_F0") -> Path:
    return root / "sensor_blobs/mini" / record.cameras[camera]


@pytest.fixture
def root(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world with an image of its own for every camera of its seven scenes; shards hold three scenes."""
    monkeypatch.setattr(image_store, "SHARD_BYTES", 3 * SCENE)
    shutil.copytree(world.root / "navsim_logs", tmp_path / "navsim_logs")
    rng = np.random.default_rng(0)
    for record in world.records:
        for camera in camera_names(DEFAULT_CAMERAS):
            path = image_of(tmp_path, record, camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path


def pack(world: World, root: Path, records: list[SceneRecord] | None = None, split: str = "small") -> ImageStore:
    return pack_images(world.records if records is None else records, root, SENSORS, root / "store", split)


def test_a_store_gives_what_decoding_gives(world: World, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoded = NavsimDataset(world.records, root, SENSORS).batch(range(7)).images
    store = pack(world, root)
    assert capsys.readouterr().out == f"image store: 7 scenes at 32x16, 0 MB, {root}/store\n"
    assert [scenes for _, scenes, _ in store.shards] == [3, 3, 1]
    store.check()
    dataset = NavsimDataset(world.records, root, SENSORS)
    dataset.use_store(store)
    assert torch.equal(dataset.batch([6, 0, 3, 2, 2]).images, decoded[[6, 0, 3, 2, 2]])
    assert dataset.batch([]).images.shape == (0, *SENSORS.shape)
    part = NavsimDataset([world.records[5], world.records[1]], root, SENSORS)
    part.use_store(store)
    assert torch.equal(part.batch([0, 1]).images, decoded[[5, 1]])
    copied = pickle.loads(pickle.dumps(dataset))  # as worker processes of a data loader get it
    assert len(pickle.dumps(dataset)) < len(pickle.dumps(NavsimDataset(world.records, root, SENSORS))) + 4000
    assert torch.equal(copied.batch([4]).images, decoded[[4]])


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="there is no list of open files")
def test_the_shards_that_were_read_last_stay_open(world: World, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_open, "most_open", lambda: 2)
    store = pack(world, root)
    before = len(list(OPEN_FILES.iterdir()))
    images = [store.read(np.arange(7)) for _ in range(2)]
    assert len(list(OPEN_FILES.iterdir())) == before + 2 < before + len(store.shards)
    assert (images[0] == images[1]).all()


def test_packing_that_was_stopped_goes_on(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = image_of(root, world.records[4])
    good = bad.read_bytes()
    bad.write_bytes(b"no image".ljust(len(good)))
    with pytest.raises(ValueError, match=rf"^{bad}: not a readable image .* Get the file again"):
        pack(world, root)
    (done,) = (root / "store").glob("images-*.npy")
    assert not (root / "store" / MANIFEST).exists()
    with pytest.raises(ImageStoreError, match=r"store holds no whole image store .*go on, with tools/pack_images.py"):
        ImageStore(root / "store")
    bad.write_bytes(good)
    (root / "store/.images-00001-x.npy.tmp").write_bytes(b"of a process that was killed")
    before = done.stat().st_mtime_ns
    read: list[Path] = []

    def reading(paths: list[Path], *options: Any) -> images.Pixels:
        read.extend(paths)
        return images.read_images(paths, *options)

    monkeypatch.setattr(image_store, "read_images", reading)
    capsys.readouterr()
    pack(world, root).check()
    assert "(1 of 3 shards are there)" in capsys.readouterr().out
    assert len(read) == 3 * 4 and done.stat().st_mtime_ns == before
    assert sorted(p.suffix for p in (root / "store").iterdir() if p.name != ".lock") == [".json", *[".npy"] * 3]


def test_a_changed_image_is_refused_and_packed_again_alone(world: World, root: Path) -> None:
    store = pack(world, root)
    names = [name for name, _, _ in store.shards]
    Image.new("RGB", (64, 36), (9, 9, 9)).save(image_of(root, world.records[6]))
    with pytest.raises(ImageStoreError, match=r"files of 1 of 7 scenes are others .* first of scene .*pack_images"):
        NavsimDataset(world.records, root, SENSORS).use_store(store)
    again = pack(world, root)
    assert [name for name, _, _ in again.shards][:2] == names[:2]
    assert names[2] not in {path.name for path in (root / "store").iterdir()}
    dataset = NavsimDataset(world.records, root, SENSORS)
    dataset.use_store(again)
    assert int(dataset.batch([6]).images[0, 1].float().mean()) == 9


@pytest.mark.parametrize(
    ("sensors", "split", "message"),
    [
        (Sensors(width=64, height=32), "small", "images of 32x16, not 64x32: pack one beside it"),
        (Sensors(("front",), 32, 16), "small", "cameras front_left, front, front_right, not front: pack"),
        (Sensors(("front",), 64, 32), "other", "split small, not other; of images of 32x16, not 64x32; of cameras"),
    ],
)
def test_a_store_of_something_else_is_refused_in_one_line(
    world: World, root: Path, sensors: Sensors, split: str, message: str
) -> None:
    pack(world, root)
    with pytest.raises(ImageStoreError, match=f"store is an image store of {message}"):
        pack_images(world.records, root, sensors, root / "store", split)
    with pytest.raises(ImageStoreError, match="store is an image store of "):
        NavsimDataset(world.records, root, sensors).use_store(ImageStore(root / "store"))


def test_scenes_that_a_store_lacks_are_counted(world: World, root: Path) -> None:
    store = pack(world, root, world.records[:5])
    first = world.records[5].token
    with pytest.raises(ImageStoreError, match=f"of split small: 2 of 7 scenes are not among them, first {first}"):
        NavsimDataset(world.records, root, SENSORS).use_store(store)


def test_damage_is_found(world: World, root: Path) -> None:
    store = pack(world, root)
    path = root / "store" / store.shards[1][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ImageStoreError, match=f"{path} is damaged: delete it, and the same tools/pack_images.py"):
        ImageStore(root / "store").check()
    path.write_bytes(whole[:-500])
    with pytest.raises(ImageStoreError, match=rf"{path} has {len(whole) - 500} bytes, not {3 * SCENE} and a header"):
        ImageStore(root / "store")
    path.write_bytes(whole[::-1])
    with pytest.raises(ImageStoreError, match=f"{path} .*: delete it, and"):
        ImageStore(root / "store").read(np.array([3]))
    path.unlink()
    with pytest.raises(ImageStoreError, match=f"{path} is missing: the same tools/pack_images.py --split small"):
        ImageStore(root / "store")
    pack(world, root).check()


@pytest.mark.parametrize("content", [{}, {"format": 2}, {"format": 1, "split": "x", "cameras": 3}])
def test_another_manifest_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ImageStoreError, match=f"^{tmp_path / MANIFEST} (is no manifest|has format 2)"):
        ImageStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": []},
        {"shards": [], "scenes": []},
        {"shards": 3},
        {"scenes": {}},
        {"width": 32.0},
        {"cameras": ["front", "front_left", "front_right"]},
        "[]",
        "{",
        "elsewhere",
        "other order",
        "twice",
    ],
)
def test_a_manifest_that_does_not_fit_its_shards_is_not_believed(
    world: World, root: Path, change: dict[str, object] | str
) -> None:
    pack(world, root).check()
    path = root / "store" / MANIFEST
    content = json.loads(path.read_text())
    if isinstance(change, dict):
        content |= change
    elif change == "elsewhere":
        content["shards"][0]["file"] = f"../store/{content['shards'][0]['file']}"
    elif change == "other order":
        content["scenes"].reverse()
    elif change == "twice":
        content["scenes"][1] = content["scenes"][0]
    path.write_text(change if change in ("[]", "{") else json.dumps(content))
    with pytest.raises(ImageStoreError, match=f"^{path} is no manifest .*; delete it, and pack again"):
        ImageStore(root / "store")
    path.unlink()
    pack(world, root).check()


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "archive"])
def test_what_stands_in_the_place_of_a_shard_is_refused(world: World, root: Path, kind: str) -> None:
    path = root / "store" / pack(world, root).shards[0][0]
    size = path.stat().st_size
    path.rename(root / "elsewhere.npy")
    if kind == "link":
        path.symlink_to(root / "elsewhere.npy")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"PK\x03\x04".ljust(size, b"\0"))  # numpy would look into it
    with pytest.raises(ImageStoreError, match=f"{path}"):
        ImageStore(root / "store").read(np.array([0]))


def test_a_part_of_a_split_does_not_replace_what_was_packed_of_it(world: World, root: Path) -> None:
    before = pack(world, root).sources
    part = Coverage.whole(7).without("missing_images", 2)
    with pytest.raises(ImageStoreError, match="2 of which would be lost: now it would be 5 of 7 scenes"):
        pack_images(world.records[:5], root, SENSORS, root / "store", "small", coverage=part)
    store = ImageStore(root / "store")
    store.check()
    assert store.sources == before


def test_packing_again_does_not_take_a_damaged_shard_for_what_was_written(world: World, root: Path) -> None:
    store = pack(world, root)
    path = root / "store" / store.shards[1][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ImageStoreError, match=f"{path} is damaged: delete it, and the same command packs it again"):
        pack(world, root)
    path.unlink()
    pack(world, root).check()
    assert path.read_bytes() == whole


def test_too_little_room_is_told_before_anything_is_written(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=7 * SCENE))
    with pytest.raises(OSError, match=r"store has 0.0 MB free, the images need .* MB and 67 MB to spare: make room"):
        pack(world, root)
    assert not list((root / "store").glob("images-*"))


def test_a_full_disk_leaves_what_is_done_and_packing_goes_on(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[Path]] = []

    def full(paths: list[Path], *options: Any) -> images.Pixels:
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(paths)
        return images.read_images(paths, *options)

    with monkeypatch.context() as patched:
        patched.setattr(image_store, "read_images", full)
        with pytest.raises(OSError, match="No space left"):
            pack(world, root)
    assert [path.suffix for path in (root / "store").glob("*images-*")] == [".npy"]
    assert len(pack(world, root).shards) == 3


def test_a_cache_of_a_former_version_is_still_read(world: World, root: Path) -> None:
    dataset = NavsimDataset(world.records, root, SENSORS)
    path = dataset.cache_images(root / "cache")
    assert path.is_dir()
    shutil.rmtree(path)
    former = np.full((7, *SENSORS.shape), 7, dtype=np.uint8)
    np.save(path.with_suffix(".npy"), former)
    assert dataset.cache_images(root / "cache") == path.with_suffix(".npy")
    assert (NavsimDataset(world.records, root, SENSORS).cache_images(root / "cache")) == path.with_suffix(".npy")
    assert (dataset.batch([2, 3]).images == 7).all()


def test_the_tool_packs_checks_and_training_reads(
    world: World, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--split", str(world.split_file), "--data-root", str(root), "--out", str(root / "packed")]
    tool.main([*options, "--size", "32x16", "--workers", "2"])
    assert "7 scenes of small in" in capsys.readouterr().out
    tool.main(["--check", "--out", str(root / "packed")])
    assert "are what was written" in capsys.readouterr().out
    config = DataConfig(
        split=str(world.split_file), data_root=str(root), maps_root=str(world.maps), workers=1,
        image_store=str(root / "packed"), image_cache=str(root / "unused"),
    )  # fmt: skip
    monkeypatch.setattr("navsim_bridge.data.dataset.read_images", lambda *_: pytest.fail("an image was decoded"))
    data = open_training_data(config, SENSORS, Accelerator(cpu=True), reward_on="validation")
    assert data.source.batch([0, 6]).images.float().std() > 20
    assert not (root / "unused").exists()
    with pytest.raises(ImageStoreError, match="images of 32x16, not 64x32"):
        open_training_data(config, Sensors(width=64, height=32), Accelerator(cpu=True), reward_on="validation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "768"], "size must be WIDTHxHEIGHT, such as 768x384, found '768'"),
        (["--size", "0x384"], "size must be WIDTHxHEIGHT"),
        ([], "--split is needed"),
        (["--check", "--split", "x"], "--split belongs to packing, not to --check"),
        (["--split", "x", "--cameras", "roof"], "NAVSIM has no camera 'roof'"),
    ],
)
def test_the_tool_refuses_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        tool.main([*options, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err + (str(end.value.code) if isinstance(end.value.code, str) else "")
    assert message in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
