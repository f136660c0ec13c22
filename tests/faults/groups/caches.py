"""What is kept to be read again: metric caches, shards, the devkit's cache, images, submissions, evaluations."""

from __future__ import annotations

import json
import lzma
import pickle
import shutil
import struct
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from navsim_bridge.metric_cache.index import INDEX, write_index
from tests.faults.case import Call, Case, a_file, as_typed, at, only
from tests.faults.mutants import files, pickles, texts

LOG = "2021.06.24.08.00.05_veh-35_00100_00111"
DRIVE = ("world/navsim_logs/test", "world/splits")
SCORE = Call(
    "evaluate",
    ("--data-root", "world", "--split", "navtest_all", "--agent", "human", "--metric-cache", "cache", "--out", "out"),
    (*DRIVE, "cache"),
    ("out/scores.csv",),
    ("out", "out/**/*"),
)
MERGE = Call(
    "cache_metrics", ("--merge", "shards", "--out", "out"), ("shards",), ("out/*.scenes",), ("out", "out/**/*")
)

Content = dict[str, Any]


def _sealed(folder: Path, change: Callable[[Content], object]) -> None:
    """Another index with a right checksum."""
    content = json.loads((folder / INDEX).read_text())
    content.pop("sha256_of_this_file")
    change(content)
    write_index(folder, content)


def _of_index(
    depth: int, seed: int, each: int, index: Path
) -> Iterator[tuple[str, tuple[str, ...], Callable[[Path], object]]]:
    """Changed values of an index, sealed again."""
    content = json.loads(index.read_text())
    content.pop("sha256_of_this_file")
    for name, keys, new in texts.changed_values(content, depth, seed, each):
        if not any(
            isinstance(value, float) and (value != value or abs(value) == float("inf")) for value in _leaves(new)
        ):
            yield name, tuple(map(str, keys))[-1:], partial(write_index, index=new)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inside in value.values():
            yield from _leaves(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside)
    else:
        yield value


def cache(samples: Path) -> Iterator[Case]:
    """A metric cache that an evaluation reads."""
    scenes, index = f"cache/{LOG}.scenes", f"cache/{INDEX}"
    for file, called in ((scenes, LOG), (index, INDEX)):
        short = Path(file).suffix.lstrip(".")
        for name, change in files.befallen(20, 8, Path("cache/index.json") if file == scenes else None):
            yield Case("cache", f"{short}_{name}", SCORE, at(file, change), (called, "cache"))
    for name, words, change in texts.changes(samples / index, 3, 21, 1, most=25):
        yield Case("cache", f"index_{name}", SCORE, at(index, change), (INDEX, *words))
    for name, words, change in _of_index(3, 22, 2, samples / index):
        yield Case("cache", f"sealed_{name}", SCORE, at("cache", change), (INDEX, LOG, *words))
    for name, target in (
        ("outside", "../evil.scenes"),
        ("absolute", "/etc/passwd"),
        ("empty", ""),
        ("folder", "."),
        ("nul", "a\0b"),
        ("long", "x" * 5000),
    ):
        yield Case("cache", f"member_{name}", SCORE, partial(_elsewhere, target=target), (INDEX, "cache", LOG))
    yield Case(
        "cache",
        "member_linked_out",
        SCORE,
        lambda place: _linked_out(place, scenes),
        (LOG,),
        accepted="a link to the very file, in a folder of the user's own: the checksum is right",
    )
    for name, change_header in _headers():
        yield Case("cache", f"scenes_{name}", SCORE, partial(_container, change=change_header), (LOG, INDEX))


def _elsewhere(place: Path, target: str) -> None:
    def change(content: Content) -> None:
        content["logs"][LOG]["file"] = target

    if target.startswith(".."):
        shutil.copy(place / f"cache/{LOG}.scenes", place / "cache" / target)
    _sealed(place / "cache", change)


