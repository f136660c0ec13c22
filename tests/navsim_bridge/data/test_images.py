"""Images decoded by torchvision are Pillow's; files that hold none are refused as Pillow refuses them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from navsim_bridge.data import images
from navsim_bridge.data.images import Size, read_image, read_images, read_images_on_gpu, read_whole, read_with_pillow

PRESETS: tuple[Size, ...] = ((768, 384), (384, 192), (768, 768))
NAVSIM = (1920, 1080)
ROTATED = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06" + bytes(7)
"""EXIF with one entry: to be turned by 90 degrees."""


def picture(size: Size = NAVSIM, seed: int = 0) -> Image.Image:
    """Soft shapes with hard edges and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(int) + rng.integers(-6, 7, (size[1], size[0], 3))
    pixels[size[1] // 3 : size[1] // 2, size[0] // 4 : size[0] // 2] = (250, 240, 10)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def difference(path: Path, size: Size) -> tuple[float, int]:
    """Mean and largest, of 255."""
    found, expected = read_image(path, size), read_with_pillow(path, size)
    assert found.shape == expected.shape == (3, size[1], size[0]) and found.flags.c_contiguous
    apart = np.abs(found.astype(int) - expected)
    return float(apart.mean()), int(apart.max())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("photo") / "x.jpg", picture(), quality=85)


@pytest.mark.parametrize("size", PRESETS)
def test_pixels_are_pillows_to_a_hundredth(photo: Path, size: Size) -> None:
    mean, most = difference(photo, size)
    assert mean < 0.01 and most <= 3


def test_torchvision_decodes_what_is_reduced_to_more_than_a_quarter(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decode = images.decode_jpeg

    def decoding(content: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(len(content))
        decoded: torch.Tensor = decode(content, **options)
        return decoded

    monkeypatch.setattr(images, "decode_jpeg", decoding)
    counts = []
    for size in PRESETS:
        read_image(photo, size)
        counts.append(len(asked))
    assert counts == [1, 1, 2]  # 384 x 192: Pillow decodes half the scale, as fast


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("plain.jpg", "RGB", {"quality": 90}),
        ("full_color.jpg", "RGB", {"quality": 95, "subsampling": 0}),
        ("progressive.jpg", "RGB", {"progressive": True}),
        ("gray.jpg", "L", {}),
        ("cmyk.jpg", "CMYK", {}),
        ("rotated.jpg", "RGB", {"exif": ROTATED}),
        ("x.png", "RGB", {}),
        ("alpha.png", "RGBA", {}),
        ("palette.png", "P", {}),
        ("x.webp", "RGB", {}),
    ],
)  # fmt: skip
def test_every_kind_of_image_is_as_pillow_reads_it(name: str, mode: str, options: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / name, picture((320, 180)).convert(mode), **options)
    mean, most = difference(path, (96, 48))
    assert mean < 0.05 and most <= 2


def test_an_image_that_must_be_cut_between_pixels_is_as_pillow_cuts_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", picture((317, 181)))
    assert difference(path, (96, 48)) == (0, 0)


def content(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


WHOLE = content(picture((320, 180)))


def bomb() -> bytes:
    """A header that promises 65,000 x 65,000 pixels."""
    at = WHOLE.index(b"\xff\xc0") + 5
    return WHOLE[:at] + (65000).to_bytes(2, "big") * 2 + WHOLE[at + 4 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image file"),
        (b"hello, this is text", "cannot identify image file"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (WHOLE[:30], "cannot identify image file|Truncated"),
        (bomb(), "DecompressionBombError"),
    ],
)
def test_what_holds_no_whole_image_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"(?s)^{path}: not a readable image \(.*({message}).*Get the file again"
    ) as said:
        read_images([path], (96, 48))
    assert "\n" not in str(said.value)
    with pytest.raises(images.UNREADABLE) as theirs:
        read_with_pillow(path, (96, 48))
    assert type(said.value.__cause__) is type(theirs.value)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((180, 320), 40_000, dtype=np.uint16)).save(path, "PNG")


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 320 180\n%%EndComments\n(x) run\n%%EOF\n")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a FIFO"),
        (endless, "is a device"),
        (Path.mkdir, "is a folder"),
        (sixteen_bits, "I;16, not of 8 bits"),
        (lambda path: Image.new("RGB", (1, 1)).save(path), "1x1 pixels are no camera image"),
        (lambda path: Image.new("1", (9000, 9000)).save(path, "PNG"), "9000x9000 pixels are no camera image"),
        (postscript, "cannot identify image file"),
    ],
)
def test_what_no_camera_takes_is_refused_at_once(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    make(path)
    for read in (lambda: read_images([path], (96, 48)), lambda: read_whole(path)):
        with pytest.raises(ValueError, match=rf"^{path}: not a readable image \(.*{message}"):
            read()


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.touch()
    os.truncate(path, images.MOST_BYTES + 1)
    with pytest.raises(ValueError, match=r"x\.jpg: not a readable image .* has more than \d+ bytes"):
        read_images([path], (96, 48))


def test_a_jpeg_without_its_end_mark_is_taken_or_refused_as_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(WHOLE[:-2])
    found: list[NDArray[np.uint8] | type] = []
    for read in (read_image, read_with_pillow):
        try:
            found.append(read(path, (96, 48)))
        except images.UNREADABLE as error:
            found.append(type(error))
    np.testing.assert_array_equal(found[0], found[1])


def test_threads_read_the_same_in_order(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{seed}.jpg", picture((320, 180), seed)) for seed in range(5)]
    alone = read_images(paths, (96, 48))
    assert alone.shape == (5, 3, 48, 96) and len({image.tobytes() for image in alone}) == 5
    np.testing.assert_array_equal(read_images(paths, (96, 48), workers=3), alone)
    assert read_images([], (96, 48)).shape == (0, 3, 48, 96)
    with pytest.raises(FileNotFoundError):
        read_images([tmp_path / "none.jpg", paths[0]], (96, 48), workers=2)


def test_reading_warns_of_nothing(photo: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", category=DeprecationWarning)
        read_image(photo, (96, 48))


def test_nvjpeg_is_asked_for_by_name_and_nothing_stands_in_for_it(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="nvJPEG decodes on CUDA devices, found cpu; take decoder cpu"):
        read_images_on_gpu([photo], (96, 48), "cpu")
    png = saved(tmp_path / "x.png", picture((320, 180)))
    with pytest.raises(ValueError, match=r"x.png: nvJPEG decodes color and gray JPEGs, found PNG \(RGB\); take"):
        read_images_on_gpu([photo, png], (96, 48), "cuda")
    (tmp_path / "y.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"y.jpg: not a readable image"):
        read_images_on_gpu([tmp_path / "y.jpg"], (96, 48), "cuda")
    monkeypatch.setattr(images, "decode_jpeg", without_nvjpeg)
    with pytest.raises(
        ValueError, match=r"nvJPEG cannot decode .*x.jpg and its like: .*not compiled.*Take decoder cpu"
    ):
        read_images_on_gpu([photo], (96, 48), "cuda")


def test_a_machine_without_gpu_is_told_so(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="nvJPEG decodes on CUDA devices, and there is none; take decoder cpu"):
        read_images_on_gpu([photo], (96, 48), "cuda:0")


def without_nvjpeg(*_: object, **__: object) -> None:
    raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")
