"""Decoding camera images: Pillow, as before, beside what is used now, and an image store.

``python benchmarks/images.py [--json FILE] [--data-root ROOT]``: CPU ms an image on one thread, samples (of three
cameras) a second of a core, and how far the pixels are apart. Images are a synthetic 1920x1080 JPEG, or those of a data
root. With a GPU also three JPEGs decoded by nvJPEG, in ms of the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dpvla import files
from dpvla.cli import reporting_errors
from dpvla.sensors import Sensors
from navsim_bridge.data.image_store import MANIFEST, ImageStore, shard_name
from navsim_bridge.data.images import Size, read_image, read_images, read_images_on_gpu, read_with_pillow
from navsim_bridge.files.roots import SENSORS

PRESETS: tuple[Size, ...] = ((768, 384), (384, 192), (768, 768))
CAMERAS = 3
NAVSIM = (1920, 1080)
STORED = 64
"""Scenes of the store that is read."""


@reporting_errors
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="take images from its sensor_blobs/ (default: one that is made)")
    parser.add_argument("--images", type=int, default=8, help="how many (default: 8)")
    parser.add_argument("--json", help="write the table here, too")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be at least 1, found {arguments.images}")
    if arguments.json:
        try:
            files.check_file(arguments.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(arguments.data_root, arguments.images, Path(folder))
        with Image.open(paths[0]) as image:
            pixels = image.size
        kilobytes = float(np.mean([path.stat().st_size for path in paths])) / 1e3
        print(f"{len(paths)} images, {pixels[0]}x{pixels[1]}, {kilobytes:.0f} kB on average\n")
        print("| size | Pillow ms | now ms | ratio | store ms | samples/s a core: Pillow, now, store | pixels apart |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        rows = [measured(paths, size, Path(folder)) for size in PRESETS]
        for row in rows:
            ms, rates, apart = row["ms_per_image"], row["samples_per_s_core"], row["pixels_apart"]
            print(
                f"| {row['size']} | {ms['pillow']:.1f} | {ms['now']:.1f} | {row['ratio']:.2f} | {ms['store']:.3f} | "
                f"{rates['pillow']:.0f}, {rates['now']:.0f}, {rates['store']:,.0f} | {apart['mean']:.4f} |"
            )
        size = PRESETS[0]
        of_three = {"threads_ms": wall_ms(partial(read_images, paths[:CAMERAS], size, CAMERAS))}
        print(f"\nthree JPEGs to {size[0]}x{size[1]} in three threads: {of_three['threads_ms']:.1f} ms of the clock")
        if torch.cuda.is_available():
            of_three["nvjpeg_ms"] = wall_ms(partial(on_gpu, paths[:CAMERAS], PRESETS[0]))
            print(f"by nvJPEG on {torch.cuda.get_device_name()}: {of_three['nvjpeg_ms']:.1f} ms")
    if arguments.json:
        files.write_json(
            arguments.json,
            {"images": len(paths), "pixels": pixels, "kilobytes": kilobytes, "rows": rows, "three_jpegs": of_three},
        )


def photos(data_root: str | None, count: int, folder: Path) -> list[Path]:
    """Images of a data root, or soft shapes with hard edges and noise that make JPEGs as large as NAVSIM's."""
    if data_root is not None:
        found = sorted((Path(data_root) / SENSORS).rglob("*.jpg"))[:count]
        if len(found) < CAMERAS:
            raise SystemExit(f"error: fewer than {CAMERAS} .jpg files below {Path(data_root) / SENSORS}")
        return found
    rng, paths = np.random.default_rng(0), []
    for number in range(max(count, CAMERAS)):
        pixels = np.zeros((NAVSIM[1], NAVSIM[0], 3))
        for cells in (8, 24, 90):
            coarse = rng.integers(0, 256, (cells, 2 * cells, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize(NAVSIM, Image.Resampling.BICUBIC)) / 3
        pixels += rng.normal(0, 5, pixels.shape)
        pixels[400:700, 300 + 40 * number : 900 + 40 * number] *= 0.4
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return paths


def measured(paths: Sequence[Path], size: Size, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    store, rows = stored(paths, size, folder)
    ms = {
        "pillow": cpu_ms(partial(each, read_with_pillow, paths, size), len(paths)),
        "now": cpu_ms(partial(each, read_image, paths, size), len(paths)),
        "store": cpu_ms(partial(store.read, rows), CAMERAS * len(rows)),
    }
    apart = np.abs(read_image(paths[0], size).astype(int) - read_with_pillow(paths[0], size))
    return {
        "size": f"{size[0]}x{size[1]}",
        "ms_per_image": ms,
        "ratio": ms["now"] / ms["pillow"],
        "samples_per_s_core": {way: 1e3 / (CAMERAS * value) for way, value in ms.items()},
        "pixels_apart": {"mean": float(apart.mean()), "most": int(apart.max())},
    }


def stored(paths: Sequence[Path], size: Size, folder: Path) -> tuple[ImageStore, Any]:
    """A store as ``pack_images`` writes it, of scenes made of these images, and its rows in a random order."""
    place, sensors = folder / f"store_{size[0]}x{size[1]}", Sensors(width=size[0], height=size[1])
    place.mkdir()
    images = read_images([paths[i % len(paths)] for i in range(CAMERAS * STORED)], size, 2)
    scenes = [(f"{number}", "") for number in range(STORED)]
    name = shard_name(0, sensors, scenes)
    np.save(place / name, images.reshape(STORED, CAMERAS, *images.shape[1:]))
    files.write_json(
        place / MANIFEST,
        {
            "format": 1, "split": "made", "cameras": list(sensors.cameras), "width": size[0], "height": size[1],
            "shards": [{"file": name, "scenes": STORED, "sha256": ""}],
            "scenes": scenes,
        },
    )  # fmt: skip
    return ImageStore(place), np.random.default_rng(0).permutation(STORED)


def each(read: Callable[[Path, Size], object], paths: Sequence[Path], size: Size) -> None:
    """Read one after the other."""
    for path in paths:
        read(path, size)


def on_gpu(paths: Sequence[Path], size: Size) -> None:
    """Decode and wait."""
    read_images_on_gpu(paths, size, "cuda")
    torch.cuda.synchronize()


def cpu_ms(call: Callable[[], object], images: int, times: int = 5) -> float:
    """CPU milliseconds an image, of the best of some calls."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return 1e3 * min(found) / images


def wall_ms(call: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of the clock, the median of some calls."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(found[2:]))


if __name__ == "__main__":
    main()
