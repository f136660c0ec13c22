"""Rows of a comparison, read from its YAML files: what each of them asks of the tools."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpvla.config import ConfigError, check_keys, from_dict, merged, modern, read_yaml, to_dict
from dpvla.files import read_yaml as read_any_yaml
from dpvla.files import short
from navsim_bridge.agents.registry import AGENTS
from navsim_bridge.comparison.config import (
    Budget,
    Comparison,
    Figure5,
    FollowedLoss,
    Protocol,
    Row,
    RunOptions,
    Scaling,
    nested,
    overlaid,
)

POLICY = "dpvla"
SELECTED = "selected.yaml"


@dataclass(frozen=True)
class ReadRow:
    """A row and all that its run is told: nothing for an agent without training, and for imitation."""

    key: str
    title: str
    agent: str  # `POLICY` for what is trained
    options: Mapping[str, Any] | None  # keys of a recipe of tools/rl_finetune.py, given ones alone
    evaluate: Mapping[str, Any]  # further options of tools/evaluate.py
    grid: Mapping[str, Sequence[Any]]
    select: int = 0  # plans that a selector chooses from
    pretrain: str | None = None  # path of the recipe of imitation; None: the protocol's
    chosen: Mapping[str, Any] | None = None  # values that the selection gave the keys of the grid

    @property
    def is_trained(self) -> bool:
        return self.agent == POLICY

    @property
    def algorithm(self) -> str | None:
        """Name of its RL algorithm, if it has one."""
        return None if self.options is None else str(self.options["algorithm"]["name"])

    def full(self) -> RunOptions:
        """The options of its run, with the defaults of today."""
        assert self.options is not None
        return from_dict(RunOptions, self.options, f"row {self.key}")


class Rows:
    """All rows that the files name, and those that studies and figures make of them."""

    def __init__(self, rows_file: str, protocol_file: str, out: Path) -> None:
        """Raises ConfigError with file and key for what cannot be; every row's options are looked at here."""
        self.file, self.protocol_file = rows_file, protocol_file
        self.protocol = from_dict(Protocol, read_yaml(Protocol, protocol_file), protocol_file)
        self.comparison = from_dict(Comparison, read_yaml(Comparison, rows_file), rows_file)
        self._common = self._checked(self.protocol.finetune, protocol_file, "finetune.")
        self._chosen = _read_selected(out / SELECTED)
        self.table: dict[str, ReadRow] = {}
        self._untuned: dict[str, ReadRow] = {}
        for key, content in self.comparison.rows.items():
            row = self._row(key, content, "rows")
            self._untuned[key], self.table[key] = self._read(key, row, chosen=False), self._read(key, row)
        if not self.table:
            raise ConfigError(f"{rows_file}: rows has no row")
        if self.comparison.baseline not in self.table:
            raise self._unknown(f"{rows_file}: baseline", self.comparison.baseline)
        self.beside = {
            key: self._read(key, self._row(key, content, "beside")) for key, content in self.comparison.beside.items()
        }
        if twice := self.beside.keys() & self.table.keys():
            raise ConfigError(f"{rows_file}: beside.{min(twice)} is a row of the table as well: give it another key")
        self.cycles = {
            key: self._read(key, self._row(key, content, "cycles.rows"))
            for key, content in self.comparison.cycles.rows.items()
        }

    @property
    def pretrain(self) -> str:
        """Path of the recipe of imitation."""
        return self._recipe(self.protocol.pretrain, self.protocol_file)

    @property
    def selector(self) -> str:
        """Path of the recipe of a selector. Raises ConfigError where the protocol has none."""
        if self.protocol.selector is None:
            raise ConfigError(f"{self.protocol_file}: selector, the recipe of rows with 'select', is missing")
        return self._recipe(self.protocol.selector, self.protocol_file)

    def _recipe(self, name: str, file: str) -> str:
        """Path of a recipe that ``file`` names."""
        path = Path(file).parent / name
        read_any_yaml(path)  # what cannot be read is told before the work
        return str(path)

    def chosen_from(self, rows: Mapping[str, ReadRow], only: Sequence[str]) -> list[ReadRow]:
        """The rows that ``only`` names, in the order of the file; all where it names none."""
        for word in only:
            if word not in rows:
                near = difflib.get_close_matches(word, rows, n=1, cutoff=0.0)
                raise ConfigError(f"{self.file} has no row '{word:.80}' here; nearest valid name: '{near[0]}'")
        return [row for key, row in rows.items() if not only or key in only]

    def variant(self, like: str, over: Mapping[str, Any], key: str, title: str, where: str) -> ReadRow:
        """A row as ``like``, with ``over`` laid over its options."""
        base = self._find(like, f"{self.file}: {where}")
        if base.options is None:
            raise ConfigError(f"{self.file}: {where}: row {like} has no RL run to change")
        options = self._laid(base.options, over, f"{self.file}: {where}")
        return replace(base, key=key, title=title, options=options, grid={})

    def combinations(self, row: ReadRow) -> Iterator[tuple[dict[str, Any], ReadRow]]:
        """Every combination of a row's grid, and the row with it."""
        untuned = self._untuned[row.key]
        for values in itertools.product(*row.grid.values()):
            given = dict(zip(row.grid, values))
            yield given, self._with(untuned, given)

    def _with(self, row: ReadRow, values: Mapping[str, Any]) -> ReadRow:
        over: dict[str, Any] = {}
        for key, value in values.items():
            over = overlaid(over, nested(key, value))
        assert row.options is not None
        return replace(row, options=self._laid(row.options, over, f"{self.file}: rows.{row.key}.grid"))

    @property
    def figure_5(self) -> Figure5:
        """What figure 5 shows."""
        where = f"{self.file}: figure_5"
        found = from_dict(Figure5, self.comparison.figure_5, where)
        if not found.betas or not found.omegas:
            raise ConfigError(f"{where}: betas and omegas must be given")
        return found

    def losses(self) -> dict[str, FollowedLoss]:
        """Losses that figure 5 follows, by title."""
        where = f"{self.file}: figure_5.losses"
        return {title: from_dict(FollowedLoss, _group(c, where), where) for title, c in self.figure_5.losses.items()}

    @property
    def scaling(self) -> Scaling:
        """What the figure of plans scored shows."""
        return from_dict(Scaling, self.comparison.scaling, f"{self.file}: scaling")

    def refuse_unequal(self, rows: Sequence[ReadRow], equal: Sequence[Budget]) -> None:
        """Raise ConfigError where what ``rows`` are told makes them spend unequally, before anything is run."""
        told = {row.key: _planned(row.full()) for row in rows if row.options is not None}
        for what in equal:
            if len({budget[what] for budget in told.values()}) > 1:
                listed = ", ".join(f"{key} {budget[what]}" for key, budget in told.items())
                raise ConfigError(
                    f"{self.file}: rows are told to spend {what} unequally ({listed:.400}): give them equal rollouts, "
                    f"or take {what} out of 'equal'"
                )

    def _row(self, key: str, content: Any, group: str) -> Row:
        where = f"{self.file}: {group}.{str(key)[:80]}"
        if not isinstance(key, str) or not key.replace("_", "").isalnum():
            raise ConfigError(f"{where}: the key of a row is of letters, digits and _")
        row = from_dict(Row, _group(content, where), where)
        for name, values in row.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}.grid.{name}: expected a list of values, found {short(values, 80)}")
        return row

    def _read(self, key: str, row: Row, chosen: bool = True) -> ReadRow:
        where = f"{self.file}: row {key}"
        title = row.title or key
        if row.agent is not None:
            if row.own or row.like or row.grid or row.evaluate or row.select or row.pretrain:
                raise ConfigError(f"{where}: agent '{row.agent:.80}' is not trained: it takes no more than a title")
            if row.agent not in AGENTS or row.agent == POLICY:
                near = difflib.get_close_matches(row.agent, set(AGENTS) - {POLICY}, n=1, cutoff=0.0)
                raise ConfigError(f"{where}: unknown agent '{row.agent:.80}'; nearest valid name: '{near[0]}'")
            return ReadRow(key, title, row.agent, None, {}, {})
        base = self._find(row.like, where, chosen and not row.grid) if row.like else None
        options: Mapping[str, Any] | None = base.options if base else None
        if row.own:
            if options is None and "name" not in row.algorithm:
                raise ConfigError(f"{where}: algorithm.name is missing")
            options = self._laid(self._common if options is None else options, row.own, where)
        select = row.select or (base.select if base else 0)
        evaluate = {**(base.evaluate if base else {}), **row.evaluate}
        pretrain = self._recipe(row.pretrain, self.file) if row.pretrain else (base.pretrain if base else None)
        read = ReadRow(key, title, POLICY, options, evaluate, row.grid, select, pretrain)
        if select and (select == 1 or options is None or not read.full().rollouts.keep):
            raise ConfigError(
                f"{where}: select needs at least 2 plans, and an RL run that keeps its roll-outs (rollouts.keep: true)"
            )
        if select:
            _ = self.selector  # its recipe is there
        if read.options is not None:
            read.full()
        elif row.grid:
            raise ConfigError(f"{where}: a grid belongs to a row with an algorithm")
        for name in row.grid:
            for value in row.grid[name]:
                self._with(read, {name: value}).full()
        found = self._chosen.get(key) if chosen and row.grid else None
        if found is None:
            return read
        if found.keys() != row.grid.keys() or any(value not in row.grid[name] for name, value in found.items()):
            raise ConfigError(
                f"{where}: its grid is another than that which {SELECTED} was chosen from: run --study selection again"
            )
        return replace(self._with(read, found), chosen=found)

    def _find(self, key: str, where: str, chosen: bool = True) -> ReadRow:
        if key not in self.comparison.rows:
            raise self._unknown(where, key)
        if key not in self.table:
            raise ConfigError(f"{where}: row {key}, which it is like, must stand above it")
        return self.table[key] if chosen else self._untuned[key]

    def _unknown(self, where: str, key: str) -> ConfigError:
        near = difflib.get_close_matches(key, self.comparison.rows, n=1, cutoff=0.0)
        return ConfigError(f"{where}: there is no row '{key:.80}'; nearest valid name: '{near[0]}'")

    def _laid(self, under: Mapping[str, Any], over: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A recipe's keys over others; another algorithm keeps nothing of the former one's."""
        over = dict(over)
        if "algorithm" in over and "name" not in over["algorithm"] and "algorithm" in under:
            over["algorithm"] = {"name": under["algorithm"]["name"], **over["algorithm"]}
        over = self._checked(over, where)
        base = dict(under)
        if "algorithm" in over and base.get("algorithm", {}).get("name") != over["algorithm"]["name"]:
            base.pop("algorithm", None)
        return self._checked(merged(RunOptions, base, over), where)

    def _checked(self, given: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
        """Given keys in today's words, with values as the options hold them (2 and 2.0 are the same)."""
        given = modern(RunOptions, dict(given), where)
        check_keys(RunOptions, given, where, prefix)
        return _only(to_dict(from_dict(RunOptions, given, where)), given)


def _planned(options: RunOptions) -> dict[str, Any]:
    """What a run will spend, as far as that can be told without its data."""
    rollouts = options.rollouts
    scenes = rollouts.scenes_per_cycle or "all"
    plans: Any = (rollouts.cycles, scenes, rollouts.group_size)
    if rollouts.scenes_per_cycle:
        plans = rollouts.cycles * rollouts.scenes_per_cycle * rollouts.group_size
    updates: Any = options.loop.steps or (rollouts.cycles, rollouts.epochs_per_cycle, scenes, rollouts.batch_size)
    if not options.loop.steps and rollouts.scenes_per_cycle:
        updates = rollouts.cycles * rollouts.epochs_per_cycle * -(-rollouts.scenes_per_cycle // rollouts.batch_size)
    return {"plans": plans, "updates": updates, "parameters": f"rank {options.lora.rank}"}


def _only(full: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``full`` at the keys of ``given``."""
    return {
        key: _only(full[key], value) if isinstance(value, Mapping) and isinstance(full[key], Mapping) else full[key]
        for key, value in given.items()
    }


def _group(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a group of keys, found {short(content, 80)}")
    return content


def _read_selected(path: Path) -> dict[str, dict[str, Any]]:
    """What the selection chose by row; nothing before it was made."""
    if not path.exists():
        return {}
    content = read_any_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(values, dict) for values in content.values()):
        raise ConfigError(f"{path} holds no choice of hyperparameters: remove it, and run --study selection again")
    return content
