"""What to collect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpvla.config import Count, Size, Whole, Workers
from dpvla.state_based.data.exorl.files import DEFAULT_FOLDER
from dpvla.state_based.environments.control_suite import TASKS, versions

COLLECTOR_VERSION = 1
"""Raised whenever the same settings would give other data."""


@dataclass(frozen=True)
class ExORLCollection:
    """What to collect and where. A killed run goes on where it stopped and gives the same bytes as an unbroken one.

    The defaults are smaller and learn more rarely than URLB's (hidden 1024, batch 1024, an update every 2 steps), which
    would need a GPU.
    """

    domain: str = "walker"  # walker, quadruped, cheetah or jaco
    episodes: Count = 300  # of 1000 transitions (jaco: 250); a larger number later adds to what is there
    out: str = str(DEFAULT_FOLDER)  # folder that receives <domain>/rnd/buffer/episode_<index>_<length>.npz
    seed: Whole = 0  # everything random derives from it
    hidden: Size = 256  # width of all networks
    batch_size: Count = 256  # transitions of an update
    update_every: Count = 4  # environment steps per update
    random_steps: Whole = 4000  # steps with uniformly random actions and without updates at the start
    steps: Whole = 0  # transitions of an episode; 0: the domain's
    checkpoint_every: Count = 5  # episodes between states to resume from
    threads: Workers = 1  # CPU threads of the networks; more rarely pay at this size
    quiet: bool = False  # no progress bar

    def __post_init__(self) -> None:
        if self.domain not in TASKS:
            raise ValueError(f"unknown domain '{self.domain}'; choose from: {', '.join(TASKS)}")

    def identity(self) -> dict[str, Any]:
        """All that an episode depends on, besides those before it."""
        names = ("domain", "seed", "hidden", "batch_size", "update_every", "random_steps", "steps")
        settings = {name: getattr(self, name) for name in names}
        return {"collector": "rnd", "version": COLLECTOR_VERSION, **settings, "packages": versions()}