def _linked_out(place: Path, file: str) -> None:
    shutil.move(place / file, place / "elsewhere.scenes")
    (place / file).symlink_to(place / "elsewhere.scenes")


def _headers() -> Iterator[tuple[str, Callable[[Content], object]]]:
    """Descriptions of a scene file that lie, under right checksums."""

    def array(name: str, at: int, value: Any) -> Callable[[Content], object]:
        return lambda about: about["arrays"][name].__setitem__(at, value)

    yield "array_objects", array("ego_state", 0, "|O")
    yield "array_texts", array("ego_state", 0, "<U11")
    yield "array_integers", array("ego_state", 0, "<i8")
    yield "array_shape_huge", array("ego_state", 1, [1 << 40, 11])
    yield "array_shape_negative", array("ego_state", 1, [-1, 11])
    yield "array_shape_text", array("ego_state", 1, "3")
    yield "array_shape_other", array("ego_state", 1, [11, 3])
    yield "array_beyond", array("ego_state", 2, 1 << 40)
    yield "array_before", array("ego_state", 2, -64)
    yield "array_crooked", array("ego_state", 2, 3)
    yield "array_absent", lambda about: about["arrays"].pop("ego_state")
    yield "array_of_another", lambda about: about["arrays"].update(ego_state=about["arrays"]["ego_time_us"])
    yield "no_arrays", lambda about: about.pop("arrays")
    yield "no_header", lambda about: about.pop("header")
    yield "header_list", lambda about: about.update(header=[])
    yield "header_empty", lambda about: about.update(header={})
    yield "polygons_fewer", array("polygon_type", 1, [1])
    yield (
        "scene_polygon_other",
        lambda about: about["arrays"].update(scene_polygon=about["arrays"]["polygon_ring_count"]),
    )
    yield "counts_other", lambda about: about["arrays"].update(scene_polygon_count=about["arrays"]["route_lane_count"])
    yield "objects_other", lambda about: about["arrays"].update(object_count=["<u2", [1], 0])


def _container(place: Path, change: Callable[[Content], object]) -> None:
    """Another description in a scene file, with both checksums right."""
    path = place / f"cache/{LOG}.scenes"
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content, 8)
    about = json.loads(content[16 : 16 + length])
    change(about)
    text = json.dumps(about).encode()
    text += b" " * (-(16 + len(text)) % 64)
    whole = content[:8] + struct.pack("<Q", len(text)) + text + content[16 + length : -4]
    crc = zlib.crc32(whole)
    path.write_bytes(whole + struct.pack("<I", crc))
    _sealed(place / "cache", lambda index: index["logs"][LOG].update(crc32=crc))


def merge(samples: Path) -> Iterator[Case]:
    """Shards that are joined."""
    shard = "shards/shard-1-of-2"
    index = f"{shard}/{INDEX}"
    scenes = str(only(samples / shard, "*.scenes").relative_to(samples))
    for file in (index, scenes):
        short = Path(file).suffix.lstrip(".")
        for name, change in files.befallen(23, 4):
            yield Case("merge", f"{short}_{name}", MERGE, at(file, change), (Path(file).name, "shard-1-of-2", "1/2"))
    for name, words, change in texts.changes(samples / index, 3, 24, 1, most=15):
        yield Case("merge", f"index_{name}", MERGE, at(index, change), (INDEX, *words))
    for name, words, change in _of_index(3, 25, 1, samples / index):
        yield Case("merge", f"sealed_{name}", MERGE, at(shard, change), (INDEX, shard, *words))
    log = Path(scenes).stem
    for name, target in (
        ("outside", "../evil.scenes"),
        ("far_outside", "../../../evil.scenes"),
        ("absolute", "/tmp/evil.scenes"),
        ("empty", ""),
        ("index", INDEX),
        ("lock", ".lock"),
    ):
        yield Case(
            "merge", f"member_{name}", MERGE, partial(_member, shard=shard, log=log, target=target), (INDEX, shard, log)
        )
    yield Case(
        "merge",
        "shard_twice",
        MERGE,
        lambda place: shutil.copytree(place / shard, place / "shards/shard-3-of-2"),
        ("shard",),
    )
    yield Case("merge", "shard_absent", MERGE, lambda place: shutil.rmtree(place / shard), ("1/2", "shard"))
    yield Case("merge", "of_no_shards", MERGE, lambda place: shutil.rmtree(place / "shards"), ("shards",))
    yield Case(
        "merge",
        "folder_a_file",
        MERGE,
        lambda place: a_file(place / "shards"),
        ("shards",),
    )
    yield Case("merge", "out_a_file", MERGE, lambda place: (place / "out").touch(), ("out",))


