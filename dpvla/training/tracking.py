"""Where a run's numbers go: a plain CSV always, and the trackers accelerate was asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from dpvla.checkpoint_layout import METRICS_FILE
from dpvla.files import write_text


class MetricsCSV:
    """One row per logged step. New columns are appended; rows of steps to be run again are dropped on resume."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                self._rows = [row for row in reader if _stays(row, first_step)]
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
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def _stays(row: Mapping[str, str | None], first_step: int) -> bool:
    """Whether a row is of what the checkpoint holds: roll-outs at its step came after it and are made again."""
    if int(row["step"] or 0) != first_step:
        return int(row["step"] or 0) < first_step
    return not all(name.startswith("rollout/") for name, value in row.items() if value and name != "step")


class Tracker:
    """Sends named numbers to ``metrics.csv`` and to accelerate's trackers; silent on all but the main process."""

    def __init__(self, accelerator: Accelerator, run_dir: Path, first_step: int) -> None:
        self._accelerator = accelerator
        self._csv = MetricsCSV(run_dir / METRICS_FILE, first_step) if accelerator.is_main_process else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` (plain floats) at ``step``."""
        if self._csv is not None:
            self._csv.write(step, values)
        self._accelerator.log(dict(values), step=step)
