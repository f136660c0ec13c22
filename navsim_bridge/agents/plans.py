"""What agents give, in one form: plans of several scenes, those together that are sampled alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpvla.files import short
from dpvla.plan import NUM_POSES, POSE_INTERVAL, Plan
from navsim_bridge.agents.agent import Plans


@dataclass(frozen=True)
class Alike:
    """Plans that have as many poses, as far apart."""

    places: tuple[int, ...]  # of their scenes
    poses: NDArray[np.float64]  # (plan, pose, 3)
    interval: float | None  # [s] None: the usual 8 poses


def checked(plans: Any, scenes: int) -> Plans:
    """What an agent gave for so many scenes: an array (scene, 8, 3), or `Plan`s.

    Raises ValueError when it is neither, or not one for each scene.
    """
    if isinstance(plans, Sequence) and any(isinstance(plan, Plan) for plan in plans):
        if len(plans) != scenes:
            raise ValueError(f"the agent gave {len(plans)} plans for {scenes} scenes")
        for plan in plans:
            if not isinstance(plan, Plan):
                raise ValueError(f"the agent gave a Plan for some scenes, and {short(plan, 80)} for another")
        return plans
    array = np.asarray(plans)
    if array.shape != (scenes, NUM_POSES, 3):
        raise ValueError(
            f"the agent gave plans of shape {array.shape}, expected {(scenes, NUM_POSES, 3)}; for another number of "
            "poses or another interval it gives a list of dpvla.plan.Plan"
        )
    return array


def by_candidate(proposed: Any, scenes: int) -> list[Plans]:
    """The plans of each candidate that an agent proposed; raises as `checked`."""
    if isinstance(proposed, np.ndarray):
        if proposed.ndim != 4 or (len(proposed), *proposed.shape[2:]) != (scenes, NUM_POSES, 3):
            raise ValueError(
                f"the agent proposed plans of shape {proposed.shape}, expected (scene, candidate, {NUM_POSES}, 3)"
            )
        return list(proposed.swapaxes(0, 1))
    return [checked(plans, scenes) for plans in proposed]


def by_sampling(plans: Plans) -> list[Alike]:
    """Plans in groups of the same sampling, in order of appearance.

    Raises ValueError for poses that are no numbers, or not of shape (pose, 3).
    """
    if isinstance(plans, np.ndarray):
        return [Alike(tuple(range(len(plans))), plans.astype(np.float64, copy=False), None)]
    groups: dict[tuple[int, float], list[int]] = {}
    poses = [_numbers(plan.poses) for plan in plans]
    for place, (plan, numbers) in enumerate(zip(plans, poses)):
        groups.setdefault((len(numbers), plan.interval), []).append(place)
    return [
        Alike(
            tuple(places),
            np.stack([poses[place] for place in places]),
            None if (count, interval) == (NUM_POSES, POSE_INTERVAL) else interval,
        )
        for (count, interval), places in groups.items()
    ]


def _numbers(poses: Any) -> NDArray[np.float64]:
    array = np.asarray(poses)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "biuf":
        raise ValueError(f"the poses of a plan must be numbers of shape (pose, 3), found {array.dtype} {array.shape}")
    return array.astype(np.float64)


def joined(parts: Sequence[Plans]) -> Plans:
    """Plans of scenes that follow each other, at least one."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return [plan for part in parts for plan in each(part)]


def each(plans: Plans) -> list[Plan]:
    """A `Plan` for each scene."""
    return [plan if isinstance(plan, Plan) else Plan(plan) for plan in plans]
