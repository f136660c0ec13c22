from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpvla.sensors import DEFAULT_CAMERAS, Sensors
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.data.images import read_image
from navsim_bridge.splits.sensors import camera_names
from tests.navsim_bridge.conftest import World

SENSORS = Sensors(width=96, height=48)
NAMES = camera_names(DEFAULT_CAMERAS)
FULL = (320, 180)


@pytest.fixture(scope="module")
def with_images(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's records with small images, each camera of each scene in its own gray."""
    root = tmp_path_factory.mktemp("images")
    for i, record in enumerate(world.records):
        for j, camera in enumerate(NAMES):
            path = root / "sensor_blobs/mini" / record.cameras[camera]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", FULL, (gray(i, j),) * 3).save(path, quality=95)
    return root


def gray(scene: int, camera: int) -> int:
    return 20 + 30 * scene + 10 * camera


def test_a_batch_holds_what_the_records_say(world: World, with_images: Path) -> None:
    dataset = NavsimDataset(world.records, with_images, SENSORS)
    batch = dataset.batch([4, 1])
    records = [world.records[4], world.records[1]]
    assert batch.plan is not None
    assert batch.tokens == tuple(r.token for r in records)
    assert batch.images.shape == (2, 3, 3, 48, 96)
    assert batch.images.dtype == torch.uint8
    for i, scene in enumerate((4, 1)):
        for camera in range(3):  # front-left, front, front-right
            assert abs(batch.images[i, camera].float().mean() - gray(scene, camera)) < 2
        np.testing.assert_array_equal(batch.plan[i], records[i].plan().astype(np.float32))
        np.testing.assert_array_equal(batch.ego_status[i, :2], records[i].velocity.astype(np.float32))
    assert batch.command.tolist() == [r.command for r in records]
    np.testing.assert_array_equal(dataset.plans()[[4, 1]], batch.plan)


def test_the_cameras_are_those_of_the_encoder_in_its_order(world: World, with_images: Path, tmp_path: Path) -> None:
    sensors = Sensors(("front_right", "front"), 96, 48)
    dataset = NavsimDataset(world.records, with_images, sensors)
    images = dataset.batch([4, 1]).images
    assert images.shape == (2, *sensors.shape) == (2, 2, 3, 48, 96)
    for i, scene in enumerate((4, 1)):
        for place, camera in enumerate((2, 1)):
            assert abs(images[i, place].float().mean() - gray(scene, camera)) < 2
    paths = {dataset.cache_images(tmp_path)}
    assert torch.equal(dataset.batch([4, 1]).images, images)
    for cameras in (("front", "front_right"), ("front",), DEFAULT_CAMERAS):
        paths.add(NavsimDataset(world.records, with_images, Sensors(cameras, 96, 48)).cache_images(tmp_path))
    assert len(paths) == 4


def test_a_camera_that_navsim_does_not_have_is_refused_with_the_list(world: World, with_images: Path) -> None:
    with pytest.raises(ValueError, match=r"NAVSIM has no camera 'roof'; choose from front \(CAM_F0\), .*rear"):
        NavsimDataset(world.records, with_images, Sensors(("front", "roof")))


def test_history_ends_half_a_second_ago_in_the_ego_frame(world: World, with_images: Path) -> None:
    dataset = NavsimDataset(world.records, with_images, SENSORS)
    record = world.records[0]
    history = dataset[0].history[0].numpy()
    cos, sin = np.cos(record.pose[2]), np.sin(record.pose[2])
    for k in range(3):
        difference = record.poses[k] - record.pose
        expected = [cos * difference[0] + sin * difference[1], cos * difference[1] - sin * difference[0]]
        np.testing.assert_allclose(history[k, :2], expected, atol=1e-5)


def test_an_item_is_a_batch_of_one(world: World, with_images: Path) -> None:
    dataset = NavsimDataset(world.records, with_images, SENSORS)
    for index, row in ((2, 2), (-1, 6)):
        item, batch = dataset[index], dataset.batch([row])
        assert item.tokens == batch.tokens
        for name in ("images", "command", "ego_status", "history", "plan"):
            assert torch.equal(getattr(item, name), getattr(batch, name))
    with pytest.raises(IndexError):
        dataset[7]


def test_cached_images_equal_decoded_ones(
    world: World, with_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = NavsimDataset(world.records, with_images, SENSORS, workers=1)
    decoded = dataset.batch(range(7)).images
    path = dataset.cache_images(tmp_path)
    assert "image cache: 7 scenes at 96x48, 0 MB" in capsys.readouterr().out
    assert torch.equal(dataset.batch(range(7)).images, decoded)
    assert torch.equal(dataset.batch([5, 0]).images, decoded[[5, 0]])
    assert dataset.cache_images(tmp_path) == path
    assert capsys.readouterr().out == ""
    assert NavsimDataset(world.records[1:], with_images, SENSORS).cache_images(tmp_path) != path


def test_a_changed_image_makes_another_cache(world: World, with_images: Path, tmp_path: Path) -> None:
    records = world.records[:1]
    first = NavsimDataset(records, with_images, SENSORS).cache_images(tmp_path)
    image = with_images / "sensor_blobs/mini" / records[0].cameras["CAM_F0"]
    Image.new("RGB", FULL, (200,) * 3).save(image, quality=80)
    assert NavsimDataset(records, with_images, SENSORS).cache_images(tmp_path) != first
    Image.new("RGB", FULL, (gray(0, 1),) * 3).save(image, quality=95)


def test_missing_images_are_counted_and_the_first_named(world: World, with_images: Path, tmp_path: Path) -> None:
    dataset = NavsimDataset(world.records, world.root, SENSORS)
    for read in (lambda: dataset.batch([0]), lambda: dataset.cache_images(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"21 of 21 images are missing .*first .*CAM_L0"):
            read()
    assert list(tmp_path.iterdir()) == []


def test_rows_are_cut_equally_at_top_and_bottom(tmp_path: Path) -> None:
    pixels = np.full((216, 384, 3), 128, dtype=np.uint8)
    pixels[:12], pixels[-12:] = (255, 0, 0), (0, 0, 255)  # 216 - 384 / 2 = 24 rows are too many
    for name in ("x.png", "x.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, quality=98, subsampling=0) if name == "x.jpg" else (
            Image.fromarray(pixels).save(tmp_path / name)
        )
        small = read_image(tmp_path / name, (96, 48)).astype(int)
        assert abs(small[:, 2:-2] - 128).max() <= 3
        assert abs(small - 128).max() < 40  # the border rows see at most a trace of the cut ones


def test_an_image_of_the_right_shape_keeps_all_its_rows(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 216, dtype=np.uint8)[:, None], 384, axis=1)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    small = read_image(tmp_path / "x.png", (64, 36)).astype(int)
    assert small[:, 0].max() < 6
    assert small[:, -1].min() > 249


def test_scenes_without_a_future_have_no_plan(world: World, with_images: Path) -> None:
    cut = [dataclasses.replace(r, poses=r.poses[:4], times_us=r.times_us[:4]) for r in world.records]
    dataset = NavsimDataset(cut, with_images, SENSORS)
    assert dataset.batch([0]).plan is None
    with pytest.raises(ValueError, match="there are no plans"):
        dataset.plans()


@pytest.mark.parametrize("content", [b"\xff\xd8 no image", b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(9), None])
def test_a_broken_image_is_named_with_what_to_do(world: World, with_images: Path, content: bytes | None) -> None:
    record = dataclasses.replace(world.records[0], cameras=dict.fromkeys(NAMES, "broken.jpg"))
    path = with_images / "sensor_blobs/mini/broken.jpg"
    if content is None:  # cut off
        whole = (with_images / "sensor_blobs/mini" / world.records[0].cameras["CAM_F0"]).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"broken\.jpg: not a readable image .*Get the file again; or delete it, .*--allow"
    ):
        NavsimDataset([record], with_images, SENSORS).batch([0])
