"""What made the numbers of a score file, ours or the devkit's, and do its scores follow from its own columns?

The human filter as released (devkit 2.1.2, and 2.2 before 2025-09-29) sets a sub-score to 1 that the recorded driver
fails as well, and makes the score of the values before. A plan may then have 1 in every column and score 0. The filter
as corrected makes the score of the columns. So a row of which the score is less than its columns come to tells the
released filter; rows that agree tell none, unless a summary stands beside them.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpvla.files import FileError, read_json, read_text, short
from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding, verdict
from navsim_bridge.pdm.formula import EXTENDED_PDM_SCORE, PDM_SCORE, Column, total
from navsim_bridge.splits.token_list import MOST_BYTES, SUMMARY_ROWS

SCORES, SUMMARY = "scores.csv", "summary.json"
STAGES = ("_stage_one", "_stage_two")
EXTENDED, COMBINED = "lane_keeping", "extended_pdm_score_combined"
"""A column that EPDMS alone has, and the last row of two stages."""
TOLERANCE = 1e-6
RELEASED = "as released (v2.1.2), which sets columns to 1 that the recorded driver fails, too, and not the score"


@dataclass(frozen=True)
class Row:
    """A scene of a score file."""

    token: str
    score: float
    values: Mapping[str, float]  # by column; NaN where there is none
    expected: float  # what the columns come to


@dataclass(frozen=True)
class Table:
    """A score file."""

    path: Path
    columns: tuple[Column, ...]
    two_stages: bool
    rows: tuple[Row, ...]
    invalid: tuple[str, ...]  # tokens of scenes without a score
    stated: float | None  # what its last row says

    @property
    def extended(self) -> bool:
        """Whether it is of EPDMS."""
        return self.columns is EXTENDED_PDM_SCORE


def check_results(path: str) -> Iterator[Finding]:
    """A folder of tools/evaluate.py, or a score file of ours or of the devkit (v1 and v2, one stage and two)."""
    file = Path(path) / SCORES if Path(path).is_dir() else Path(path)
    beside = file.with_name(SUMMARY) if file.name == SCORES else None
    try:
        table = read_scores(file)
        summary = read_json(beside) if beside is not None and beside.is_file() else {}
    except (OSError, ValueError) as error:
        yield Finding(ERROR, f"scores: {error}", "give a folder of tools/evaluate.py, or a score file of the devkit")
        return
    yield from _what(table)
    yield _filter(table, summary)
    yield from _zeros(table)
    yield from _of_summary(file, summary)


def _what(table: Table) -> Iterator[Finding]:
    scenes = len(table.rows) + len(table.invalid)
    name = "EPDMS" if table.extended else "PDMS"
    kind = f"{name}, two stages" if table.two_stages else name
    stated = "" if table.stated is None else f", in all {100 * table.stated:.2f}"
    yield Finding(OK, f"{table.path}: {kind}, {scenes} scenes{stated}")
    if table.invalid:
        remedy = "see the log of the evaluation; a mean without them is no score of the split"
        first = f"{len(table.invalid)} of {scenes} scenes have no valid score, first {table.invalid[0]}"
        yield Finding(ERROR, f"{table.path}: {first}", remedy)
    elif not table.two_stages and table.stated is not None:
        mean = math.fsum(row.score for row in table.rows) / len(table.rows)
        off = abs(mean - table.stated) > TOLERANCE
        problem = f"{table.path}: its rows come to {100 * mean:.4f}, its last row says {100 * table.stated:.4f}"
        remedy = "rows were added, removed or changed: evaluate again"
        yield verdict(problem if off else "", remedy, f"{table.path}: its last row is the mean of the others")


def _filter(table: Table, summary: Mapping[str, Any]) -> Finding:
    """Which human filter made the scores."""
    more = [row for row in table.rows if row.score > row.expected + TOLERANCE]
    less = [row for row in table.rows if row.score < row.expected - TOLERANCE]
    said = summary.get("metric", {}).get("human_filter") if isinstance(summary.get("metric"), dict) else None
    wrong = more or (less if not table.extended or said in ("fixed", "off") else [])
    if wrong:
        return Finding(
            ERROR, f"{table.path}: {len(wrong)} scores are not what their columns come to, first {_row(wrong[0])}",
            "the file was changed, or is of another metric: evaluate again",
        )  # fmt: skip
    if not table.extended:
        return Finding(OK, "human filter: none; PDMS has none. Every score is what its columns come to")
    if less:
        found = f"human filter: {RELEASED}: in {len(less)} of {len(table.rows)} scenes, first {_row(less[0])}"
        return Finding(WARNING, found, "compare with scores by the same filter alone, or evaluate with "
                       "--human-filter fixed, which makes the score of the columns")  # fmt: skip
    agree = "every score is what its columns come to"
    if said is not None:
        return Finding(OK, f"human filter: {said!s:.80}, as {SUMMARY} says; {agree}")
    return Finding(
        OK, f"human filter: {agree}, so it was the corrected one (since 2025-09-29) or "
        "none, or there was nothing to forgive: rows cannot tell which",
    )  # fmt: skip


def _zeros(table: Table) -> Iterator[Finding]:
    """Why scores are 0."""
    zero = [row for row in table.rows if row.score < TOLERANCE]
    if not zero:
        return
    causes = Counter(_cause(table.columns, row) for row in zero)
    listed = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
    yield Finding(OK, f"{len(zero)} of {len(table.rows)} scenes score 0: {listed}")


def _cause(columns: Sequence[Column], row: Row) -> str:
    failed = [column.label for column in columns if column.multiplies and row.values[column.name] < TOLERANCE]
    if failed:
        return " and ".join(failed)
    return "all multipliers above 0 (the human filter)" if row.expected > TOLERANCE else "nothing but multipliers"


def _of_summary(file: Path, summary: Mapping[str, Any]) -> Iterator[Finding]:
    """What a summary warns of."""
    if not summary:
        yield Finding(OK, f"no {SUMMARY} beside {file.name}: what made it, and on what it was trained, is not known")
        return
    if summary.get("whole_split") is False:
        yield Finding(WARNING, f"{SUMMARY}: a part of {short(summary.get('split'), 80)} only",
                      "get the rest; it cannot be compared with scores of the split")  # fmt: skip
    if summary.get("trained_on_evaluation_split"):
        yield Finding(WARNING, f"{SUMMARY}: the weights were trained on scenes or logs of what was scored",
                      "it is no held-out score")  # fmt: skip


def _row(row: Row) -> str:
    return f"{row.token:.40}: score {row.score:.4g}, columns {row.expected:.4g}"


def read_scores(path: Path) -> Table:
    """A score file, every number looked at. Raises FileError where it is none, OSError where it cannot be read."""
    text = read_text(path, MOST_BYTES).removeprefix("\ufeff")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names, lines = reader.fieldnames or (), list(reader)
    except csv.Error as error:
        raise FileError(f"{path}: not a readable CSV file ({error})") from None
    two_stages = f"{EXTENDED}{STAGES[0]}" in names
    columns = EXTENDED_PDM_SCORE if two_stages or EXTENDED in names else PDM_SCORE
    endings = STAGES if two_stages else ("",)
    needed = [f"{column.name}{end}" for column in columns for end in endings if not column.optional]
    if lacking := [name for name in ("token", "score", *needed) if name not in names]:
        raise FileError(f"{path}: no score file: it has no column {lacking[0]}")
    rows, invalid, stated = [], [], None
    for number, line in enumerate(lines, 1):
        token, where = str(line["token"]), f"{path}, row {number}"
        if token.startswith(SUMMARY_ROWS):
            stated = _number(line, "score", where) if not two_stages or token == COMBINED else stated
            continue
        row = _read_row(token, line, columns, endings, where)
        if row is None or str(line.get("valid", "True")) == "False":
            invalid.append(token)
        else:
            rows.append(row)
    if not rows and not invalid:
        raise FileError(f"{path} holds no scene")
    stated = None if stated is None or math.isnan(stated) else stated
    return Table(path, columns, two_stages, tuple(rows), tuple(invalid), stated)


def _read_row(
    token: str, line: Mapping[str, Any], columns: Sequence[Column], endings: Sequence[str], where: str
) -> Row | None:
    """None for a scene that has no score. Of two stages a scene has the columns of one."""
    score = _number(line, "score", where)
    for end in endings:
        values = {column.name: _number(line, f"{column.name}{end}", where) for column in columns}
        if not any(math.isnan(values[column.name]) for column in columns if not column.optional):
            come_to = total(columns, {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()})
            return None if math.isnan(score) else Row(token, score, values, come_to.item())
    return None


def _number(line: Mapping[str, Any], name: str, where: str) -> float:
    """A value from 0 to 1; NaN where there is none."""
    text = line.get(name) or ""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if not (math.isnan(value) or -TOLERANCE <= value <= 1 + TOLERANCE):
        raise FileError(f"{where}: {name} must be a number from 0 to 1, found {short(text, 80)}")
    return value
