"""The picture of a run, from what it has logged so far."""

from __future__ import annotations

from pathlib import Path

from dpvla.checkpoint_layout import METRICS_FILE, PICTURE
from dpvla.report.run_picture import draw_rows
from dpvla.training.tracking import read_rows


def draw_run(run_dir: Path) -> None:
    """Write ``run.png``; nothing where nothing is logged."""
    if (table := run_dir / METRICS_FILE).exists():
        draw_rows(read_rows(table)[1], run_dir / PICTURE)
