"""Scores by training step, or another number, as a picture: a panel for each task, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dpvla.files import write_atomically

matplotlib.use("Agg")

PANEL = (5.0, 3.6)  # inches

Curve = Mapping[Any, tuple[float, float]]
"""Mean and standard deviation over seeds by step, or by what else runs from left to right."""


def draw_curves(panels: Sequence[tuple[str, str, Mapping[str, Curve]]], path: Path, across: str = "updates") -> None:
    """Write a PNG; bands are ± one standard deviation over seeds.

    Args:
        panels: (title, name of the score, curve of each method); methods keep their color over panels.
        across: what runs from left to right.
    """
    names = list(dict.fromkeys(name for _, _, curves in panels for name in curves))
    colors = {name: matplotlib.colormaps["tab10"](index % 10) for index, name in enumerate(names)}
    figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    for axes, (title, score, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name, curve in curves.items():
            steps = sorted(curve)
            means = [curve[step][0] for step in steps]
            low = [curve[step][0] - curve[step][1] for step in steps]
            high = [curve[step][0] + curve[step][1] for step in steps]
            axes.plot(steps, means, marker="o", markersize=3, color=colors[name], label=name)
            axes.fill_between(steps, low, high, color=colors[name], alpha=0.12, linewidth=0)
        axes.set(title=title, xlabel=across, ylabel=score)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, ncols=2)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
