"""Where a run's numbers go: a plain CSV always, and the trackers accelerate was asked for."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from dpvla.checkpoint_layout import METRICS_FILE
from dpvla.files import FileError, naming, read_text, write_text


class MetricsCSV:
    """One row per logged step. New columns are appended; rows of steps to be run again are dropped on resume."""

    def __init__(self, path: Path, first_step: int, rows: int | None = None) -> None:
        """``rows``: how many the checkpoint of ``first_step`` counted; None where it is of an earlier version.

        Raises FileError for a file that is no such table.
        """
        self.path = path
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, str]] = []
        if path.exists():
            self._columns, found = read_rows(path)
            if rows is not None and len(found) < rows:
                raise FileError(
                    f"{path} has {len(found)} rows of the {rows} that were logged: put it back, or remove it to log "
                    "anew"
                )
            self._rows = [row for row in found if _stays(row, first_step)] if rows is None else found[:rows]
            self._rewrite()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of ``step``."""
        row = {"step": str(step)} | {name: f"{value:.8g}" for name, value in values.items()}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite()
        else:
            with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def flushed(self) -> int:
        """How many rows there are, all of them on disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return len(self._rows)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a ``metrics.csv``, of which a kill may have cut off the last.

    Raises FileError for a file that holds something else.
    """
    text = read_text(path)
    whole, end, _ = text.rpartition("\n")
    try:
        reader = csv.DictReader(io.StringIO(whole + end, newline=""), strict=True)
        columns, rows = list(reader.fieldnames or ["step"]), list(reader)
        wrong = next((n for n, row in enumerate(rows, 2) if not _is_row(row)), None)
    except csv.Error as error:
        columns, wrong = [], str(error)  # type: ignore[assignment]
    if wrong is not None or columns[0] != "step" or len(set(columns)) < len(columns):
        where = f"line {wrong}" if isinstance(wrong, int) else wrong or "its first line"
        raise FileError(f"{path} is no table of logged steps ({where}): put it back, or remove it to log anew")
    return columns, rows


def _is_row(row: Mapping[str | None, str | None]) -> bool:
    """A step, then a number or nothing in every other column."""
    try:
        for name, value in row.items():
            int(value) if name == "step" else float(value or 0)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return None not in row and None not in row.values()


def _stays(row: Mapping[str, str | None], first_step: int) -> bool:
    """Whether a row is of what a checkpoint of an earlier version holds: roll-outs at its step were made after it."""
    if int(row["step"] or 0) != first_step:
        return int(row["step"] or 0) < first_step
    return not all(name.startswith("rollout/") for name, value in row.items() if value and name != "step")


class Tracker:
    """Sends named numbers to ``metrics.csv`` and to accelerate's trackers; silent on all but the main process."""

    def __init__(self, accelerator: Accelerator, run_dir: Path, first_step: int, rows: int | None) -> None:
        self._accelerator = accelerator
        self._csv = MetricsCSV(run_dir / METRICS_FILE, first_step, rows) if accelerator.is_main_process else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` (plain floats) at ``step``."""
        if self._csv is not None:
            self._csv.write(step, values)
        self._accelerator.log(dict(values), step=step)

    def flushed(self) -> int:
        """Rows so far, on disk; 0 on all but the main process."""
        return 0 if self._csv is None else self._csv.flushed()
