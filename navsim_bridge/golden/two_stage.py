"""What the devkit made of a split of two stages, and of made-up rows of one: what ours is compared with.

A reference set is a folder with `data/`, `config/`, `metric_cache/` and `official/`; the last holds for every set of
plans KIND `plans_KIND.npz`, `submission_KIND.pkl`, `KIND_v212.csv`, `KIND_v212_tokens.npz` and `KIND_traffic.npz`, some
of which may be missing. Made-up rows stand in `aggregation_cases.json` and `aggregation_cases_motion.npz`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.submissions import read_submission
from navsim_bridge.splits.two_stage import Group

Float = NDArray[np.float64]
CASES, MOTION = "aggregation_cases.json", "aggregation_cases_motion.npz"
RESULT = "res_"
PRODUCT = "multiplicative_metrics_prod"


@dataclass(frozen=True)
class AggregationCase:
    """Made-up rows of tokens, and what the devkit's aggregation made of them."""

    name: str
    groups: tuple[Group, ...]
    tokens: tuple[str, ...]
    values: dict[str, Float]  # column -> (row,) sub-scores of one frame, and PRODUCT of the multipliers
    times_us: NDArray[np.int64]  # (row,)
    ends: Float  # (row, 2) of the plans
    starts: Float  # (row, 2)
    motion: Float  # (row, 41, 3)
    official: Mapping[str, Any]  # rows (weight, comfort, score), combined, stage_one, stage_two; empty: it failed


@dataclass(frozen=True)
class PlanSet:
    """Plans of tokens of both stages."""

    name: str
    plans: dict[str, NDArray[Any]]  # token -> (8, 3) float32
    submitted: dict[str, NDArray[Any]] | None  # the same as a submission file has them; None: there is none
    tables: dict[str, dict[str, dict[str, float]]]  # file name -> token or row of means -> column -> value
    results: dict[str, TokenResults]  # file name -> results before aggregation
    traffic: dict[tuple[str, str], OfficialFrames]  # token and who the traffic reacts to: plan or human


@dataclass(frozen=True)
class TokenResults:
    """Results of tokens one by one."""

    tokens: tuple[str, ...]
    values: dict[str, Float]  # column -> (token,)
    states: Float | None  # (token, 41, 11) simulated, global frame; None: not stored


@dataclass(frozen=True)
class OfficialFrames:
    """Objects in 41 frames, in the devkit's order."""

    offsets: NDArray[np.int64]  # (42,)
    tokens: tuple[str, ...]  # (row,)
    types: tuple[str, ...]  # (row,)
    boxes: Float  # (row, 7) center x, center y, heading, length, width, velocity x, velocity y; global frame


def aggregation_cases(folder: Path) -> Iterator[AggregationCase]:
    """The cases of a folder; none where it has no such file."""
    if not (folder / CASES).is_file():
        return
    with open(folder / CASES) as file, np.load(folder / MOTION) as motions:
        for number, raw in enumerate(json.load(file)):
            rows = raw["rows"]
            about = ("token", "valid", "start_time")

            def column(name: str, rows: Any = rows) -> Float:
                found = [row.get(name) for row in rows]
                return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

            yield AggregationCase(
                name=f"{number} {raw['kind']}",
                groups=tuple(Group(now, before, tuple(map(tuple, pairs))) for now, before, pairs in raw["mapping"]),
                tokens=tuple(row["token"] for row in rows),
                values={n: column(n) for n in rows[0] if n not in about and "point" not in n},
                times_us=np.round(column("start_time") * 1e6).astype(np.int64),
                ends=np.stack([column("endpoint_x"), column("endpoint_y")], axis=-1),
                starts=np.stack([column("start_point_x"), column("start_point_y")], axis=-1),
                motion=motions[f"case{number}_motion"],
                official=raw["official"] if isinstance(raw["official"], dict) and "rows" in raw["official"] else {},
            )


def plan_sets(folder: Path) -> Iterator[PlanSet]:
    """All that `official/` of a reference set holds; a set may have its plans in a submission file alone."""
    beside = folder / "official"
    of_arrays = {path.stem.removeprefix("plans_"): path for path in beside.glob("plans_*.npz")}
    submissions = {path.stem.removeprefix("submission_"): path for path in beside.glob("submission_*.pkl")}
    for name in sorted({*of_arrays, *submissions}):
        submitted = _submitted(submissions[name]) if name in submissions else None
        plans = submitted
        if name in of_arrays:
            with np.load(of_arrays[name]) as file:
                plans = dict(zip(file["tokens"].tolist(), file["poses"]))
        assert plans is not None
        yield PlanSet(
            name,
            plans,
            submitted,
            {table.stem: _table(table) for table in sorted(beside.glob(f"{name}_v*.csv"))},
            {found.stem: _results(found) for found in sorted(beside.glob(f"{name}_v*_tokens.npz"))},
            _traffic(beside / f"{name}_traffic.npz"),
        )


def _submitted(path: Path) -> dict[str, NDArray[Any]]:
    """The plans of both stages of a submission."""
    stages = read_submission(path).stages
    return {token: plan.poses for seeds in stages for seed in seeds for token, plan in seed.items()}


def _table(path: Path) -> dict[str, dict[str, float]]:
    """Rows by token: NaN for an empty cell, 1 and 0 for true and false."""
    words = {"": np.nan, "True": 1.0, "False": 0.0}
    with open(path, newline="") as file:
        return {
            row["token"]: {
                name: words[cell] if cell in words else float(cell)
                for name, cell in row.items()
                if name not in ("", "token")
            }
            for row in csv.DictReader(file)
        }


def _results(path: Path) -> TokenResults:
    with np.load(path) as file:
        values = {name.removeprefix(RESULT): file[name] for name in file.files if name.startswith(RESULT)}
        states = file["sim_states"] if "sim_states" in file.files else None
        return TokenResults(tuple(file["tokens"].tolist()), values, states)


def _traffic(path: Path) -> dict[tuple[str, str], OfficialFrames]:
    if not path.is_file():
        return {}
    found = {}
    with np.load(path) as file:
        for token, who in sorted({tuple(name.split("/")[:2]) for name in file.files}):
            part = {key: file[f"{token}/{who}/{key}"] for key in
                    ("frame_offsets", "obj_track_idx", "obj_boxes", "track_tokens", "track_types")}  # fmt: skip
            index = part["obj_track_idx"].tolist()
            found[token, who] = OfficialFrames(
                part["frame_offsets"].astype(np.int64),
                tuple(str(part["track_tokens"][i]) for i in index),
                tuple(str(part["track_types"][i]) for i in index),
                part["obj_boxes"],
            )
    return found
