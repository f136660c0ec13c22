"""Methods compared, as pictures: intervals in a column, values over two settings, lines with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpvla.files import write_atomically

matplotlib.use("Agg")

PANEL = (4.6, 3.6)  # inches
COLORS = matplotlib.colormaps["tab10"]


@dataclass(frozen=True)
class Bar:
    """A method: its mean, where that may lie, and the means of its seeds."""

    title: str
    mean: float
    low: float
    high: float
    seeds: Sequence[float] = ()
    group: str = ""  # bars of a group have one color


@dataclass(frozen=True)
class Panel:
    """Lines over one quantity; each is of points (x, mean, spread over seeds)."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Field:
    """Values over two settings, NaN where there is none yet."""

    title: str
    x: str
    y: str
    xs: Sequence[float]
    ys: Sequence[float]
    values: NDArray[np.float64]  # (y, x)


def draw_bars(bars: Sequence[Bar], score: str, path: Path) -> None:
    """Write a PNG: a line for each method from the top down, dots for seeds, whiskers for the interval."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    figure = Figure(figsize=(7.0, 0.9 + 0.32 * len(bars)), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for place, bar in enumerate(bars):
        color = COLORS(groups.index(bar.group) % 10)
        axes.plot([bar.low, bar.high], [place, place], color=color, linewidth=2, solid_capstyle="butt", alpha=0.6)
        axes.plot(bar.seeds, [place] * len(bar.seeds), ".", color=color, markersize=5, alpha=0.7)
        label = bar.group if bar.group and bar.group not in named else None
        axes.plot([bar.mean], [place], "D", color=color, markersize=5, label=label)
        named.add(bar.group)
    axes.set(yticks=range(len(bars)), xlabel=score)
    axes.set_yticklabels([bar.title for bar in bars], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if named - {""}:
        figure.legend(fontsize=7, loc="outside upper right", ncols=len(named), frameon=False)
    _save(figure, path)


def draw_lines(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG: panels side by side; lines keep their color over them, bands are ± one deviation over seeds."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in zip(grid, panels):
        for name, points in panel.lines.items():
            if not points:
                continue
            x, mean, deviation = np.array(sorted(points), dtype=float).T
            color = COLORS(names.index(name) % 10)
            axes.plot(x, mean, marker="o", markersize=3, color=color, label=name)
            axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        if panel.log_x:
            _few_ticks(axes, [x for points in panel.lines.values() for x, _, _ in points])
        if panel.log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    for axes in list(grid):
        axes.set_axis_off()
    _save(figure, path)


def draw_fields(fields: Sequence[Field], score: str, path: Path) -> None:
    """Write a PNG: a map of values for each field, all in the same colors, every value printed."""
    finite = [value for field in fields for value in field.values.ravel() if np.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    figure = Figure(figsize=(PANEL[0] * len(fields), PANEL[1]), layout="constrained")
    all_axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axes, field in zip(all_axes, fields):
        shown = axes.imshow(field.values, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(field.values):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")  # fmt: skip
        axes.set(title=field.title, xlabel=field.x, ylabel=field.y)
        axes.set_xticks(range(len(field.xs)), [f"{x:g}" for x in field.xs])
        axes.set_yticks(range(len(field.ys)), [f"{y:g}" for y in field.ys])
    figure.colorbar(shown, ax=list(all_axes), label=score)
    _save(figure, path)


def _few_ticks(axes: matplotlib.axes.Axes, values: Sequence[float]) -> None:
    """A logarithmic axis that names the points there are, as many as have room."""
    axes.set_xscale("log")
    ticks = sorted(set(values))
    ticks = ticks[:: -(-len(ticks) // 6) or 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
