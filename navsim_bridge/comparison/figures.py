"""Figures of the comparison: beta and omega, the stability of losses, scores by plans scored."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpvla.config import ConfigError
from dpvla.files import short, write_text
from dpvla.report.comparison import Field, Panel, draw_fields, draw_lines
from dpvla.report.table import markdown_table
from navsim_bridge.comparison.cells import Cell, Found, Results, csv_text, label_of
from navsim_bridge.comparison.config import ComparisonConfig, nested, overlaid
from navsim_bridge.comparison.jobs import Job, Jobs
from navsim_bridge.comparison.records import logged
from navsim_bridge.comparison.rows import Rows
from navsim_bridge.comparison.statistics import spread

LOSS, GRADIENT = "train/loss", "train/grad_norm"
EFFECTIVE = "rl/ess_"
"""What columns begin with that hold the effective share of a weight set."""
STABILITY = {
    "loss": "loss, mean over the run",
    "loss_deviation": "loss, standard deviation / mean",
    "gradient": "gradient norm, mean",
    "effective": "effective sample size, share",
}


class Figure5:
    """Score over beta and omega, and how losses behave as beta grows."""

    def __init__(self, config: ComparisonConfig, jobs: Jobs, rules: Rows) -> None:
        """Asks ``jobs`` for what it needs."""
        what, protocol = rules.figure_5, rules.protocol
        self.rules, self.what, self.metrics = rules, what, protocol.metrics[:1]

        def cell(over: Mapping[str, Any], **evaluate: float) -> Cell:
            row = rules.variant(what.like, {"algorithm": over}, what.like, what.like, "figure_5")
            return Cell.of(jobs, row, protocol.train, protocol.validation, config.seeds, self.metrics, **evaluate)

        own = rules.variant(what.like, {}, what.like, what.like, "figure_5").full().algorithm
        self.own_omega = float(getattr(own, "omega", 0.0))
        self.trained = {(b, w): cell({"beta": b, "omega": w}) for b in what.betas for w in what.omegas}
        self.later = {
            (b, w): cell({"beta": b}, **({} if w == self.own_omega else {"omega": w}))
            for b in what.betas
            for w in what.later_omegas
        }
        self.losses: dict[str, dict[float, list[Job]]] = {}
        for title, loss in rules.losses().items():
            for beta in what.betas:
                over = overlaid({"algorithm": loss.algorithm}, nested(loss.key, beta))
                row = rules.variant(loss.like, over, loss.like, title, f"figure_5.losses.{title}")
                runs = [jobs.train(row, protocol.train, seed) for seed in config.seeds]
                self.losses.setdefault(title, {})[beta] = runs

    def write(self, results: Results, out: Path) -> str:
        """Write OUT/figure_5.csv, .png and .md, and the same of figure_5_losses."""
        metric, score = self.metrics[0], label_of(self.metrics[0], "score")
        parts, rows = [], []
        for name, title, cells in (
            ("training and evaluation", "omega in training and evaluation", self.trained),
            ("evaluation", f"omega in evaluation, {self.own_omega:g} in training", self.later),
        ):
            if not cells:
                continue
            betas, omegas = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
            values = np.full((len(betas), len(omegas)), np.nan)
            for (beta, omega), cell in cells.items():
                found = results.read(cell)
                if found.seeds:
                    values[betas.index(beta), omegas.index(omega)] = statistics.fmean(found.averages(metric, "score"))
                rows += [row | {"omega_of": name} for row in _scores(found, self.metrics, beta=beta, omega=omega)]
            parts.append(Field(title, "omega", "beta", omegas, betas, values))
        if rows:
            draw_fields(parts, score, out / "figure_5.png")
        write_text(out / "figure_5.csv", csv_text(rows))
        stability = self._stability(results, out)
        text = (
            f"{score} on {self.rules.protocol.validation} over beta and omega (figure_5.csv, figure_5.png), and losses "
            f"as beta grows (figure_5_losses.csv, figure_5_losses.png).\n\n{markdown_table(stability)}\n"
            if stability
            else f"{score} on {self.rules.protocol.validation} over beta and omega (figure_5.csv, figure_5.png).\n"
        )
        write_text(out / "figure_5.md", text)
        return text

    def _stability(self, results: Results, out: Path) -> list[dict[str, Any]]:
        rows = []
        lines: dict[str, dict[str, list[tuple[float, float, float]]]] = {key: {} for key in STABILITY}
        for title, by_beta in self.losses.items():
            for beta, jobs in by_beta.items():
                done = [_behavior(results.grid.out / job.name) for job in jobs if not results.grid.missing([job])]
                row: dict[str, Any] = {"loss of": title, "beta": f"{beta:g}", "seeds": len(done)}
                for key, name in STABILITY.items():
                    values = [of[key] for of in done if key in of]
                    if values:
                        point = (beta, statistics.fmean(values), spread(values) or 0.0)
                        lines[key].setdefault(title, []).append(point)
                    row[name] = f"{statistics.fmean(values):.4g}" if values else ""
                rows.append(row)
        panels = [
            Panel(name, "beta", "", lines[key], log_x=min(self.what.betas) > 0, log_y=key != "effective")
            for key, name in STABILITY.items()
            if lines[key]
        ]
        if panels:
            draw_lines(panels, out / "figure_5_losses.png")
        write_text(out / "figure_5_losses.csv", csv_text(rows))
        return rows


class ScalingFigure:
    """Score by plans scored."""

    def __init__(self, config: ComparisonConfig, jobs: Jobs, rules: Rows) -> None:
        """Asks ``jobs`` for what it needs."""
        what, protocol = rules.scaling, rules.protocol
        self.rules, self.metrics, self.like = rules, protocol.metrics[:1], rules.table[what.like].title
        self.series: dict[str, list[Cell]] = {}
        for title, variants in what.series.items():
            where = f"scaling.series.{short(title, 80)}"
            if not isinstance(variants, list) or not all(isinstance(v, dict) for v in variants):
                raise ConfigError(f"{rules.file}: {where}: expected a list of groups of keys of rollouts")
            rows = [rules.variant(what.like, {"rollouts": v}, what.like, title, where) for v in variants]
            self.series[title] = [
                Cell.of(jobs, row, protocol.train, protocol.validation, config.seeds, self.metrics) for row in rows
            ]

    def write(self, results: Results, out: Path) -> str:
        """Write OUT/figure_scaling.csv, .png and .md."""
        rows, lines = [], {}
        for title, cells in self.series.items():
            points = []
            for found in map(results.read, cells):
                if not found.seeds:
                    continue
                scores = found.averages(self.metrics[0], "score")
                plans = next(iter(found.spent.values())).plans
                points.append((float(plans), statistics.fmean(scores), spread(scores) or 0.0))
                rollouts = found.cell.row.full().rollouts
                about = {
                    "series": title,
                    "plans": plans,
                    "updates": next(iter(found.spent.values())).updates,
                    "group": rollouts.group_size,
                    "scenes": rollouts.scenes_per_cycle,
                    "cycles": rollouts.cycles,
                }
                rows += _scores(found, self.metrics, **about)
            lines[title] = points
        score = label_of(self.metrics[0], "score")
        where = f"{score} on {self.rules.protocol.validation}"
        if rows:
            draw_lines([Panel(self.like, "plans scored", where, lines, log_x=True)], out / "figure_scaling.png")
        write_text(out / "figure_scaling.csv", csv_text(rows))
        shown = [
            {"varied": title, "plans scored": f"{plans:,.0f}", score: mean, "± over seeds": deviation}
            for title, points in lines.items()
            for plans, mean, deviation in points
        ]
        text = f"{self.like}: {where} by plans scored (figure_scaling.csv, figure_scaling.png).\n"
        text += f"\n{markdown_table(shown)}\n" if shown else ""
        write_text(out / "figure_scaling.md", text)
        return text


def _behavior(run: Path) -> dict[str, float]:
    """How the loss of a run behaved, by `STABILITY`; without what it did not log."""
    found = logged(run)
    loss = found.get(LOSS, np.empty(0))
    values: dict[str, float] = {}
    if len(loss):
        values["loss"] = float(loss.mean())
        if len(loss) > 1 and loss.mean():
            values["loss_deviation"] = float(loss.std(ddof=1) / abs(loss.mean()))
    if GRADIENT in found:
        values["gradient"] = float(found[GRADIENT].mean())
    effective = [series.mean() for name, series in found.items() if name.startswith(EFFECTIVE)]
    if effective:
        values["effective"] = float(np.mean(effective))
    return values


def _scores(found: Found, metrics: Sequence[str], **about: Any) -> list[dict[str, Any]]:
    """A row for each finished seed."""
    runs = found.cell.runs
    return [
        {**about, "seed": seed, **{m: 100 * by[m].averages["score"] for m in metrics}, "run": runs[seed].name}
        for seed, by in found.scored.items()
    ]
