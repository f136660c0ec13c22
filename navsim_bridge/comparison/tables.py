"""Tables of the comparison: all rows beside each other, and the study of cycles and the anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from dpvla.config import ConfigError
from dpvla.files import write_json, write_text
from dpvla.report.comparison import Bar, draw_bars
from dpvla.report.table import markdown_table
from dpvla.schema import read_as
from navsim_bridge.comparison.cells import (
    Cell,
    Found,
    Results,
    csv_text,
    label_of,
    line_of,
    refuse_unequal,
    rows_of_csv,
)
from navsim_bridge.comparison.config import Budget, ComparisonConfig
from navsim_bridge.comparison.jobs import Jobs
from navsim_bridge.comparison.rows import SELECTED, ReadRow, Rows

FINAL = "final.json"


class Table:
    """Rows beside each other, in a Markdown table, a CSV file and a picture."""

    def __init__(
        self, name: str, title: str, rows: Sequence[ReadRow], equal: Sequence[Budget], jobs: Jobs, rules: Rows,
        config: ComparisonConfig,
    ) -> None:  # fmt: skip
        """Asks ``jobs`` for what it needs. Raises ConfigError where rows are told to spend unequally."""
        self.name, self.title, self.equal, self.rules, self.config = name, title, equal, rules, config
        self.rows, protocol = rows, rules.protocol
        rules.refuse_unequal(rows, equal)
        split = protocol.test if config.final else protocol.validation
        seeds, metrics, base = config.seeds, protocol.metrics, rules.table[rules.comparison.baseline]
        self.base = Cell.of(jobs, base, protocol.train, split, seeds, metrics)
        self.cells = [Cell.of(jobs, row, protocol.train, split, seeds, metrics) for row in rows]
        if config.final and protocol.adapt == split:
            adapted = [row for row in rows if row.options is not None]
            self.cells += [Cell.of(jobs, row, protocol.adapt, split, seeds, metrics) for row in adapted]

    def write(self, results: Results, out: Path) -> str:
        """Write what there is to OUT/NAME.md, .csv and .png; returns the Markdown."""
        metrics = self.rules.protocol.metrics
        found, base = [results.read(cell) for cell in self.cells], results.read(self.base)
        for setting in dict.fromkeys(cell.trained_on for cell in self.cells):
            refuse_unequal([f for f in found if f.cell.trained_on == setting], self.equal, f"{self.name}, {setting}")
        lines = [line_of(results, f, base, metrics) for f in found]
        text = f"{self.title}\n\n{markdown_table(lines)}\n\n{self._caption(results, found)}\n"
        write_text(out / f"{self.name}.md", text)
        write_text(out / f"{self.name}.csv", csv_text([row for f in found for row in rows_of_csv(f, metrics)]))
        bars = [bar for f in found if (bar := _bar(results, f, metrics[0])) is not None]
        if bars:
            where = f"{label_of(metrics[0], 'score')} on {self.cells[0].split}, 95 % over logs"
            draw_bars(bars, where, out / f"{self.name}.png")
        return text

    def _caption(self, results: Results, found: Sequence[Found]) -> str:
        split = self.cells[0].split
        logs = results.logs_of(split)
        seeds = ", ".join(map(str, self.config.seeds))
        baseline = self.rules.table[self.rules.comparison.baseline].title
        notes = [
            f"Percent, mean over training seeds {seeds} on {split} ({len(logs)} scenes of {len(set(logs.values()))} "
            "logs), one plan a scene; ± is the standard deviation over seeds. Intervals: logs drawn with replacement, "
            f"{results.resamples:,} times. Difference: to {baseline}, on the same scenes and seeds."
        ]
        for setting in dict.fromkeys(f.cell.trained_on for f in found if f.spent):
            spent = {str(s) for f in found if f.cell.trained_on == setting for s in f.spent.values()}
            if len(spent) == 1:
                notes.append(f"Every RL run on {setting}, by its own records: {spent.pop()}.")
            else:
                listed = {f.cell.row.title: f.spent for f in found if f.cell.trained_on == setting and f.spent}
                each = "; ".join(f"{title}: {next(iter(s.values()))}" for title, s in listed.items())
                notes.append(f"RL runs on {setting}, by their own records: {each}.")
        if any(f.cell.trained_on == split for f in found):
            notes.append(f"Rows trained on {split} are scored on the scenes they were trained on: adaptation.")
        if not self.config.final:
            notes.append(f"{split} is where hyperparameters are chosen: no numbers of the test split.")
        chosen = [f"{row.title}: {_listed(row.chosen)}" for row in self.rows if row.chosen]
        notes += [f"Chosen on {self.rules.protocol.validation} ({SELECTED}): {'; '.join(chosen)}."] if chosen else []
        scored = [s for f in found for by_metric in f.scored.values() for s in by_metric.values()]
        commits = {s.summary["provenance"].get("git_commit") for s in scored}
        notes += [f"Scored at commit {', '.join(sorted(str(c)[:12] for c in commits if c))}."] if any(commits) else []
        return "\n".join(f"- {note}" for note in notes)


def all_rows(config: ComparisonConfig, jobs: Jobs, rules: Rows) -> Table:
    """Table 4: on the validation split, or once on the test split."""
    rows = rules.chosen_from({**rules.table, **rules.beside} if config.only else rules.table, config.only)
    name = "table_4" if config.final else f"table_4_{rules.protocol.validation}"
    kind = "the test split" if config.final else "the validation split"
    return Table(name, f"Methods on driving, {kind}.", rows, rules.comparison.equal, jobs, rules, config)


def cycles_and_anchor(config: ComparisonConfig, jobs: Jobs, rules: Rows) -> Table:
    """The study of drift: what one, two and five cycles make of each loss."""
    rows = rules.chosen_from(rules.cycles, config.only)
    title = "Cycles of roll-outs and the anchor, the validation split."
    return Table("study_cycles", title, rows, rules.comparison.cycles.equal, jobs, rules, config)


class _Final(TypedDict):
    options: dict[str, Any]


def look_at_test_split(table: Table, out: Path) -> None:
    """Before the test split is scored: all is chosen, and it stays as it was when that was done first.

    Raises ConfigError where a row was not chosen for, or is other than at the first look.
    """
    unchosen = [row.key for row in table.rows if row.grid and row.chosen is None]
    if unchosen:
        raise ConfigError(
            f"the test split is scored once, when all is chosen, and nothing is of {', '.join(unchosen)}, "
            "which have a grid: run --study selection first"
        )
    path = out / FINAL
    before: Mapping[str, Any] = read_as(path, _Final)["options"] if path.exists() else {}
    now = {row.key: row.options for row in table.rows if row.options is not None}
    other = [key for key, options in now.items() if key in before and before[key] != options]
    if other:
        raise ConfigError(
            f"{path}: the test split was scored with other options of {', '.join(other)}; what is chosen after that "
            "look needs another test split: take the options back, or choose another --out"
        )
    write_json(path, {"options": {**before, **now}})


def _listed(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items())


def _bar(results: Results, found: Found, metric: str) -> Bar | None:
    interval = results.interval(found, metric)
    if interval is None:
        return None
    seeds = found.averages(metric, "score")
    trained_on = found.cell.trained_on
    return Bar(found.cell.row.title, interval.mean, interval.low, interval.high, seeds if len(seeds) > 1 else (),
               f"trained on {trained_on}" if trained_on else "not trained")  # fmt: skip
