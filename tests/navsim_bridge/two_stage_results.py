"""What the devkit scored of the group of a two-stage split (tests/fixtures/two_stage_v1), as a reference set has it.

The totals of the group, which the devkit's file has of four, are made of its rows by the formula, one number at a time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.files.submissions import METADATA, USUAL, SubmittedPlan, write_submission_file
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.splits.two_stage import SYNTHETIC_TOKEN
from tests.navsim_bridge.two_stage_world import FIXTURE, TwoStageWorld

STAGES = ("_stage_one", "_stage_two")
TOTALS = ("extended_pdm_score_stage_one", "extended_pdm_score_stage_two", "extended_pdm_score_combined")

Rows = dict[str, dict[str, str]]


def plans() -> dict[str, NDArray[np.float32]]:
    """Token -> (8, 3) the plan that was scored."""
    with np.load(FIXTURE / "results.npz") as file:
        return dict(zip(file["tokens"].tolist(), file["plans"]))


def official_rows(world: TwoStageWorld) -> Rows:
    """The devkit's table by token, and the totals of this group."""
    with open(FIXTURE / "mixed_v212.csv", newline="") as file:
        rows: Rows = {row["token"]: {name: cell for name, cell in row.items() if name} for row in csv.DictReader(file)}
    for name, total in _totals(rows, world).items():
        cells = {column: repr(total[column]) if column in total else "" for column in next(iter(rows.values()))}
        rows[name] = {**cells, "token": name, "valid": "True"}
    return rows


def _totals(rows: Rows, world: TwoStageWorld) -> dict[str, dict[str, float]]:
    assert world.split.two_stage is not None and world.split.two_stage.groups is not None
    (group,) = world.split.two_stage.groups
    poses = {}
    for record in world.records:
        state = np.zeros((1, 11))
        state[0, :3] = record.pose
        poses[record.token] = ego_state_as_read_back(state)[0, :3].tolist()
    names = [name for name in rows[group.now] if name.endswith(STAGES)]
    one: dict[str, list[float]] = {name: [] for name in (*names[: len(names) // 2], "score")}
    two: dict[str, list[float]] = {name: [] for name in (*names[len(names) // 2 :], "score")}
    for half, first in enumerate((group.now, group.previous)):
        x, y, heading = poses[first]
        forward, left, _ = plans()[first][-1].tolist()
        end = (
            x + forward * math.cos(heading) - left * math.sin(heading),
            y + forward * math.sin(heading) + left * math.cos(heading),
        )
        followers = [pair[half] for pair in group.pairs]
        kernel = [math.exp(-(math.dist(end, poses[token][:2]) ** 2) / 0.2) for token in followers]
        weights = [1 / len(kernel) if sum(kernel) <= 1e-8 else weight / sum(kernel) for weight in kernel]
        for name, values in one.items():
            values.append(float(rows[first][name]))
        for name, values in two.items():
            values.append(sum(w * float(rows[token][name]) for w, token in zip(weights, followers)))
    of_one, of_two = ({name: sum(values) / 2 for name, values in stage.items()} for stage in (one, two))
    score = sum(a * b for a, b in zip(one["score"], two["score"])) / 2
    return dict(zip(TOTALS, (of_one, of_two, {**of_one, **of_two, "score": score})))


def write_official(world: TwoStageWorld, root: Path) -> None:
    """Add `official/` of a reference set to ``root``, where the world is."""
    folder = root / "official"
    folder.mkdir()
    with np.load(FIXTURE / "results.npz") as file:
        found = {name: file[name] for name in file.files}
    np.savez(folder / "plans_mixed.npz", tokens=found["tokens"], poses=found["plans"])
    write_submitted(folder / "submission_mixed.pkl", plans())
    traffic = {name.removeprefix("traffic/"): found.pop(name) for name in list(found) if name.startswith("traffic/")}
    np.savez(folder / "mixed_traffic.npz", **traffic)  # type: ignore[arg-type]
    del found["plans"]
    np.savez(folder / "mixed_v212_tokens.npz", **found)  # type: ignore[arg-type]
    write_table(folder / "mixed_v212.csv", official_rows(world))


def write_submitted(path: Path, submitted: Mapping[str, NDArray[np.float32]]) -> None:
    """A submission file of plans of both stages."""
    stages: tuple[dict[str, SubmittedPlan], ...] = ({}, {})
    for token, poses in submitted.items():
        stages[len(token) == SYNTHETIC_TOKEN][token] = SubmittedPlan(poses, USUAL)
    write_submission_file(path, dict.fromkeys(METADATA, "us"), [[stage] for stage in stages])


def write_table(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """The devkit's file of a table."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = list(next(iter(rows.values())))
    writer.writerow(["", *columns])
    for number, row in enumerate(rows.values()):
        writer.writerow([number, *(row[column] for column in columns)])
    path.write_text(text.getvalue())
