"""Options of choosing among several plans of a policy by a trained selector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from dpvla.config import ConfigError, NotNegative, Range

ProposedBy = Literal["own", "base", "adapters"]
"""own: the policy as it is sampled; base: its head without adapters; adapters: each by itself."""


@dataclass(frozen=True)
class Selection:
    """What is chosen among, and by what."""

    count: int  # plans of a scene
    selector: str  # run, checkpoint or folder of tools/train_selector.py
    proposed_by: tuple[ProposedBy, ...]
    omegas: tuple[float, ...]  # of own; none: the one that the policy is sampled with

    def fixed(self) -> Selection:
        """With the selector that its path finds now: of a run its newest. Raises as ``find_selector``."""
        from dpvla.selector.selector import find_selector  # with torch, which options do not need

        return replace(self, selector=str(find_selector(self.selector)))


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """Whether, and how, a plan is chosen among several."""

    select: Annotated[int, Range(least=0, most=1024)] = 0  # dpvla: sample so many plans, take the best by --selector
    selector: str | None = None  # with --select: run, checkpoint or folder of tools/train_selector.py
    select_from: tuple[ProposedBy, ...] = ("own",)  # with --select: own, base, adapters (each alone); in equal shares
    select_omegas: tuple[NotNegative, ...] = ()  # with --select: omegas of own, in equal shares; default: its one omega

    def selection(self) -> Selection | None:
        """None where nothing is chosen. Raises ConfigError for options that do not fit each other."""
        if not self.select:
            given = {"selector": self.selector, "select-omegas": self.select_omegas}
            belong = [f"--{name}" for name, value in given.items() if value]
            belong += ["--select-from"] if self.select_from != ("own",) else []
            if belong:
                raise ConfigError(f"{', '.join(belong)} belong{'' if belong[1:] else 's'} to --select K")
            return None
        if self.select == 1:
            raise ConfigError("--select 1 leaves nothing to choose: give 2 or more plans, or leave --select out")
        if self.selector is None:
            raise ConfigError("--select needs --selector: a run of tools/train_selector.py")
        for name, values in (("select-from", self.select_from), ("select-omegas", self.select_omegas)):
            if len(set(values)) < len(values):
                raise ConfigError(f"--{name} names {next(v for v in values if values.count(v) > 1)} twice")
        if not self.select_from:
            raise ConfigError("--select-from needs at least one of own, base, adapters")
        if self.select_omegas and "own" not in self.select_from:
            raise ConfigError("--select-omegas belongs to --select-from own")
        return Selection(self.select, self.selector, self.select_from, self.select_omegas)