def _member(place: Path, shard: str, log: str, target: str) -> None:
    source = place / shard / f"{log}.scenes"
    if target and not target.startswith("/"):
        shutil.copy(source, place / shard / target) if "evil" in target else None
    (place / "evil.scenes").write_text("somebody's file of that name")

    def change(content: Content) -> None:
        content["logs"][log]["file"] = target

    _sealed(place / shard, change)


CONVERT = Call(
    "cache_metrics",
    ("--official-cache", "official", "--workers", "1", "--out", "out"),
    ("official",),
    ("out/*.scenes",),
    ("out", "out/**/*"),
)


def official(samples: Path) -> Iterator[Case]:
    """The devkit's own metric cache: compressed pickles."""
    file = str(only(samples, "official/*/unknown/726dad45000003e9/metric_cache.pkl").relative_to(samples))
    words = ("726dad45000003e9", "official")
    read = (samples / file).read_bytes()
    pickled = lzma.decompress(read)

    def case(name: str, content: bytes | Callable[[], bytes]) -> Case:
        change = pickles.written(content)
        return Case("official", name, CONVERT, lambda place: change(place / file), words)

    for name, change in files.befallen(30, 4):
        yield Case("official", name, CONVERT, at(file, change), words)
    for name, make in pickles.compressed(pickled):
        yield case(name, make)
    for number, (name, value) in enumerate(pickles.values()):
        yield case(f"is_{name}", lzma.compress(pickles.whole(value), preset=0))
        where = (number * 7 % 50) / 50
        yield case(f"holds_{name}", partial(_held, pickled, where, value))
    metadata = str(only(samples, "official/metadata/*.csv").relative_to(samples))
    for name, change in files.befallen(31, 0):
        yield Case("official", f"metadata_{name}", CONVERT, at(metadata, change), ("metadata", *words))


def _held(pickled: bytes, where: float, value: bytes) -> bytes:
    return lzma.compress(pickles.in_place_of(pickled, where, value), preset=0)


VALIDATE = Call("export_submission", ("--validate", "submission.pkl"), ("submission.pkl",), ("-",))


@contextmanager
def _devkit() -> Iterator[tuple[type, type]]:
    """The devkit's two names, as modules that pickle finds."""
    trajectory = type("Trajectory", (), {"__module__": "navsim.common.dataclasses"})
    sampling = type(
        "TrajectorySampling", (), {"__module__": "nuplan.planning.simulation.trajectory.trajectory_sampling"}
    )
    made: dict[str, types.ModuleType] = {}
    for kind in (trajectory, sampling):
        parts = kind.__module__.split(".")
        for count in range(1, len(parts) + 1):
            made.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
        setattr(made[kind.__module__], kind.__name__, kind)
    kept = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield trajectory, sampling
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def submission(samples: Path) -> Iterator[Case]:
    """A submission that is checked."""
    read = (samples / "submission.pkl").read_bytes()
    words = ("submission.pkl",)

    def case(name: str, content: bytes, *more: str) -> Case:
        change = pickles.written(content)
        told = "the official scorer reads numbers out of texts, and the warning says what they are"
        accepted = told if name == "poses_texts" else ""
        return Case(
            "submission", name, VALIDATE, lambda place: change(place / "submission.pkl"), (*words, *more), accepted
        )

    for name, change in files.befallen(40, 0):
        yield Case("submission", name, VALIDATE, at("submission.pkl", change), words)
    for number, (name, value) in enumerate(pickles.values()):
        yield case(f"is_{name}", pickles.whole(value))
        yield case(f"holds_{name}", pickles.in_place_of(read, (number * 7 % 50) / 50, value))
    for name, content in (*_submissions(read), *_of_two_stages(read)):
        yield case(name, content)


