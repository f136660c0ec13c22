"""What users type: every option with wrong values, on the command line and in YAML files."""

from __future__ import annotations

import importlib
import json
import os
import random
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from dpvla.config import fields_and_types, group_of
from tests.faults.case import Call, Case, a_file, as_typed, at
from tests.faults.groups import state_based, training
from tests.faults.groups.driving import MAKE, PACK
from tests.faults.mutants import files, texts

CONFIGS = {
    "pretrain": "tools.pretrain:PretrainConfig",
    "rl_finetune": "tools.rl_finetune:FinetuneConfig",
    "train_state_based": "dpvla.state_based.running.config:StateBasedConfig",
    "evaluate": "tools.evaluate:Evaluate",
    "cache_metrics": "tools.cache_metrics:CacheMetrics",
    "pack_images": "tools.pack_images:PackImages",
    "export_submission": "tools.export_submission:ExportSubmission",
    "make_demo_world": "navsim_bridge.demo_world.config:DemoWorldConfig",
    "make_ogbench_data": "dpvla.state_based.data.ogbench.generation:OGBenchGeneration",
    "collect_exorl": "dpvla.state_based.data.exorl.collection_config:ExORLCollection",
}

NEW_PRETRAIN = Call(
    "pretrain",
    ("--config", "pretrain.yaml", "--out", "new"),
    training.TRAIN,
    ("new/checkpoints/*/**/*.safetensors",),
    ("new", "new/**/*", "runs"),
    cpu_s=40,
)
NEW_DIPOLE = replace(training.START_DIPOLE, cpu_s=40.0)
NEW_STATE = replace(state_based.TRAIN, cpu_s=40.0)
SCORE = replace(training.SCORE_MODEL, cpu_s=40.0)
EXPORT = Call(
    "export_submission",
    as_typed(
        "--data-root world --split navtest_all --agent constant_velocity --team-name a "
        "--authors b --email c --institution d --country e --out new.pkl"
    ),
    ("world/navsim_logs/test", "world/splits"),
    ("new.pkl",),
)
CACHE = Call(
    "cache_metrics",
    ("--data-root", "world", "--maps-root", "world/maps", "--split", "navtest_all", "--workers", "1", "--out", "new"),
    ("world/navsim_logs/test", "world/maps/nuplan-maps-v1.0.json", "world/maps/us-ma-boston", "world/splits"),
    ("new/*.scenes",),
    ("new", "new/**/*"),
)
CALLS = {
    "pretrain": NEW_PRETRAIN,
    "rl_finetune": NEW_DIPOLE,
    "train_state_based": NEW_STATE,
    "evaluate": SCORE,
    "cache_metrics": CACHE,
    "pack_images": PACK,
    "export_submission": EXPORT,
    "make_demo_world": MAKE,
    "make_ogbench_data": state_based.GENERATE,
    "collect_exorl": state_based.COLLECT,
}

TEXTUAL = {"out", "root", "env"}
"""Options of text of which almost every value is right."""


def _options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and type of every option."""
    for field, hint in fields_and_types(config):
        group, _ = group_of(hint)
        if group is not None:
            yield from _options(group, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def _kinds(hint: Any) -> set[Any]:
    """Plain types that a hint takes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _kinds(inner[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, inner))
    if origin is Literal:
        return {Literal}
    return {origin or hint}


def _wrong_words(hint: Any) -> Iterator[tuple[str, str]]:
    """Words of the command line that no such option takes."""
    kinds = _kinds(hint)
    if kinds & {int, float}:
        yield from (("text", "text"), ("nan", "nan"), ("infinite", "inf"), ("negative", "-3"), ("empty", ""))
    if int in kinds and float not in kinds:
        yield from (("huge", "9" * 40), ("fraction", "1.5"), ("none", "None"))
    if Literal in kinds:
        yield from (("unknown", "unknown"), ("empty", ""))
    if tuple in kinds:
        yield ("long", "x" * 100_000)


