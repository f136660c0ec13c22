"""Decode a split's camera images once, at the size that a policy sees, for pretraining and fine-tuning.

python tools/pack_images.py --split navtrain --out data/images_768x384                    # navtrain: 274 GB
python tools/pack_images.py --split navtrain --size 384x192 --out data/images_384x192     # 69 GB

Then `--image-store DIR` of tools/pretrain.py and tools/rl_finetune.py. A run that was stopped goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dpvla.cli import command, refuse_given
from dpvla.config import ConfigError, Workers
from dpvla.files import check_folder
from dpvla.parallel import AnyExecutor, ProcessesConfig, make_executor
from dpvla.sensors import DEFAULT_CAMERAS, Sensors
from navsim_bridge.files import roots
from navsim_bridge.files.roots import DataOptions
from navsim_bridge.splits.coverage import usable_scenes
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.sensors import camera_names


@dataclass(frozen=True, kw_only=True)
class PackImages(DataOptions):
    """What to pack. Images are cut to the size's aspect ratio, then reduced, as training would do it."""

    split: str | None = None  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str  # folder of the store
    size: str = "768x384"  # WIDTHxHEIGHT of the encoder's images: 768x384 (its default), 384x192, 768x768, ...
    cameras: tuple[str, ...] = DEFAULT_CAMERAS  # of the encoder, in its order
    workers: Workers = 0  # processes; 0: one per core
    executor: AnyExecutor = field(default_factory=ProcessesConfig)  # who runs the workers
    allow_missing: bool = False  # pack what there is when logs or images of the split are missing; loses no scene
    check: bool = False  # instead of packing: read every byte of --out and compare it with the checksums

    def __post_init__(self) -> None:
        if re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.size) is None:
            raise ConfigError(f"size must be WIDTHxHEIGHT, such as 768x384, found {self.size!r:.40}")
        if not self.check and self.split is None:
            raise ConfigError("--split is needed: which scenes to pack")

    @property
    def sensors(self) -> Sensors:
        """Cameras and size."""
        width, height = map(int, self.size.split("x"))
        return Sensors.seeing(self.cameras, width, height)


@command(PackImages, __doc__)
def main(options: PackImages) -> None:
    """Pack or check, and say what is there."""
    from navsim_bridge.data.image_store import ImageStore, pack_images

    if options.check:
        given = ["split", "data_root", "data_split", "synthetic_root", "size", "cameras", "workers", "executor"]
        given += ["allow_missing"]
        refuse_given(options, given, "packing, not to --check")
        store = ImageStore(options.out)
        store.check(progress=True)
        print(f"{options.out}: all {len(store.shards)} shards are what was written")
        return
    assert options.split is not None
    sensors, workers = options.sensors, make_executor(options.executor, options.workers)
    cameras = camera_names(sensors.cameras)
    check_folder(options.out)
    root = roots.data_root(options.data_root)
    split = load_split(options.split, root, options.data_split, options.synthetic_root)
    records, coverage = usable_scenes(split, root, cameras, options.allow_missing, workers)
    store = pack_images(
        records, root, sensors, options.out, split.name, workers=workers, progress=True, coverage=coverage
    )
    print(f"{coverage} of {split.name} in {options.out}, {len(store.shards)} shards")
    if not coverage.is_whole:
        print(f"NOT the whole split: {coverage.why}")


if __name__ == "__main__":
    main()