def _numbered(_: object, plans: dict[Any, Any]) -> None:
    plans[7] = plans.pop(next(iter(plans)))


def _without(content: Content, _: object, key: str) -> None:
    content.pop(key)


def _with(content: Content, _: object, key: str, value: Any) -> None:
    content[key] = value


def _submissions(read: bytes) -> Iterator[tuple[str, bytes]]:
    """Submissions with other plans or other people."""

    def changed(change: Callable[[Content, dict[str, Any]], object]) -> bytes:
        with _devkit():
            content = pickle.loads(read)
            change(content, content["predictions"][0])
            return pickles.plain(content)

    def plan(change: Callable[[Any], object]) -> bytes:
        return changed(lambda content, plans: change(next(iter(plans.values()))))

    def poses(change: Callable[[Any], Any]) -> bytes:
        return plan(lambda one: setattr(one, "poses", change(one.poses)))

    for key in ("team_name", "authors", "email", "institution", "country / region", "predictions"):
        short = key.split()[0]
        yield f"no_{short}", changed(partial(_without, key=key))
        for word, value in (("none", None), ("empty", ""), ("number", 3), ("bytes", b"a")):
            yield f"{short}_{word}", changed(partial(_with, key=key, value=value))
    yield "no_seeds", changed(lambda content, _: content.update(predictions=[]))
    yield "no_plans", changed(lambda content, _: content.update(predictions=[{}]))
    yield "seeds_differ", changed(lambda content, plans: content["predictions"].append(dict(list(plans.items())[1:])))
    yield "plan_none", changed(lambda _, plans: plans.__setitem__(next(iter(plans)), None))
    yield "plan_array", changed(lambda _, plans: plans.__setitem__(next(iter(plans)), np.zeros((8, 3), np.float32)))
    yield "token_number", changed(_numbered)
    yield "poses_nan", poses(lambda p: p * np.nan)
    yield "poses_infinite_once", poses(lambda p: np.where(np.arange(24).reshape(8, 3) == 23, np.inf, p))
    yield "poses_seven", poses(lambda p: p[:7])
    yield "poses_flat", poses(lambda p: p.reshape(-1))
    yield "poses_none", poses(lambda p: None)
    yield "poses_list", poses(lambda p: p.tolist())
    yield "poses_texts", poses(lambda p: p.astype(str))
    yield "poses_complex", poses(lambda p: p.astype(complex))
    yield "poses_empty", poses(lambda p: p[:0])
    yield "poses_many_axes", poses(lambda p: p.reshape(8, 3, 1))
    yield "poses_a_plan", plan(lambda one: setattr(one, "poses", one))
    yield "sampling_none", plan(lambda one: setattr(one, "trajectory_sampling", None))
    yield "sampling_of_ten_poses", plan(lambda one: setattr(one.trajectory_sampling, "num_poses", 10))
    yield "sampling_interval_text", plan(lambda one: setattr(one.trajectory_sampling, "interval_length", "0.5"))
    yield "sampling_interval_nan", plan(lambda one: setattr(one.trajectory_sampling, "interval_length", float("nan")))


