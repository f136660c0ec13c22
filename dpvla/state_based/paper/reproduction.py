"""The grid of runs behind a table of the paper: what is there, what is missing, how long it takes, and running it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from accelerate import Accelerator

from dpvla.checkpoint_layout import RUN_FILE
from dpvla.config import ConfigError, Whole, from_dict, merged, read_yaml, to_dict
from dpvla.files import one_writer, short, write_json
from dpvla.registry import import_plugin
from dpvla.schema import read_as
from dpvla.state_based.agents.recipes import Reading, reading_of
from dpvla.state_based.agents.registry import AGENTS
from dpvla.state_based.paper.budget import make_missing_data, require_time
from dpvla.state_based.paper.config import ReproduceConfig
from dpvla.state_based.paper.time_estimate import measure_updates_per_second
from dpvla.state_based.running.config import StateBasedConfig, read_task
from dpvla.state_based.running.paper_tables import ONLINE_STEPS, PaperTable, TableMethod, method_names, method_of
from dpvla.state_based.running.results import Evaluations, read_result, updates_per_second
from dpvla.state_based.running.tasks import find_task, nearest
from dpvla.state_based.running.training_run import FREE, evaluate_acting, train_state_based
from dpvla.training.checkpoint import checkpoint_step, latest_checkpoint
from dpvla.training.launch import make_accelerator
from dpvla.training.run_directory import read_run

GRID = "grid.json"

_FAILURES = (ValueError, OSError, FloatingPointError)
"""What ends one run, while the others may still be made."""


class _GridFile(TypedDict, total=False):
    """What the runs of a folder have in common."""

    protocol: dict[str, Any]
    online_steps: Whole
    reading: Reading


@dataclass(frozen=True)
class MissingRun:
    """One run of the grid that is not done."""

    config: StateBasedConfig
    begun_at: int  # updates that its newest checkpoint holds

    @property
    def updates(self) -> int:
        """Updates still to make."""
        return self.config.all_steps - self.begun_at


class Grid:
    """The runs of one table in one folder."""

    def __init__(self, table: PaperTable, config: ReproduceConfig) -> None:
        """Raises ConfigError for unknown rows or methods, or a folder with runs of another protocol."""
        self.table, self.config = table, config
        self.out = Path(config.out)
        self.rows, self.methods = _selected(table, config.only)
        self._protocol = read_yaml(StateBasedConfig, config.protocol) if config.protocol else {}
        self._plugins = tuple(dict.fromkeys((*config.plugin, *self._protocol.get("plugin", ()))))
        for name in self._plugins:
            import_plugin(name)
        self._before = self._read_protocols()
        asked: Reading | None = config.reading or self._protocol.get("reading")
        # Whose runs lie in <task>/<agent>: formerly there was but one reading.
        self._first: Reading = self._before.get("reading", "paper") if self._before else asked or "release"
        self.reading: Reading = asked or self._first
        if self._before and "reading" not in self._before and asked is None:
            print(
                f"{self.out} was begun by an earlier version: dipole's runs go on in reading {self._first}; --reading "
                "release makes those of the released agent beside them",
                file=sys.stderr,
            )
        self._refuse_other_protocol()

    def config_of(
        self, task: str, agent: str, seeds: Sequence[int], reading: Reading | None = None
    ) -> StateBasedConfig:
        """What a run of this grid is; without ``reading``, of the grid's own."""
        kind = find_task(task)
        given: dict[str, Any] = {
            "env": kind.name,
            "agent": agent,
            "reading": reading_of(agent, reading or self.reading),
            "seeds": list(seeds),
            "data": self.config.ogbench_data if kind.benchmark == "OGBench" else self.config.exorl_data,
            "options": self._options(task, agent),
            "out": str(self._folder(task, agent, reading) / ("seeds_" + "-".join(map(str, seeds)))),
            "workers": self.config.workers,
            "plugin": list(self._plugins),
        }
        own: dict[str, Any] = {"steps": self.config.steps, "eval_episodes": self.config.eval_episodes}
        given |= {name: value for name, value in own.items() if value}
        default = StateBasedConfig(env=kind.name)
        if self.table.online:
            given["online_steps"] = self.config.online_steps or self._protocol.get("online_steps", ONLINE_STEPS)
        else:
            given["online_steps"] = 0
        full = merged(StateBasedConfig, merged(StateBasedConfig, to_dict(default), self._protocol), given)
        return from_dict(StateBasedConfig, full, self.config.protocol or "the grid's options")

    def _options(self, task: str, agent: str) -> list[str]:
        """The protocol's options, and the table's own, which win."""
        own = self.table.options_of(task, agent)
        names = {option.partition("=")[0] for option in own}
        given = [option for option in self._protocol.get("options", ()) if option.partition("=")[0] not in names]
        return [*given, *own]

    def results(self, task: str, agent: str, reading: Reading | None = None) -> list[dict[str, Any]]:
        """``result.json`` of a cell's finished runs."""
        folders, kind = sorted(self._folder(task, agent, reading).glob("seeds_*")), find_task(task)
        return [result for folder in folders if (result := read_result(folder, kind, agent)) is not None]

    def evaluations(self, task: str, agent: str, reading: Reading | None = None) -> list[dict[str, Any]]:
        """Evaluations by step of a cell's runs, finished or not."""
        folders, metric = sorted(self._folder(task, agent, reading).glob("seeds_*")), find_task(task).metric
        return [Evaluations(folder, metric).by_step for folder in folders]

    def missing(self) -> Iterator[MissingRun]:
        """Runs that are not done, begun ones before new ones in each cell."""
        for task, agent, reading in self.cells():
            done = {seed for result in self.results(task, agent, reading) for seed in result["seeds"]}
            left = [seed for seed in self.config.seeds if seed not in done]
            groups = []
            for folder in sorted(self._folder(task, agent, reading).glob("seeds_*")):
                if read_result(folder, find_task(task), agent) is None and (folder / RUN_FILE).exists():
                    begun = list(_config_of(folder).seeds)
                    if set(begun) <= set(left):
                        groups.append(begun)
                        left = [seed for seed in left if seed not in begun]
            size = self.config.seeds_per_run or len(left)
            groups += [left[start : start + size] for start in range(0, len(left), size or 1)]
            for seeds in groups:
                config = self.config_of(task, agent, seeds, reading)
                newest = latest_checkpoint(Path(config.out))
                yield MissingRun(config, 0 if newest is None else checkpoint_step(newest))

    def run(self, until: float = math.inf) -> dict[str, str]:
        """Make all missing runs; returns those that failed, with the reason. Interrupted, the next call goes on.

        Args:
            until: when to save and stop, by ``time.monotonic()``.

        Raises:
            ConfigError: an option that no run can have; before anything is written.
            KeyboardInterrupt: stopped by a signal, or because time is up.
        """
        failed: dict[str, str] = {}
        without_data: dict[str, str] = {}
        runs = list(self.missing())
        for run in runs:
            read_task(run.config)
        with one_writer(self.out, wait=True):
            write_json(self.out / GRID, self._before | self._protocols())
        if self.config.make_data and self.config.ogbench_data is not None:
            domains = dict.fromkeys(find_task(run.config.env).domain for run in runs)
            folder, episodes = self.config.ogbench_data, self.config.make_data
            make_missing_data(domains, folder, episodes, self.config.workers, until)
        for run in runs:
            require_time(until)
            domain = find_task(run.config.env).domain
            if domain in without_data:
                failed[run.config.out] = without_data[domain]
                continue
            print(f"== {run.config.out}", file=sys.stderr, flush=True)
            try:
                train_state_based(run.config, until)
            except FileNotFoundError as error:
                failed[run.config.out] = without_data[domain] = str(error)
            except _FAILURES as error:
                failed[run.config.out] = str(error)
        for task, method, result in self._acting():
            require_time(until)
            config = self.config_of(task, method.agent, result["seeds"], method.reading)
            try:
                evaluate_acting(config, method.acting)
            except _FAILURES as error:
                failed[config.out] = str(error)
        return failed

    def estimate(self, runs: Sequence[MissingRun]) -> Iterator[tuple[MissingRun, float]]:
        """Seconds of updates that each run still needs, from speeds of this folder's runs or else tried on the spot.

        They come one by one: trying a kind of run takes at least four of its updates and two seconds.
        """
        known: dict[tuple[str, str, int], float] = {}
        for path in self.out.glob("*/*/seeds_*"):
            if (path / RUN_FILE).exists() and (speed := updates_per_second(path)):
                known[_kind(_config_of(path))] = speed
        accelerator: Accelerator | None = None
        for run in runs:
            kind = _kind(run.config)
            if kind not in known:
                accelerator = accelerator or make_accelerator(replace(run.config.loop, trackers=()), self.out)
                known[kind] = measure_updates_per_second(run.config, accelerator)
            yield run, run.updates / known[kind]

    def cells(self) -> list[tuple[str, str, Reading]]:
        """(task, agent, reading) of every run the selected rows and methods need."""
        tasks = [task for row in self.rows for task in self.table.tasks(row)]
        agents = dict.fromkeys((m.agent, reading_of(m.agent, m.reading or self.reading)) for m in self.methods)
        return [(task, *agent) for task in tasks for agent in agents]

    def label(self, agent: str, reading: Reading | None = None) -> str:
        """The name of a cell's runs: the agent's, with its reading where that is not the one this folder began with."""
        read, first = (reading_of(agent, which) for which in (reading or self.reading, self._first))
        return agent if read == first else f"{agent}-{read}"

    def _acting(self) -> Iterator[tuple[str, TableMethod, dict[str, Any]]]:
        for task in dict.fromkeys(task for task, *_ in self.cells()):
            for method in self.methods:
                if method.acting:
                    yield from ((task, method, r) for r in self.results(task, method.agent, method.reading))

    def _folder(self, task: str, agent: str, reading: Reading | None = None) -> Path:
        return self.out / task / (self.label(agent, reading) + "-online" * self.table.online)

    def _protocols(self) -> dict[str, Any]:
        """What all runs of this folder have in common, as ``grid.json`` keeps it."""
        names = ("steps", "eval_episodes")
        protocol = self._protocol | {n: getattr(self.config, n) for n in names if getattr(self.config, n)}
        online = self.config.online_steps or self._protocol.get("online_steps", 0)
        common: dict[str, Any] = {"protocol": _fixed(protocol), "reading": self._first}
        return common | ({"online_steps": online} if self.table.online else {})

    def _read_protocols(self) -> dict[str, Any]:
        """``grid.json``, while there are runs that it describes."""
        path = self.out / GRID
        if not path.exists() or not any(self.out.glob(f"*/*/seeds_*/{RUN_FILE}")):
            return {}
        before: dict[str, Any] = dict(read_as(path, _GridFile))
        return before | {"protocol": _fixed(before.get("protocol", {}))}

    def _refuse_other_protocol(self) -> None:
        for name, value in self._protocols().items():
            if self._before.get(name, value) != value:
                raise ConfigError(
                    f"{self.out} holds runs with {name} {short(self._before[name])}, now it is {short(value)}; "
                    "choose another --out"
                )