def _wrong_values(hint: Any) -> Iterator[tuple[str, Any]]:
    """The same in YAML."""
    kinds = _kinds(hint)
    if type(None) not in kinds:
        yield "null", None
    yield "mapping", {"a": 1}
    if tuple not in kinds:
        yield "list", [1, 2]
    else:
        yield from (("list_of_options", ["--restart"]), ("list_of_lists", [[[1]]]), ("list_of_nulls", [None]))
    if kinds & {int, float}:
        yield from (("nan", float("nan")), ("negative", -3), ("true", True), ("option", "--restart"))
    if int in kinds and float not in kinds:
        yield from (("huge", 10**40), ("fraction", 1.5))
    if bool in kinds:
        yield from (("text", "maybe"), ("number", 7))
    if str in kinds:
        yield from (("number", 1.5), ("option", "--restart"))


FREE_WORDS = {"loop.lr", "loop.weight_decay"}


def yaml_(samples: Path) -> Iterator[Case]:
    """Recipes."""
    recipes = {"pretrain": "pretrain.yaml", "rl_finetune": "dipole.yaml", "train_state_based": "state.yaml"}
    for seed, (tool, recipe) in enumerate(recipes.items()):
        call = CALLS[tool]
        for name, change in files.befallen(170, 0):
            yield Case("yaml", f"{tool}_{name}", call, at(recipe, change), (recipe,))
        for name, words, change in texts.changes(samples / recipe, 2, 171, 2, most=40, dropped=False):
            yield Case(
                "yaml",
                f"{tool}_{name}",
                call,
                at(recipe, change),
                words or (recipe,),
            )
        module, _, name = CONFIGS[tool].partition(":")
        draw = random.Random(seed)
        for key, hint in _options(getattr(importlib.import_module(module), name)):
            wrong = list(_wrong_values(hint))
            for word, value in draw.sample(wrong, min(3, len(wrong))):
                if key not in ("out", "plugin"):
                    yield Case(
                        "yaml",
                        f"{tool}_option_{key}_{word}",
                        call,
                        at(recipe, partial(_put, key=key, value=value)),
                        (key,),
                    )
        for word, value in (("null", None), ("option", "--restart"), ("list", ["a"]), ("number", 3), ("empty", "")):
            plain = replace(call, argv=tuple(w for w in call.argv if w not in ("--out", "new")))
            yield Case(
                "yaml",
                f"{tool}_out_{word}",
                plain,
                at(recipe, partial(_put, key="out", value=value)),
                ("out",),
            )
        yield Case(
            "yaml",
            f"{tool}_plugin_absent",
            call,
            at(recipe, partial(_put, key="plugin", value=["no_such_module"])),
            ("no_such_module",),
        )
    for word, text in (
        ("option_in_betas", "['0.9', '0.99', '--restart']"),
        ("three_betas", "[0.9, 0.99, 0.999]"),
        ("beta_one", "[0.9, 1.0]"),
        ("beta_nan", "[.nan, 0.9]"),
        ("one_beta", "[0.9]"),
    ):
        value = yaml.safe_load(text)
        yield Case(
            "yaml",
            f"betas_{word}",
            NEW_PRETRAIN,
            at("pretrain.yaml", partial(_put, key="loop.adam_betas", value=value)),
            ("loop.adam_betas",),
        )


def _put(path: Path, key: str, value: Any) -> None:
    content = yaml.safe_load(path.read_text())
    *groups, last = key.split(".")
    holder = content
    for group in groups:
        below = holder.get(group)
        if not isinstance(below, dict):
            below = holder[group] = {} if below is None else {"name": below}
        holder = below
    holder[last] = value
    path.write_text(yaml.safe_dump(content))