def _of_two_stages(read: bytes) -> Iterator[tuple[str, bytes]]:
    """Submissions of version 2 whose stages are not as they should be."""
    first, second = "first_stage_predictions", "second_stage_predictions"

    def changed(change: Callable[[Content], object]) -> bytes:
        with _devkit():
            content = pickle.loads(read)
            plans = sorted(content.pop("predictions")[0].items())
            content[first], content[second] = [dict(plans[::2])], [dict(plans[1::2])]
            change(content)
            return pickles.plain(content)

    yield "stage_missing", changed(lambda content: content.pop(second))
    yield "stage_none", changed(lambda content: content.update({first: None}))
    yield "stage_a_dict", changed(lambda content: content.update({first: content[first][0]}))
    yield "stage_empty", changed(lambda content: content.update({second: [{}]}))
    yield "stage_of_two_seeds", changed(lambda content: content[first].append(content[first][0]))
    yield "stages_alike", changed(lambda content: content.update({second: content[first]}))
    yield "stage_of_tokens", changed(lambda content: content.update({second: [dict.fromkeys(content[second][0])]}))


CHECK = Call("pack_images", ("--check", "--out", "store"), ("store",), ("-",))
CACHED = Call(
    "pretrain",
    ("--config", "pretrain.yaml", "--image-cache", "images", "--out", "out"),
    (
        "pretrain.yaml",
        "images",
        "world/navsim_logs/trainval",
        "world/sensor_blobs/trainval",
        "world/splits",
        "world/maps/nuplan-maps-v1.0.json",
    ),
    ("out/checkpoints/*/**/*.safetensors", "out/metrics.csv"),
    ("out", "out/**/*", "images/*", "images/*/*"),
)


def imagecache(samples: Path) -> Iterator[Case]:
    """Images that were decoded before: a store that is checked, a cache that a run reads."""
    for kind, call, manifest in (
        ("store", CHECK, only(samples, "store/store.json")),
        ("cache", CACHED, only(samples, "images/*/store.json")),
    ):
        array = only(manifest.parent, "*.npy").relative_to(samples)
        about = manifest.relative_to(samples)
        for file in (array, about):
            for name, change in files.befallen(50, 3 if call is CHECK else 0, about if file == array else None):
                if call is CACHED and name in ("zeros", "noise") and file == array:
                    continue  # --check is what reads every byte; a run does not
                yield Case(
                    "imagecache",
                    f"{kind}_{file.suffix[1:]}_{name}",
                    call,
                    at(file, change),
                    (file.name, manifest.parent.name),
                )
        for name, words, change in texts.changes(manifest, 3, 51, 1, most=25):
            yield Case("imagecache", f"{kind}_json_{name}", call, at(about, change), ("store.json", *words))
        for name, target in (("outside", "../evil.npy"), ("absolute", "/etc/passwd"), ("zeros", "/dev/zero")):
            yield Case(
                "imagecache",
                f"{kind}_member_{name}",
                call,
                at(about, partial(_renamed, name=array.name, target=target)),
                ("store.json", target),
            )


def _renamed(path: Path, name: str, target: str) -> None:
    path.write_text(path.read_text().replace(name, target))


RESCORE = Call(
    "evaluate",
    as_typed("--data-root world --split navtest_all --agent human --metric-cache cache --out scores"),
    (*DRIVE, "cache", "scores"),
    ("scores/scores.csv", "scores/summary.json"),
    ("scores", "scores/**/*"),
)


def evaluation_results(samples: Path) -> Iterator[Case]:
    """A folder that holds results, which the same evaluation replaces."""
    for file in ("summary.json", "scores.csv"):
        for name, change in files.befallen(60, 0):
            yield Case(
                "evaluation results",
                f"{Path(file).stem}_{name}",
                RESCORE,
                at(f"scores/{file}", change),
                (file, "scores"),
            )
    for name, words, change in texts.changes(samples / "scores/summary.json", 2, 61, 1, most=20):
        yield Case(
            "evaluation results", f"summary_{name}", RESCORE, at("scores/summary.json", change), ("scores", *words)
        )
