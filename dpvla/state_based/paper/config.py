"""Options of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpvla.config import ConfigError, Whole, Workers
from dpvla.parallel import available_cores
from dpvla.state_based.running.paper_tables import SEEDS, table_keys


@dataclass(frozen=True)
class ReproduceConfig:
    """Which table, and how its runs are made. Without options: the paper's protocol with 8 seeds."""

    table: str  # 1: ExORL; 2, 7: OGBench; 3: offline to online; small: see docs
    out: str = "runs/reproduce"  # folder of all runs; tables share those they have in common
    protocol: str | None = None  # YAML file with options of train_state_based.py for every run
    only: tuple[str, ...] = ()  # rows (or what their names begin with), methods and other agents; none: the table's
    seeds: tuple[Whole, ...] = tuple(range(SEEDS))  # of every cell; more can be added later
    seeds_per_run: Whole = 0  # seeds that train side by side in one run; 0: all of them
    steps: Whole = 0  # offline updates; 0: the protocol's
    online_steps: Whole = 0  # of table 3; 0: the paper's
    eval_episodes: Whole = 0  # 0: the protocol's
    ogbench_data: str | None = None  # none: ~/.ogbench/data
    exorl_data: str | None = None  # none: data/exorl
    workers: Workers = field(default_factory=available_cores)  # processes that step environments
    plugin: tuple[str, ...] = ()  # modules of yours that add agents: their names, or .py files
    dry_run: bool = False  # say what is missing and how long it would take, after a short trial of each kind

    def __post_init__(self) -> None:
        if self.table not in table_keys():
            raise ConfigError(f"table must be one of {', '.join(table_keys())}, found {self.table!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be given and differ, found {list(self.seeds)}")
