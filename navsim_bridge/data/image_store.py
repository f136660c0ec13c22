"""Images decoded once, at the size that a policy sees: uint8 in shards that are mapped into memory.

A folder with ``images-NNNNN-KEY.npy``, each (scene, camera, 3, height, width), and last ``store.json``: what they hold,
and their checksums. KEY stands for the scenes, the names and sizes of their camera files, the cameras and the size: a
shard that is there is done, so packing that was stopped goes on, and what has changed is packed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla import files
from dpvla.config import Count, Range
from dpvla.kept_open import KeptOpen
from dpvla.manifest import sha256_of
from dpvla.parallel import Workers, run_jobs
from dpvla.schema import read_as
from dpvla.sensors import Sensors
from navsim_bridge.data.images import Pixels, Size, read_images
from navsim_bridge.files.roots import SENSORS
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names, image_file, image_path, image_sizes

MANIFEST = "store.json"
FORMAT = 1
SHARD_BYTES = 1 << 30
"""The last files that were read from stay open, see `KeptOpen`: the whole of navtrain is a few hundred of them."""
LONGEST_HEADER = 1024
SPARE_BYTES = 64 << 20
"""What stays free on the disk."""


class _Shard(TypedDict):
    file: str
    scenes: Count
    sha256: str


class _Manifest(TypedDict):
    format: int
    split: str
    cameras: list[str]
    width: Annotated[int, Range(least=1, most=99_999)]
    height: Annotated[int, Range(least=1, most=99_999)]
    shards: list[_Shard]
    scenes: list[tuple[str, str]]  # tokens, and what their camera files come to


class ImageStoreError(ValueError):
    """A store that is not there, not whole, or of something else; the message says what to do."""


@dataclass(frozen=True)
class Shard:
    """Some scenes to be packed into one file."""

    path: Path
    images: tuple[Path, ...]  # scene by scene, camera by camera
    shape: tuple[int, ...]  # (scene, camera, 3, height, width)
    threads: int  # that decode at once

    def pack(self) -> str:
        """Write the file unless it is there; its SHA-256."""
        if not self.path.is_file():
            files.write_atomically(self.path, self._write)
        return sha256_of(self.path)

    def _write(self, file: IO[bytes]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        size: Size = (self.shape[4], self.shape[3])
        at_once = self.shape[1] * 4 * self.threads
        for first in range(0, len(self.images), at_once):
            file.write(read_images(self.images[first : first + at_once], size, self.threads).data)


def pack_images(
    records: Sequence[SceneRecord],
    data_root: Path | str,
    sensors: Sensors,
    folder: Path | str,
    split: str,
    *,
    title: str = "image store",
    workers: Workers = 1,
    threads: int = 1,
    progress: bool = False,
    wait: bool = False,
    coverage: Coverage | None = None,
) -> ImageStore:
    """Decode the images of all scenes into ``folder``, or what is missing of them. Says first what it takes.

    Args:
        split: what the store says that it is of.
        workers: processes or an executor; shards are theirs. threads: of each, decoding.
        wait: for another process that is writing there, instead of raising.
        coverage: how much of the split the records are; all of it by default.

    Raises:
        ImageStoreError: the folder holds a store of another split, size or camera set, a damaged shard, or scenes that
            are missing now.
        OSError: too little room on the disk, before anything is written; or an image is missing.
        ValueError: an image cannot be read.
    """
    folder = Path(folder)
    with files.one_writer(folder, wait=wait):
        written: dict[str, str] = {}  # checksums
        if (folder / MANIFEST).is_file():
            former = ImageStore(folder, whole=False)
            former.require(sensors, split)
            lost = set(former.sources).difference(r.token for r in records)
            if lost and coverage is not None and not coverage.is_whole:
                raise ImageStoreError(
                    f"{folder} holds {len(former.sources)} scenes, {len(lost)} of which would be lost: now it would be "
                    f"{coverage} ({coverage.why}). Get what is missing, or choose another folder"
                )
            written = {name: digest for name, _, digest in former.shards if (folder / name).is_file()}
        for left in folder.glob(".images-*"):  # by a process of an earlier version that was killed
            left.unlink()
        sources = source_digests(records, data_root, sensors)
        shards = list(_shards(records, data_root, sensors, folder, sources, threads))
        missing = [shard for shard in shards if not shard.path.is_file()]
        needed = sum(int(np.prod(shard.shape)) for shard in missing)
        done = (
            "" if len(missing) == len(shards) else f" ({len(shards) - len(missing)} of {len(shards)} shards are there)"
        )
        width, height = sensors.width, sensors.height
        print(f"{title}: {len(records)} scenes at {width}x{height}, {needed / 1e6:.0f} MB, {folder}{done}")
        _require_room(folder, needed)
        manifest: dict[str, Any] = {
            "format": FORMAT, "split": split, "cameras": list(sensors.cameras), "width": width, "height": height,
        }  # fmt: skip
        entries = []
        with tqdm(total=len(records), desc="images", unit="scene", disable=not progress) as bar:
            for shard, digest in zip(shards, _packed(shards, workers, Path(data_root), folder)):
                if written.get(shard.path.name, digest) != digest:
                    raise ImageStoreError(f"{shard.path} is damaged: delete it, and the same command packs it again")
                entries.append({"file": shard.path.name, "scenes": shard.shape[0], "sha256": digest})
                bar.update(shard.shape[0])
        manifest |= {"shards": entries, "scenes": [[r.token, sources[r.token]] for r in records]}
        files.write_text(folder / MANIFEST, json.dumps(manifest) + "\n")
        kept = {entry["file"] for entry in entries}
        for path in folder.glob("images-*.npy"):  # of scenes that are no more, or have changed
            if path.name not in kept:
                path.unlink()
    return ImageStore(folder)


class ImageStore:
    """What ``pack_images`` has written, for reading; the files are opened when they are asked for."""

    def __init__(self, folder: Path | str, whole: bool = True) -> None:
        """Raises ImageStoreError where there is none, or, if it is to be ``whole``, shards are missing or cut."""
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ImageStoreError(
                f"{self.folder} holds no whole image store ({MANIFEST} is written last): make it, or go on, with "
                f"tools/pack_images.py --split SPLIT --out {self.folder}"
            )
        try:
            found = files.read_json(path).get("format")
            if type(found) is int and found != FORMAT:
                raise ImageStoreError(
                    f"{path} has format {files.short(found, 80)}, this version reads {FORMAT}: pack it again"
                )
            content = read_as(path, _Manifest)
            self.split = content["split"]
            self.sensors = Sensors.seeing(tuple(content["cameras"]), content["width"], content["height"])
            self.shards = [(shard["file"], shard["scenes"], shard["sha256"]) for shard in content["shards"]]
            self.sources = dict(content["scenes"])
            self._require_own_shards(len(content["scenes"]))
        except ValueError as error:
            if isinstance(error, ImageStoreError):
                raise
            raise ImageStoreError(
                f"{path} is no manifest of an image store: {str(error)[:300]}; delete it, and pack again: what is "
                "whole is kept"
            ) from None
        self._ends = list(accumulate(scenes for _, scenes, _ in self.shards))
        self._row = {token: row for row, token in enumerate(self.sources)}
        self._maps: KeptOpen[int, Pixels] = KeptOpen()
        for number in range(len(self.shards) if whole else 0):
            self._require_whole(number)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_maps"}  # a map holds all its bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _maps=KeptOpen())

    @cached_property
    def _again(self) -> str:
        return f"the same tools/pack_images.py --split {self.split} --out {self.folder} packs what is missing"

    def require(self, sensors: Sensors, split: str | None = None) -> None:
        """Raise ImageStoreError where it is of another size, camera set or, where one is given, split."""
        own, wanted = self.sensors, sensors
        differ = []
        if split is not None and split != self.split:
            differ.append(f"split {self.split}, not {split}")
        if (own.width, own.height) != (wanted.width, wanted.height):
            differ.append(f"images of {own.width}x{own.height}, not {wanted.width}x{wanted.height}")
        if own.cameras != wanted.cameras:
            differ.append(f"cameras {', '.join(own.cameras)}, not {', '.join(wanted.cameras)}")
        if differ:
            raise ImageStoreError(f"{self.folder} is an image store of {'; of '.join(differ)}: pack one beside it")

    def rows(self, records: Sequence[SceneRecord], data_root: Path | str) -> NDArray[np.int64]:
        """Where the scenes stand. Raises ImageStoreError for any that it lacks or whose camera files have changed."""
        absent = [r.token for r in records if r.token not in self._row]
        if absent:
            raise ImageStoreError(
                f"{self.folder} holds images of split {self.split}: {len(absent)} of {len(records)} scenes are not "
                f"among them, first {absent[0]}; pack the split that is asked for"
            )
        sources = source_digests(records, data_root, self.sensors)
        changed = [r.token for r in records if sources[r.token] != self.sources[r.token]]
        if changed:
            raise ImageStoreError(
                f"{self.folder}: the camera files of {len(changed)} of {len(records)} scenes are others than those "
                f"that were packed (by name or size), first of scene {changed[0]}; {self._again}"
            )
        return np.array([self._row[r.token] for r in records], dtype=np.int64)

    def read(self, rows: NDArray[np.int64]) -> Pixels:
        """(row, camera, 3, height, width) images of the scenes that stand there."""
        images = np.empty((len(rows), *self.sensors.shape), dtype=np.uint8)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for place, (row, number) in enumerate(zip(rows.tolist(), numbers.tolist())):
            shard = self._maps.get(number, partial(self._map, number))
            images[place] = shard[row - (self._ends[number] - self.shards[number][1])]
        return images

    def check(self, progress: bool = False) -> None:
        """Read every byte. Raises ImageStoreError for the first shard that is not what was written."""
        for name, _, digest in tqdm(self.shards, desc="checking", unit="shard", disable=not progress):
            if sha256_of(self._path(name)) != digest:
                raise ImageStoreError(f"{self.folder / name} is damaged: delete it, and {self._again}")

    def _require_own_shards(self, listed: int) -> None:
        """Raise ValueError where shards are not those of the scenes: their names tell which they hold."""
        if not listed or len(self.sources) != listed or sum(scenes for _, scenes, _ in self.shards) != listed:
            raise ValueError("its scenes are not those of its shards" if listed else "it lists no scene")
        scenes = iter(self.sources.items())
        for number, (name, count, _) in enumerate(self.shards):
            if count < 1 or name != shard_name(number, self.sensors, list(islice(scenes, count))):
                raise ValueError(f"{files.short(name, 60)} does not hold the scenes that it names")

    def _path(self, name: str) -> Path:
        try:
            return files.inside(self.folder, name)
        except files.FileError as error:
            raise ImageStoreError(str(error)) from None

    def _require_whole(self, number: int) -> None:
        name, scenes, _ = self.shards[number]
        path, pixels = self._path(name), scenes * int(np.prod(self.sensors.shape))
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise ImageStoreError(f"{path} is missing: {self._again}")
        if not pixels < found < pixels + LONGEST_HEADER:
            raise ImageStoreError(f"{path} has {found} bytes, not {pixels} and a header: delete it, and {self._again}")

    def _map(self, number: int) -> Pixels:
        name, scenes, _ = self.shards[number]
        try:
            found: Pixels = np.lib.format.open_memmap(self._path(name), mode="r")
        except (OSError, ValueError) as error:
            raise ImageStoreError(f"{self.folder / name} ({error}): delete it, and {self._again}") from None
        if found.shape != (scenes, *self.sensors.shape) or found.dtype != np.uint8:
            raise ImageStoreError(
                f"{self.folder / name} holds {found.dtype} {found.shape}: delete it, and {self._again}"
            )
        return found


def source_digests(records: Sequence[SceneRecord], data_root: Path | str, sensors: Sensors) -> dict[str, str]:
    """Token -> what names and sizes of its camera files come to."""
    cameras = camera_names(sensors.cameras)
    sizes = image_sizes(records, data_root, cameras)
    found = {}
    for record in records:
        of_scene = [image_path(record, camera) for camera in cameras]
        text = json.dumps([(path, sizes[path]) for path in of_scene])
        found[record.token] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def _shards(
    records: Sequence[SceneRecord],
    data_root: Path | str,
    sensors: Sensors,
    folder: Path,
    sources: dict[str, str],
    threads: int,
) -> Iterator[Shard]:
    cameras = camera_names(sensors.cameras)
    each = max(1, SHARD_BYTES // int(np.prod(sensors.shape)))
    for number, first in enumerate(range(0, len(records), each)):
        some = records[first : first + each]
        name = shard_name(number, sensors, [(r.token, sources[r.token]) for r in some])
        images = tuple(image_file(record, data_root, camera) for record in some for camera in cameras)
        yield Shard(folder / name, images, (len(some), *sensors.shape), threads)


def shard_name(number: int, sensors: Sensors, scenes: Sequence[tuple[str, str]]) -> str:
    """Of a shard; ``scenes``: their tokens and what their camera files come to."""
    content = json.dumps([FORMAT, sensors.cameras, sensors.shape, scenes])
    return f"images-{number:05d}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npy"


def _packed(shards: Sequence[Shard], workers: Workers, data_root: Path, folder: Path) -> Iterator[str]:
    """Their checksums in order, as they are packed."""
    jobs = [(shard,) for shard in shards]
    reads = [data_root / SENSORS]
    return run_jobs(Shard.pack, jobs, workers, in_order=True, preload=(__name__,), reads=reads, writes=folder)


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder} has {free / 1e6:.1f} MB free, the images need {needed / 1e6:.1f} MB and {SPARE_BYTES / 1e6:.0f} "
            "MB to spare: make room, choose another folder, or a smaller size"
        )
