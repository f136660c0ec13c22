"""What a score of two stages must be compared with: agents that see nothing, scored on the same scenes.

Standing still scores more there than many a trained policy, which a number alone does not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_bridge.agents.agent import Plans, Proposer
from navsim_bridge.agents.baselines import constant_velocity, stand_still
from navsim_bridge.agents.plans import by_candidate
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.two_stage import DEVKIT_SPLITS, fingerprint
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord

FLOORS = {"stand_still": stand_still, "constant_velocity": constant_velocity}
"""Agents by name."""
NAVHARD = "navhard_two_stage"
PUBLIC = {"stand_still": 0.2985, "constant_velocity": 0.1148}
"""What they score there with the devkit (main branch, its human filter as fixed); the second stands on the board."""


@dataclass(frozen=True)
class WithFloors:
    """Opens an agent whose further candidates, behind its own, are the plans of floors."""

    open_agent: Callable[[], Proposer]
    names: tuple[str, ...]

    def __call__(self) -> Proposer:
        """The agent."""
        return _Beside(self.open_agent(), self.names)


@dataclass(frozen=True)
class _Beside:
    agent: Proposer
    names: tuple[str, ...]

    def __call__(self, records: Sequence[SceneRecord]) -> Plans:
        return self.agent(records)

    def propose(self, records: Sequence[SceneRecord]) -> list[Plans]:
        own = by_candidate(self.agent.propose(records), len(records))
        return [*own, *(FLOORS[name](records) for name in self.names)]

    def require_finite(self, plans: NDArray[Any], candidate: int) -> None:
        # a floor is finite, and no source of the agent has its number
        if not np.isfinite(plans).all():
            self.agent.require_finite(plans, candidate)


def floors_for(agent: str, split: Split) -> tuple[str, ...]:
    """Names of floors that belong beside the score of an agent on a split: on one of two stages, but for itself."""
    return tuple(name for name in FLOORS if name != agent) if split.two_stage is not None else ()


def floors_of(scored: Mapping[str, Evaluation], split: Split) -> dict[str, Any] | None:
    """What a summary says of floors: scores by name, and the public ones where the split is that of the leaderboard.

    None for a split that needs none. ``scored``: by name; further agents do not matter.
    """
    if split.two_stage is None or split.two_stage.groups is None:
        return None
    is_public = fingerprint(split.two_stage.groups) == DEVKIT_SPLITS[NAVHARD]
    scores = {name: _score(scored[name]) for name in FLOORS if name in scored}
    return {"scores": scores, "public": PUBLIC if is_public else None}


def describe_floors(floors: Mapping[str, Any] | None, metric: Metric[Any]) -> list[str]:
    """What to print of `floors_of`."""
    if floors is None:
        return []
    score = replace(metric.columns[-1], label="")
    shown = ", ".join(
        f"{name}{score.shown(value) if value is not None else ' -'}" for name, value in floors["scores"].items()
    )
    lines = [f"floors, which see nothing, on the same scenes: {shown}"]
    if floors["public"]:
        known = ", ".join(f"{name} {100 * value:.2f}" for name, value in floors["public"].items())
        lines.append(f"with the devkit on the whole of this split, with its human filter as fixed: {known}")
    return lines


def _score(evaluation: Evaluation) -> float | None:
    score = evaluation.averages["score"] if evaluation.parts else np.nan
    return None if np.isnan(score) else float(score)