def _selected(table: PaperTable, only: Sequence[str]) -> tuple[list[str], list[TableMethod]]:
    """Rows and methods that the words name, agents the table has no column of as well; all where no word names any."""
    methods = [method for method in table.methods if method.key in only]
    known = {method.key for method in table.methods}
    others = {*AGENTS, *method_names()} - known
    methods += [method_of(word) for word in dict.fromkeys(only) if word in others]
    starts = [word for word in only if word not in {method.key for method in methods}]
    for word in starts:
        if not any(row.startswith(word) for row in table.rows):
            near = nearest(word, [*table.rows, *known, *others])
            raise ConfigError(f"table {table.key} has no row or method '{word}'; nearest valid name: '{near}'")
    rows = [row for row in table.rows if not starts or row.startswith(tuple(starts))]
    return rows, methods or list(table.methods)


def _fixed(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options that all runs of a folder share: not those that a run may go on without.

    ``online_steps`` and ``reading`` stand apart.
    """
    kept: dict[str, Any] = {}
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            value = _fixed(value, f"{prefix}{name}.")
            if not value:
                continue
        if prefix + name not in (*FREE, "online_steps", "reading"):
            kept[name] = value
    return kept


def _config_of(folder: Path) -> StateBasedConfig:
    return from_dict(StateBasedConfig, read_run(folder)["config"], str(folder / RUN_FILE))


def _kind(config: StateBasedConfig) -> tuple[str, str, int]:
    return find_task(config.env).domain, config.agent, len(config.all_seeds)
