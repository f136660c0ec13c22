"""The files of a token cache: what made it, shards of encoded scenes, and a manifest that stands when all are there.

A folder holds ``description.json`` (what made the tokens, and of which scenes; written first),
``shard_00000.safetensors`` and on (each appears whole), and ``manifest.json`` (written last). A shard has its scenes in
the description's order: ``tokens`` (scene, token, width) bfloat16, ``mask`` (scene, token) where the encoder gives one,
``command``, ``ego_status`` and ``history`` as in a batch, and ``checksum`` (scene,): the CRC-32 of each scene's bytes
in the other tensors, sorted by name. Scenes are checked when they are first read: opening reads no shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.config import Count, Whole, one_line, to_dict
from dpvla.files import FileError, open_regular, short, write_atomically, write_json
from dpvla.kept_open import KeptOpen
from dpvla.models import DrivingPolicy, SceneContext
from dpvla.models.driving_policy import cast_by_autocast
from dpvla.schema import read_as

FORMAT = 1
DESCRIPTION, MANIFEST = "description.json", "manifest.json"
LONGEST_HEADER = 2**20
"""Bytes; one of six tensors has some 500."""
READERS, WORTH_THREADS = 4, 8e6
"""Threads that read a batch, and from how many bytes on: one copies some 1.5 GB/s."""
NUMPY = {"BF16": np.int16, "BOOL": np.bool_, "I64": np.int64, "F32": np.float32}
"""What safetensors calls the types of a shard, and numpy; it has no bfloat16, whose bits stand for it."""


class TokenCacheError(ValueError):
    """A token cache that is damaged, or was made by something else than what wants to read it; the message names it."""


@dataclass(frozen=True)
class Maker:
    """What decides the tokens of a scene."""

    encoder: Mapping[str, Any]  # its config without where its first weights came from: network, cameras, image size
    architecture: str  # SHA-256 of what it says beside its config
    weights: str  # SHA-256 of its parameters and buffers, as they are computed with
    precision: str  # what it autocasts to

    @classmethod
    def of(cls, policy: DrivingPolicy) -> Maker:
        """Of a policy; reads all of the encoder's weights once."""
        config = policy.config.encoder
        encoder = {key: value for key, value in to_dict(config).items() if key not in config.SOURCES}
        architecture = json.dumps(policy.encoder.architecture(), sort_keys=True, default=str)
        return cls(
            encoder, _sha256(architecture.encode()), _weights_hash(policy.encoder, policy.precision), policy.precision
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What is otherwise in ``other``, in words: 'encoder.image_width is 768, not 384'."""
        ours, theirs = self.as_dict(), dict(other)
        found = []
        for key in sorted(ours["encoder"].keys() | theirs.get("encoder", {}).keys()):
            mine, its = ours["encoder"].get(key), theirs.get("encoder", {}).get(key)
            found += [f"encoder.{key} {short(its, 60)} instead of {short(mine, 60)}"] if mine != its else []
        if ours["precision"] != theirs.get("precision"):
            found.append(f"precision {short(theirs.get('precision'), 60)} instead of {ours['precision']!r}")
            theirs["weights"] = ours["weights"]  # they are hashed as they are computed with
        for key, words in (("architecture", "another encoder architecture"), ("weights", "other encoder weights")):
            found += [words] if ours[key] != theirs.get(key) else []
        return found


class MakerOnDisk(TypedDict):
    """``Maker.as_dict``, to check a file against."""

    encoder: dict[str, Any]
    architecture: str
    weights: str
    precision: str


class _Description(TypedDict):
    format: int
    maker: MakerOnDisk
    scenes: list[str]
    scenes_per_shard: Count
    tokens: tuple[Count, Count]
    has_mask: bool
    provenance: dict[str, Any]


class _Manifest(TypedDict):
    of: str
    shards: dict[str, Whole]


@dataclass(frozen=True)
class Description:
    """What a cache holds, whether it is whole or not."""

    maker: Mapping[str, Any]  # of ``Maker``
    scenes: tuple[str, ...]  # names, in the order of the shards
    scenes_per_shard: int
    tokens: tuple[int, int]  # (token, width) of a scene
    has_mask: bool
    provenance: Mapping[str, Any]  # for the reader's information

    def write(self, folder: Path) -> None:
        """As ``description.json``."""
        write_json(folder / DESCRIPTION, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """None where there is none; TokenCacheError where the file is something else."""
        path = folder / DESCRIPTION
        if not path.is_file():
            return None
        try:
            data = read_as(path, _Description)
            if data["format"] != FORMAT:
                raise FileError(f"{path}: format {data['format']}, this code reads {FORMAT}")
            if len(set(data["scenes"])) < len(data["scenes"]):
                raise FileError(f"{path}: scenes: a name stands twice")
        except FileError as error:
            raise TokenCacheError(f"{error}; choose another folder") from None
        known: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}  # type: ignore[literal-required]
        tokens, width = data["tokens"]
        return cls(**known | {"scenes": tuple(data["scenes"]), "tokens": (tokens, width)})

    @property
    def shards(self) -> int:
        """How many there are when it is whole."""
        return -(-len(self.scenes) // self.scenes_per_shard)

    def rows(self, shard: int) -> range:
        """Scenes of a shard, counted over all."""
        first = shard * self.scenes_per_shard
        return range(first, min(first + self.scenes_per_shard, len(self.scenes)))

    @cached_property
    def number(self) -> str:
        """Tells descriptions apart."""
        content = asdict(self) | {"provenance": None}
        return _sha256(json.dumps(content, sort_keys=True, default=list).encode())[:16]

    def mark(self, shard: int) -> str:
        """Stands in a shard: whose it is, and which."""
        return f"{self.number}-{shard}"

    def layout(self, shard: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Types, as safetensors calls them, and shapes of a shard's tensors."""
        count, (tokens, width) = len(self.rows(shard)), self.tokens
        named: dict[str, tuple[str, tuple[int, ...]]] = {
            "tokens": ("BF16", (count, tokens, width)),
            "command": ("I64", (count,)),
            "ego_status": ("F32", (count, 4)),
            "history": ("F32", (count, 3, 3)),
            "checksum": ("I64", (count,)),
        }
        return named | ({"mask": ("BOOL", (count, tokens))} if self.has_mask else {})

    @property
    def bytes_per_scene(self) -> int:
        """On disk."""
        tokens, width = self.tokens
        return 2 * tokens * width + self.has_mask * tokens + 8 + 4 * 4 + 4 * 9 + 8


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard is, once it is written."""
    return folder / f"shard_{shard:05d}.safetensors"


def write_shard(folder: Path, description: Description, shard: int, context: SceneContext) -> None:
    """Write the scenes of a shard, which are on the CPU; OSError where there is no room, and nothing is left."""
    tensors = {
        "tokens": context.tokens.to(torch.bfloat16),
        "command": context.command,
        "ego_status": context.ego_status,
        "history": context.history,
    } | ({} if context.mask is None else {"mask": context.mask})
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    arrays = {name: _bits(tensor) for name, tensor in tensors.items()}
    tensors["checksum"] = torch.tensor([_checksum(arrays, row) for row in range(len(context))])
    content = safetensors.torch.save(tensors, metadata={"of": description.mark(shard)})
    write_atomically(shard_path(folder, shard), lambda file: file.write(content))


def missing_shards(folder: Path, description: Description) -> list[int]:
    """Those that are not written yet. TokenCacheError names one that is damaged or of another cache."""
    missing = []
    for shard in range(description.shards):
        if shard_path(folder, shard).is_file():
            Shard(folder, description, shard)
        else:
            missing.append(shard)
    return missing


def write_manifest(folder: Path, description: Description) -> None:
    """Says that all shards are there, and how large each is."""
    try:
        sizes = {path.name: path.stat().st_size for path in (shard_path(folder, i) for i in range(description.shards))}
    except FileNotFoundError as error:
        raise TokenCacheError(
            f"{error.filename} was written but is not to be seen: all machines of a run must share {folder}"
        ) from None
    write_json(folder / MANIFEST, {"format": FORMAT, "of": description.number, "shards": sizes})


def _manifest_sizes(folder: Path, description: Description) -> dict[str, int]:
    path = folder / MANIFEST
    try:
        manifest = read_as(path, _Manifest)
    except FileError as error:
        raise TokenCacheError(f"{error}: delete it, and the same command makes it again") from None
    sizes, names = manifest["shards"], {shard_path(folder, shard).name for shard in range(description.shards)}
    if manifest["of"] != description.number or sizes.keys() != names:
        raise TokenCacheError(f"{path} is of another token cache: delete it, and the same command makes it again")
    return dict(sizes)


Arrays = Mapping[str, NDArray[Any]]


class Shard:
    """A shard mapped into memory; nothing but its header is read before it is asked for."""

    def __init__(self, folder: Path, description: Description, shard: int) -> None:
        """Raises TokenCacheError where the file is cut off, no shard, or another one."""
        self.path = path = shard_path(folder, shard)
        try:
            with open_regular(path) as file:
                length = int.from_bytes(file.read(8), "little")
                size = path.stat().st_size
                if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                    raise ValueError("its header is cut off")
                header: dict[str, Any] = json.loads(file.read(length))
            mark = header.pop("__metadata__", {}).get("of")
            places = {name: entry["data_offsets"] for name, entry in header.items()}
            found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
            if mark == description.mark(shard) and found != description.layout(shard):
                raise ValueError("its tensors are not of the scenes that the description lists")
            ends = 0
            for name, (first, end) in sorted(places.items(), key=lambda item: item[1]):
                dtype, shape = found[name]
                if first != ends or end - first != np.dtype(NUMPY[dtype]).itemsize * math.prod(shape):
                    raise ValueError(f"its header is wrong about {name:.40}")
                ends = end
            if ends != size - 8 - length:
                raise ValueError(f"it has {size} bytes")
            self._header = {name: (*found[name], 8 + length + first) for name, (first, _) in places.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TokenCacheError(
                f"{path} is damaged ({one_line(error)[:200]}): delete it, and the same command makes it again"
            ) from None
        if mark != description.mark(shard):
            raise TokenCacheError(
                f"{path} is a shard of another token cache, or another one of this: delete it, and the same command "
                "makes it again"
            )

    def arrays(self) -> Arrays:
        """By name, scene axis first; bfloat16 as its bits. The file is open as long as any of them is there."""
        mapped = np.memmap(self.path, np.uint8, "r")
        return {
            name: np.ndarray(shape, NUMPY[dtype], mapped, start) for name, (dtype, shape, start) in self._header.items()
        }


def is_sound(arrays: Arrays, row: int) -> bool:
    """Whether a scene's bytes in the ``arrays`` of its shard are those that were written."""
    own = {name: array for name, array in arrays.items() if name != "checksum"}
    return _checksum(own, row) == int(arrays["checksum"][row])


class TokenFiles:
    """A whole cache, for reading. Safe to use from several threads."""

    def __init__(self, folder: Path, description: Description) -> None:
        """Raises TokenCacheError where shards are missing or not as large as the manifest says."""
        self.folder, self.description = folder, description
        for name, size in _manifest_sizes(folder, description).items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found != size:
                raise TokenCacheError(
                    f"{folder / name} is damaged (it has {found} bytes, not {size}): delete it, and the same command "
                    "makes it again"
                )
        self._shards = [Shard(folder, description, shard) for shard in range(description.shards)]
        self._arrays: KeptOpen[int, Arrays] = KeptOpen()
        self._place = {name: row for row, name in enumerate(description.scenes)}
        self._checked = np.zeros(len(description.scenes), dtype=bool)

    def rows(self, names: Sequence[str]) -> list[int]:
        """Where scenes are. TokenCacheError counts those that are not there."""
        absent = [name for name in names if name not in self._place]
        if absent:
            raise TokenCacheError(
                f"{self.folder} is of another split: of {len(names)} scenes it has not {len(absent)}, first "
                f"{absent[0]}; choose another --tokens.directory"
            )
        return [self._place[name] for name in names]

    def read(self, rows: Sequence[int], pin: bool = False) -> SceneContext:
        """The scenes at ``rows``, on the CPU, in pinned memory if asked for; each is checked when it is first read."""
        tokens, width = self.description.tokens
        count = len(rows)
        found = SceneContext(
            torch.empty(count, tokens, width, dtype=torch.bfloat16, pin_memory=pin),
            torch.empty(count, tokens, dtype=torch.bool, pin_memory=pin) if self.description.has_mask else None,
            torch.empty(count, dtype=torch.int64, pin_memory=pin),
            torch.empty(count, 4, pin_memory=pin),
            torch.empty(count, 3, 3, pin_memory=pin),
        )
        named = {"tokens": found.tokens, "command": found.command}
        named |= {"ego_status": found.ego_status, "history": found.history}
        targets = {name: _bits(tensor) for name, tensor in named.items()}
        if found.mask is not None:
            targets["mask"] = _bits(found.mask)

        def fill(place: int, row: int) -> None:
            shard, inside = divmod(row, self.description.scenes_per_shard)
            arrays = self._sound(shard, row)
            for name, target in targets.items():
                target[place] = arrays[name][inside]

        if count * self.description.bytes_per_scene < WORTH_THREADS:
            for place, row in enumerate(rows):
                fill(place, row)
        else:  # copies and checksums leave the interpreter to others
            with ThreadPoolExecutor(READERS) as readers:
                for _ in readers.map(fill, range(count), rows):
                    pass
        return found

    def check(self, shards: Sequence[int]) -> Iterator[int]:
        """Read all scenes of some shards; gives each shard that is sound, raises TokenCacheError at one that is not."""
        for shard in shards:
            for row in self.description.rows(shard):
                self._sound(shard, row)
            yield shard

    def _sound(self, shard: int, row: int) -> Arrays:
        """Those of the shard, once the bytes of the scene at ``row`` have been checked."""
        arrays = self._arrays.get(shard, self._shards[shard].arrays)
        if self._checked[row]:
            return arrays
        if not is_sound(arrays, row % self.description.scenes_per_shard):
            raise TokenCacheError(
                f"{self._shards[shard].path} is damaged (scene {self.description.scenes[row]} has another checksum): "
                "delete it, and the same command makes it again"
            )
        self._checked[row] = True
        return arrays


def _bits(tensor: Tensor) -> NDArray[Any]:
    """The tensor's own memory as numpy sees it; bfloat16 as its bits."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _checksum(arrays: Mapping[str, NDArray[Any]], row: int) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ascontiguousarray(arrays[name][row]).view(np.uint8).data, value)
    return value


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _weights_hash(module: torch.nn.Module, precision: str) -> str:
    """The same whether weights are held in what autocast casts them to (``DrivingPolicy.hold_frozen``) or not."""
    digest = hashlib.sha256()
    cast = {f"{name}.weight" for name, _ in cast_by_autocast(module)} if precision == "bf16" else set()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.to(torch.bfloat16) if name in cast else tensor
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
