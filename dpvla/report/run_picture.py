"""A run of reinforcement learning as a picture, from the numbers that it logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpvla.files import write_atomically

matplotlib.use("Agg")

COLUMNS, PANEL = 3, (4.9, 3.9)  # panels in a row; inches
ROLLED, HELD_OUT, ALARM = "rollout/", "heldout/", "alarm/"
SCORE, BEST, SPREAD, FLAT = "score", "reward_best", "reward_spread", "zero_spread_groups"
DISTANCES = ("from_pretrained_m", "pairwise_distance_m", "endpoint_spread_m")
SHARES = ("reversing", "standing")
DIFFERENCES = ("_rise", "_fall")  # from the pretrained policy
COLORS = [matplotlib.colormaps["tab10"](index) for index in (0, 1, 2, 4, 5, 6, 7, 8, 9)]  # red is for alarms
RED, LIGHT = "#c0392b", "#dfe3e6"

Curve = tuple[list[int], list[float]]
"""Updates and values."""
Panel = tuple[str, Callable[[Axes], None]]
"""Title, and what draws it."""


def draw_rows(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Write a PNG of the rows of ``metrics.csv``; nothing where nothing was rolled out. The same rows, the same file.

    Panels: score, sub-scores of each metric, distances, weights, gradients, updates of the adapters, and what alarms
    look at. Vertical lines are roll-outs, dashed curves held-out scenes, red triangles alarms.
    """
    logged = _curves(rows)
    rolled = logged.get(ROLLED + SCORE)
    if rolled is None:
        return
    panels, last = _panels(logged), max(1, *(int(row["step"]) for row in rows))
    height = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * height), layout="constrained", facecolor="white")
    for place, axes in enumerate(figure.subplots(height, COLUMNS, squeeze=False).flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        for step in rolled[0]:
            axes.axvline(step, color=LIGHT, linewidth=0.8, zorder=0)
        title, draw = panels[place]
        draw(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("updates", fontsize=8)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(-0.02, -0.16))
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _curves(rows: Sequence[Mapping[str, str]]) -> dict[str, Curve]:
    """Every column that has values."""
    found: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if value and name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return found


def _panels(logged: Mapping[str, Curve]) -> list[Panel]:
    panels: list[Panel] = [("score", lambda axes: _draw_score(axes, logged))]
    for metric, columns in _sub_scores(logged).items():
        title = f"sub-scores of {metric or 'the reward'}"
        panels.append((title, partial(_draw_sub_scores, logged=logged, metric=metric, columns=columns)))
    weights = _named(logged, "rl/ess_") | {"groups without spread": logged[ROLLED + FLAT]}
    distances = {name: logged[ROLLED + name] for name in DISTANCES if ROLLED + name in logged}
    sizes = _named(logged, "rl/update_size_")
    looked_at = {name: curve for name, curve in _named(logged, ROLLED).items() if name in SHARES or _differs(name)}
    panels.append(("effective share of the weights, and of groups without spread", partial(_draw, curves=weights)))
    panels.append(("distances of plans [m]", partial(_draw, curves=distances)))
    if sizes:
        panels.append(("size of the update over that of the weights", partial(_draw, curves=sizes)))
    if norm := logged.get("train/grad_norm"):
        panels.append(("gradient norm before clipping", partial(_draw_positive, curve=norm)))
    if loss := logged.get("train/loss"):
        panels.append(("loss", partial(_draw_positive, curve=loss)))
    if looked_at:
        panels.append(("what alarms look at", lambda axes: _draw_alarms(axes, logged, looked_at)))
    return panels


def _named(logged: Mapping[str, Curve], prefix: str) -> dict[str, Curve]:
    return {name.removeprefix(prefix): curve for name, curve in logged.items() if name.startswith(prefix)}


def _differs(name: str) -> bool:
    return name.endswith(DIFFERENCES)


def _sub_scores(logged: Mapping[str, Curve]) -> dict[str, list[str]]:
    """Columns by metric; that of the reward is ""."""
    others = {BEST, SPREAD, FLAT, *DISTANCES, *SHARES}
    found: dict[str, list[str]] = {}
    for name in _named(logged, ROLLED):
        metric, _, column = name.rpartition("/")
        if not _differs(name) and (metric or column not in others | {SCORE}):
            found.setdefault(metric, []).append(column)
    return found


def _draw_score(axes: Axes, logged: Mapping[str, Curve]) -> None:
    steps, means = logged[ROLLED + SCORE]
    axes.plot(steps, means, "o-", color=COLORS[0], markersize=3.5, label="roll-outs, mean")
    if (spread := logged.get(ROLLED + SPREAD)) is not None:
        low, high = ([m + sign * s for m, s in zip(means, spread[1])] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.12, linewidth=0, label="± spread in a group")
    if (best := logged.get(ROLLED + BEST)) is not None:
        axes.plot(*best, ":", color=COLORS[0], linewidth=1, label="roll-outs, best of a group")
    if (held := logged.get(HELD_OUT + SCORE)) is not None:
        axes.plot(*held, "s--", color=COLORS[1], markersize=3.5, label="held-out scenes")
        later = [(value, step) for step, value in zip(*held) if step]
        if later:
            value, step = max(later, key=lambda found: (found[0], -found[1]))
            axes.plot([step], [value], "*", color=COLORS[1], markersize=11, label=f"best checkpoint: {value:.4f}")
    raised = sorted({step for name, curve in _named(logged, ALARM).items() for step, on in zip(*curve) if on})
    _draw_alarm(axes, raised, "alarm, see the last panel")


def _draw_sub_scores(axes: Axes, logged: Mapping[str, Curve], metric: str, columns: Sequence[str]) -> None:
    prefix = f"{metric}/" if metric else ""
    for color, column in zip(cycle(COLORS), columns):
        axes.plot(
            *logged[ROLLED + prefix + column],
            "o-",
            color=color,
            markersize=2.5,
            linewidth=2.2 if column == SCORE else 1.2,
            label=_words(column),
        )
        if (held := logged.get(HELD_OUT + prefix + column)) is not None:
            axes.plot(*held, "--", color=color, linewidth=1, alpha=0.8)
    if any(name.startswith(HELD_OUT) for name in logged):
        axes.plot([], [], "--", color="gray", linewidth=1, label="held-out scenes")


def _draw(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for color, (name, curve) in zip(cycle(COLORS), curves.items()):
        axes.plot(*curve, "o-", color=color, markersize=3, linewidth=1.3, label=_words(name))
    axes.set_ylim(bottom=0)


def _draw_positive(axes: Axes, curve: Curve) -> None:
    axes.plot(*curve, color=COLORS[0], linewidth=1)
    if min(curve[1]) > 0 and max(curve[1]) > 20 * min(curve[1]):
        axes.set_yscale("log")


def _draw_alarms(axes: Axes, logged: Mapping[str, Curve], curves: Mapping[str, Curve]) -> None:
    for color, (name, curve) in zip(cycle(COLORS), curves.items()):
        style = "o:" if _differs(name) else "o-"
        axes.plot(*curve, style, color=color, markersize=3, linewidth=1.3, label=_words(name))
    for name, (steps, raised) in _named(logged, ALARM).items():
        _draw_alarm(axes, [step for step, value in zip(steps, raised) if value], f"alarm: {_words(name)}")


def _draw_alarm(axes: Axes, steps: Sequence[int], label: str) -> None:
    """Triangles above all that is drawn so far."""
    if steps:
        axes.plot(steps, [axes.get_ylim()[1]] * len(steps), "v", color=RED, markersize=7, label=label)


def _words(name: str) -> str:
    return name.replace("_m", " [m]").replace("_", " ") if name.endswith("_m") else name.replace("_", " ")
