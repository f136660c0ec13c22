"""Hyperparameters, chosen on the validation split: of all combinations of a row's grid, with one seed, the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dpvla.config import ConfigError
from dpvla.files import read_yaml, write_text
from dpvla.report.table import markdown_table
from navsim_bridge.comparison.cells import Cell, Found, Results, csv_text, label_of
from navsim_bridge.comparison.config import ComparisonConfig
from navsim_bridge.comparison.jobs import Jobs
from navsim_bridge.comparison.rows import SELECTED, Rows

NAME = "selection"


class Selection:
    """The grids of the rows that have one."""

    def __init__(self, config: ComparisonConfig, jobs: Jobs, rules: Rows) -> None:
        """Asks ``jobs`` for what it needs."""
        self.rules, self.metrics = rules, rules.protocol.metrics[:1]
        rows = [row for row in rules.chosen_from(rules.table, config.only) if row.grid]
        if not rows:
            raise ConfigError(f"{rules.file}: no row asked for has a grid to choose from")
        train, validation, seed = rules.protocol.train, rules.protocol.validation, config.seeds[:1]
        self.tried: list[tuple[Mapping[str, Any], Cell]] = [
            (values, Cell.of(jobs, made, train, validation, seed, self.metrics))
            for row in rows
            for values, made in rules.combinations(row)
        ]

    def write(self, results: Results, out: Path) -> str:
        """Write all scores to OUT/selection.csv and .md, and of finished rows the best to OUT/selected.yaml.

        The best has the highest mean score of the first metric; of equal ones the first.
        """
        found = [(values, results.read(cell)) for values, cell in self.tried]
        best: dict[str, Any] = {}
        for key in dict.fromkeys(f.cell.row.key for _, f in found):
            of_row = [(values, f) for values, f in found if f.cell.row.key == key]
            if all(f.seeds for _, f in of_row):
                best[key] = max(of_row, key=lambda tried: self._score(tried[1]))[0]
        rows = [
            {
                "row": f.cell.row.key,
                "options": ", ".join(f"{key} {value}" for key, value in values.items()),
                **{label_of(m, "score"): f.averages(m, "score")[0] if f.seeds else "" for m in self.metrics},
                "chosen": "chosen" if best.get(f.cell.row.key) is values else "",
            }
            for values, f in found
        ]
        write_text(out / f"{NAME}.csv", csv_text(rows))
        text = (
            f"Hyperparameters, by {label_of(self.metrics[0], 'score')} on {self.rules.protocol.validation} with one "
            f"seed, trained on {self.rules.protocol.train}.\n\n{markdown_table(rows)}\n"
        )
        write_text(out / f"{NAME}.md", text)
        path = out / SELECTED
        before = (read_yaml(path) or {}) if path.exists() else {}
        if best:
            write_text(path, yaml.safe_dump({**before, **best}, sort_keys=False))
        return text

    def _score(self, found: Found) -> float:
        return found.averages(self.metrics[0], "score")[0]
