"""What a split of two stages is made of: synthetic scenes, its two files, the devkit's caches of version 2."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.faults.case import Call, Case, at
from tests.faults.mutants import files, pickles

SPLIT = "stages/config/two_stage.yaml"
FILTER = "stages/config/scene_filter/two_stage.yaml"
PICKLES = "stages/data/two_stage/synthetic_scene_pickles"
ROOTS = ("--data-root", "stages/data", "--maps-root", "stages/data/maps")
BUILD = Call(
    "cache_metrics",
    (*ROOTS, "--split", SPLIT, "--metric", "epdms", "--workers", "1", "--out", "out"),
    ("stages/config", "stages/data"),
    ("out/*.scenes",),
    ("out", "out/**/*"),
)
CONVERT = Call(
    "cache_metrics",
    ("--official-cache", "stages/metric_cache", "--maps-root", "stages/data/maps", "--workers", "1", "--out", "out"),
    ("stages/metric_cache", "stages/data/maps"),
    ("out/*.scenes",),
    ("out", "out/**/*"),
)


def synthetic_scene(samples: Path) -> Iterator[Case]:
    """Pickles of the second stage: no checksum, so that what is tried cannot be right."""
    path = sorted((samples / PICKLES).glob("*.pkl"))[0]
    file, read = str(path.relative_to(samples)), path.read_bytes()
    words = (path.stem, "synthetic_scene_pickles")

    def case(name: str, content: bytes | Callable[[], bytes]) -> Case:
        change = pickles.written(content)
        return Case("synthetic scene", name, BUILD, lambda place: change(place / file), words)

    for name, change in files.befallen(50, 0):
        yield Case("synthetic scene", name, BUILD, at(file, change), words)
    for number, (name, value) in enumerate(pickles.values()):
        yield case(f"is_{name}", pickles.whole(value))
        yield case(f"holds_{name}", partial(pickles.in_place_of, read, (number * 7 % 50) / 50, value))
        yield case(f"token_{name}", partial(pickles.in_place_of, read, path.stem, value))
    for name, text in (("outside", "../../evil"), ("absolute", "/etc/passwd"), ("empty", ""), ("long", "x" * 5000),
                       ("nul", "a\0b"), ("original", path.stem[:16])):  # fmt: skip
        yield case(f"token_is_{name}", partial(pickles.in_place_of, read, path.stem, pickles.piece(text)))


def official_v2(samples: Path) -> Iterator[Case]:
    """The devkit's metric caches of version 2, of a recorded scene and of a synthetic one."""
    found = sorted((samples / "stages/metric_cache").glob("*/*/*/metric_cache.pkl"))
    for kind, length in (("recorded", 16), ("synthetic", 17)):
        path = next(one for one in found if len(one.parent.name) == length)
        file, pickled = str(path.relative_to(samples)), lzma.decompress(path.read_bytes())
        words = (path.parent.name, "metric_cache")

        def case(name: str, content: bytes | Callable[[], bytes], file: str = file, words: Any = words) -> Case:
            change = pickles.written(content)
            return Case("official v2", name, CONVERT, lambda place: change(place / file), words)

        for name, change in files.befallen(51, 4):
            yield Case("official v2", f"{kind}_{name}", CONVERT, at(file, change), words)
        for number, (name, value) in enumerate(pickles.values()):
            yield case(f"{kind}_is_{name}", lzma.compress(pickles.whole(value), preset=0))
            yield case(f"{kind}_holds_{name}", partial(_held, pickled, (number * 7 % 50) / 50, value))


def _held(pickled: bytes, where: float, value: bytes) -> bytes:
    return lzma.compress(pickles.in_place_of(pickled, where, value), preset=0)


def two_stage_split(samples: Path) -> Iterator[Case]:
    """The two files of a split: which scenes, and which of them belong together."""
    for file, seed in ((SPLIT, 52), (FILTER, 53)):
        short = "filter" if file == FILTER else "split"
        for name, change in files.befallen(seed, 0):
            yield Case("two-stage split", f"{short}_{name}", BUILD, at(file, change), ("two_stage",))
    groups = yaml.safe_load((samples / SPLIT).read_text())["reactive_all_mapping"]
    (now, before, pairs), words = groups[0], ("two_stage", "reactive_all_mapping")
    for name, changed in (
        ("no_groups", []),
        ("groups_text", "all"),
        ("groups_numbers", [1, 2, 3]),
        ("group_twice", [*groups, groups[0]]),
        ("group_short", [[now, before]]),
        ("group_long", [[now, before, pairs, pairs]]),
        ("group_without_pairs", [[now, before, []]]),
        ("one_token_twice", [[now, now, pairs]]),
        ("token_number", [[7, before, pairs]]),
        ("token_null", [[None, before, pairs]]),
        ("token_unknown", [["0" * 16, before, pairs]]),
        ("pair_twice", [[now, before, [*pairs, pairs[0]]]]),
        ("pair_of_three", [[now, before, [[*pairs[0], pairs[0][0]], *pairs[1:]]]]),
        ("pair_of_one", [[now, before, [pairs[0][:1], *pairs[1:]]]]),
        ("pair_recorded", [[now, before, [[now, before], *pairs[1:]]]]),
        ("pair_unknown", [[now, before, [["0" * 17, "1" * 17], *pairs[1:]]]]),
        ("pair_missing", [[now, before, pairs[1:]]]),
        ("groups_deep", [[now, before, [[[[[pairs]]]]]]]),
    ):
        yield Case("two-stage split", name, BUILD, partial(_grouped, groups=changed), words)
    for name, key, value in (
        ("second_stage_missing", "reactive_synthetic_initial_tokens", None),
        ("second_stage_empty", "reactive_synthetic_initial_tokens", []),
        ("second_stage_recorded", "reactive_synthetic_initial_tokens", [now]),
        ("second_stage_numbers", "reactive_synthetic_initial_tokens", [1, 2]),
        ("first_stage_synthetic", "tokens", [pairs[0][0]]),
        ("future_short", "num_future_frames", 2),
    ):
        yield Case("two-stage split", name, BUILD, partial(_filtered, key=key, value=value), (*words, key))


def _grouped(place: Path, groups: object) -> None:
    content = yaml.safe_load((place / SPLIT).read_text())
    (place / SPLIT).write_text(yaml.safe_dump({**content, "reactive_all_mapping": groups}))


def _filtered(place: Path, key: str, value: object) -> None:
    content = yaml.safe_load((place / FILTER).read_text())
    (place / FILTER).write_text(yaml.safe_dump({**content, key: value}))
