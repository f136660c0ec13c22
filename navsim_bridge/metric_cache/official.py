"""The devkit's own metric caches (navsim v1.1 and v2), read without the devkit.

A cache file is an LZMA-compressed pickle of navsim, nuplan and shapely objects. The classes that such files name are
mapped to plain holders that keep what the pickle stores in them; no code of theirs is needed or run, and a file that
names anything else is refused.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

from dpvla.files import read_bytes, short
from navsim_bridge.files.nuplan_objects import Value
from navsim_bridge.files.pickle_reader import UnsafePickleError, unpickle_plain
from navsim_bridge.metric_cache.official_parts import KNOWN
from navsim_bridge.metric_cache.official_v1 import scene_of_v1
from navsim_bridge.metric_cache.official_v2 import scene_of_v2
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.packing import pack_scenes

FILE = "metric_cache.pkl"
METADATA = "metadata"
VERSION_1, VERSION_2 = "v1.1", "v2"
_VERSION_2_FIELDS = (b"human_trajectory", b"map_parameters", b"past_detections_tracks", b"current_tracked_objects")
MOST_BYTES = 2**28
"""Of a file, and of what it unpacks to: a scene takes some 100 kB, and 400 kB unpacked."""


class OfficialCacheError(ValueError):
    """An official cache file that cannot be used; the message names token and file and says why."""


class OfficialCache:
    """A folder of official cache files, ``<log>/<scenario type>/<token>/metric_cache.pkl``.

    The files are looked for in the folder itself: the CSV under ``metadata/`` lists the absolute paths of the
    machine that made the cache, which are wrong once it has been moved.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises FileNotFoundError when the folder holds no cache file, OfficialCacheError on a repeated token."""
        self.folder = Path(folder)
        self.files: dict[str, Path] = {}
        """Token -> file, by log and token."""
        for file in sorted(self.folder.glob(f"*/*/*/{FILE}")):
            token = file.parent.name
            if token in self.files:
                raise OfficialCacheError(f"token {token} has two cache files: {self.files[token]} and {file}")
            self.files[token] = file
        if not self.files:
            raise FileNotFoundError(
                f"no official metric cache in {self.folder}: expected <log>/<scenario type>/<token>/{FILE} below it"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all scenes, by log."""
        return tuple(self.files)

    def by_log(self) -> dict[str, list[str]]:
        """Log name -> tokens."""
        logs: dict[str, list[str]] = {}
        for token, file in self.files.items():
            logs.setdefault(file.parts[-4], []).append(token)
        return logs

    def read(self, token: str, maps_root: Path | str | None = None) -> MetricScene:
        """The scene of ``token``; errors as `read_official_cache`, KeyError for an unknown token."""
        return read_official_cache(self.files[token], maps_root=maps_root)

    def __len__(self) -> int:
        return len(self.files)

    def __contains__(self, token: object) -> bool:
        return token in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)


def read_official_cache(
    path: Path | str, version: str | None = None, maps_root: Path | str | None = None
) -> MetricScene:
    """One official cache file. Token and log name are those of its folders.

    Args:
        path: the file.
        version: the only one that is read; by default both.
        maps_root: folder of the maps, from which vehicles of v2 have their lanes; by default what the file says.

    Raises:
        FileNotFoundError: no such file.
        OfficialCacheError: naming token and file: not an LZMA pickle, a class that is not known (nothing of it has
            run), or content that is not as either version writes it.
    """
    path = Path(path)
    token, log_name = path.parent.name, path.parts[-4] if len(path.parts) > 3 else ""
    try:
        data = _unpacked(read_bytes(path, MOST_BYTES))
        found = _version(data)
        if version not in (None, found):
            raise ValueError(f"this is a cache of navsim {found}, among others of {version}: keep them apart")
        cache = Value(unpickle_plain(data, path, KNOWN), f"not the content that navsim {found} writes: MetricCache")
        if type(cache.found) is not KNOWN["navsim.planning.metric_caching.metric_cache", "MetricCache"]:
            raise ValueError(f"expected a MetricCache, found {short(cache.found)}")
        if found == VERSION_1:
            scene = scene_of_v1(cache, token, log_name)
            pack_scenes([scene])  # refuses NaN and arrays that contradict each other
        else:
            scene = scene_of_v2(cache, token, log_name, maps_root)
            EPDMSBatch.from_scenes([scene])
        return scene
    except FileNotFoundError:
        raise
    except (OSError, lzma.LZMAError) as error:
        problem = f"not a whole LZMA file ({type(error).__name__}: {error})"
    except UnsafePickleError as error:
        problem = f"names what official metric caches do not hold: {_without_path(error, path)}"
    except ValueError as error:
        problem = _without_path(error, path)
    raise OfficialCacheError(f"token {token}: {path}: {' '.join(problem.split())}")


def written_by(path: Path | str) -> tuple[str, str | None] | None:
    """Which version of navsim wrote a file, `VERSION_1` or `VERSION_2`, and where it says that the maps are; None for
    a file that cannot be read."""
    try:
        data = _unpacked(read_bytes(path, MOST_BYTES))
        version = _version(data)
        if version == VERSION_1:
            return version, None
        return version, Value(unpickle_plain(data, path, KNOWN), "MetricCache")["map_parameters"]["map_root"].text()
    except (OSError, ValueError, lzma.LZMAError):
        return None


def _version(data: bytes) -> str:
    return VERSION_2 if any(name in data for name in _VERSION_2_FIELDS) else VERSION_1


def _unpacked(data: bytes) -> bytes:
    """What was compressed, once it is known to be no more than ``MOST_BYTES``."""
    unpacker = lzma.LZMADecompressor(memlimit=MOST_BYTES)
    content = unpacker.decompress(data, max_length=MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"unpacks to more than {MOST_BYTES} bytes, which no cache of a scene does")
    if not unpacker.eof:
        raise lzma.LZMAError("it ends before its content does")
    if unpacker.unused_data:
        raise lzma.LZMAError(f"{len(unpacker.unused_data)} bytes follow its end")
    return content


def _without_path(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