def cli(samples: Path) -> Iterator[Case]:
    """Command lines."""
    for seed, (tool, config) in enumerate(CONFIGS.items()):
        call = CALLS[tool]
        module, _, name = config.partition(":")
        draw = random.Random(seed)
        for key, hint in _options(getattr(importlib.import_module(module), name)):
            option = f"--{key.replace('_', '-')}"
            wrong = list(_wrong_words(hint))
            for word, value in draw.sample(wrong, min(2, len(wrong))):
                yield Case("cli", f"{tool}_{key}_{word}", call, _nothing, (key, option), options=(option, value))
        yield Case("cli", f"{tool}_unknown", call, _nothing, ("--of-nobody",), options=("--of-nobody", "1"))
        yield Case("cli", f"{tool}_no_value", call, _nothing, ("--config",), options=("--config",))
        yield Case("cli", f"{tool}_bare_word", call, _nothing, ("bare",), options=("bare",))
        yield Case("cli", f"{tool}_long_word", call, _nothing, ("xxx",), options=("--" + "x" * 100_000,))
        for name, change in files.befallen(180, 0):
            if name in ("fifo", "link_to_zeros", "directory", "sparse", "deleted", "noise"):
                yield Case(
                    "cli",
                    f"{tool}_config_{name}",
                    call,
                    partial(_config, change=change),
                    ("more.yaml",),
                    options=("--config", "more.yaml"),
                )
    yield from _places()


def _nothing(place: Path) -> None:
    """The samples stay as they are."""


def _config(place: Path, change: Callable[[Path], object]) -> None:
    path = place / "more.yaml"
    path.write_text("{}\n")
    change(path)


def _places() -> Iterator[Case]:
    """Folders to write to, and data to read, that are no such things."""
    for tool, option in (
        ("pretrain", "--out"),
        ("cache_metrics", "--out"),
        ("evaluate", "--out"),
        ("pack_images", "--out"),
        ("make_ogbench_data", "--out"),
        ("collect_exorl", "--out"),
        ("train_state_based", "--out"),
        ("make_demo_world", "--root"),
        ("export_submission", "--out"),
    ):
        call = CALLS[tool]
        words = list(call.argv)
        place_of = len(words) - 1 - words[::-1].index(option)
        for name, target, make in (
            ("a_file", "taken", at("taken", a_file)),
            ("below_a_file", "taken/below", at("taken", a_file)),
            ("a_fifo", "taken", lambda place: os.mkfifo(place / "taken")),
            ("a_link_to_nothing", "taken", lambda place: (place / "taken").symlink_to("nowhere/at/all")),
            ("a_link_to_itself", "taken", lambda place: (place / "taken").symlink_to("taken")),
            ("long", "x" * 5000, _nothing),
            ("nul", "a\0b", _nothing),
            ("empty", "", _nothing),
            ("proc", "/proc/self/out", _nothing),
            ("dev_null", "/dev/null", _nothing),
        ):
            changed = replace(call, argv=(*words[: place_of + 1], target, *words[place_of + 2 :]))
            yield Case(
                "cli",
                f"{tool}_out_{name}",
                changed,
                make,
                (target[:40] or "empty name", option, f"{option[2:]} must be"),
            )
    for name, value in (
        ("file", "pretrain.yaml"),
        ("absent", "absent"),
        ("empty", ""),
        ("long", "x" * 5000),
        ("nul", "a\0b"),
    ):
        yield Case(
            "cli",
            f"data_root_{name}",
            NEW_PRETRAIN,
            _nothing,
            ("--data-root", "data_root", value[:40] or "empty"),
            options=("--data-root", value),
        )
        yield Case(
            "cli",
            f"checkpoint_{name}",
            SCORE,
            _nothing,
            ("checkpoint", value[:40] or "empty"),
            options=("--checkpoint", value),
        )
    yield Case("cli", "device_of_nobody", SCORE, _nothing, ("--device", "device"), options=("--device", "quantum"))
    yield Case(
        "cli", "device_seventh", SCORE, _nothing, ("--device", "device", "cuda:7"), options=("--device", "cuda:7")
    )
    yield Case(
        "cli",
        "json_as_config",
        NEW_PRETRAIN,
        lambda place: (place / "x.yaml").write_text(json.dumps([1])),
        ("x.yaml",),
        options=("--config", "x.yaml"),
    )
