"""Options of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpvla.config import ConfigError, NotNegative, Whole, Workers
from dpvla.parallel import available_cores
from dpvla.state_based.agents.recipes import Reading
from dpvla.state_based.paper.figure_file import figure_keys
from dpvla.state_based.running.paper_tables import SEEDS, table_keys


@dataclass(frozen=True)
class ReproduceConfig:
    """Which table or figure, and how its runs are made. Without options: the paper's protocol with 8 seeds."""

    table: str | None = None  # 1: ExORL; 2, 7: OGBench; 3: offline to online; small: see docs; 4 is driving's
    figure: str | None = None  # beta, k, omega, next_omega, expectile, N: ablations; online, stability: curves
    out: str = "runs/reproduce"  # folder of all runs; tables share those they have in common
    protocol: str | None = None  # YAML file with options of train_state_based.py for every run
    reading: Reading | None = None  # of dipole (docs); none: that of the runs in --out, release in a new folder
    only: tuple[str, ...] = ()  # rows (or what their names begin with), methods and other agents; none: the table's
    seeds: tuple[Whole, ...] = tuple(range(SEEDS))  # of every cell, 0..7 for all from 0 to 7; more can be added later
    seeds_per_run: Whole = 0  # seeds that train side by side in one run; 0: all of them
    steps: Whole = 0  # offline updates; 0: the protocol's
    online_steps: Whole = 0  # of table 3 and --figure online; 0: the protocol's, else the paper's
    eval_episodes: Whole = 0  # 0: the protocol's
    ogbench_data: str | None = None  # none: ~/.ogbench/data
    exorl_data: str | None = None  # none: data/exorl
    make_data: Whole = 0  # episodes of OGBench data to make in --ogbench-data where there is none; 0: none are made
    budget_minutes: NotNegative = 0.0  # save and stop before so long has passed, the same command goes on; 0: no limit
    workers: Workers = field(default_factory=available_cores)  # processes that step environments
    plugin: tuple[str, ...] = ()  # modules of yours that add agents: their names, or .py files
    dry_run: bool = False  # say what is missing and how long it would take, after a short trial of each kind

    def __post_init__(self) -> None:
        if (self.table is None) == (self.figure is None):
            raise ConfigError("give one of --table and --figure")
        if self.table is not None and self.table not in table_keys():
            raise ConfigError(f"table must be one of {', '.join(table_keys())}, found {self.table!r}")
        if self.figure is not None and self.figure not in figure_keys():
            known = ", ".join(figure_keys())
            raise ConfigError(f"figure must be one of {known} (or 5, scaling: driving), found {self.figure!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be given and differ, found {list(self.seeds)}")
        if self.make_data and self.ogbench_data is None:
            raise ConfigError("make_data needs --ogbench-data: the folder that the data is made in")
        if 0 < self.budget_minutes < 1:
            raise ConfigError(f"budget_minutes must be at least 1, or 0 for no limit, found {self.budget_minutes}")
