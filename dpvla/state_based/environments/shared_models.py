"""Manipulation environments of one process share what they never change: two compiled models and their descriptions.

The two are 95 MB and take most of a second to compile; what an environment has of its own is about 1 MB. In a few of a
model's arrays every environment writes all the same (a locked drawer is one whose joint has a high damping); those it
takes with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from dpvla.state_based.environments.headless import load

WRITTEN = ("geom_rgba", "mat_rgba", "dof_damping", "site_pos")
"""Arrays of a model in which OGBench's environments write while they are used."""


class SharedModel:
    """A compiled model in which several environments take turns; each has a ``ModelPart``."""

    def __init__(self, model: Any) -> None:
        self.arrays: list[NDArray[Any]] = [getattr(model, name) for name in WRITTEN]
        self.inside: ModelPart | None = None  # whose values stand in the arrays


class ModelPart:
    """What one environment has written into a shared model."""

    def __init__(self, shared: SharedModel) -> None:
        """With what is written there now."""
        self._shared = shared
        self._values = [array.copy() for array in shared.arrays]

    def enter(self) -> None:
        """Put this environment's values into the model, those of the one before away; nothing to do for the same."""
        shared = self._shared
        if shared.inside is self:
            return
        if shared.inside is not None:
            for kept, array in zip(shared.inside._values, shared.arrays):
                kept[...] = array
        for array, own in zip(shared.arrays, self._values):
            array[...] = own
        shared.inside = self

    def beside(self) -> ModelPart:
        """For another environment of the same model."""
        return ModelPart(self._shared)


def has_own_model(raw: Any) -> bool:
    """Whether a gymnasium environment of OGBench is one of those that compile a model of their own (manipulation)."""
    return hasattr(raw.unwrapped, "_mjcf_model")


def part_of(raw: Any) -> ModelPart:
    """The part that an environment has in its model, to be shared from now on."""
    return ModelPart(SharedModel(raw.unwrapped._model))


def another(raw: Any) -> Any:
    """A copy of a manipulation environment that shares its models and has all else of its own; reset it before use."""
    mujoco, own = load("mujoco"), raw.unwrapped
    shared = tuple(_shared(vars(own))) + tuple(_shared(vars(own._ik)))
    memo = {id(thing): thing for thing in shared}
    for holder in (own, own._ik):
        memo[id(holder._data)] = mujoco.MjData(holder._model)
    return copy.deepcopy(raw, memo)


def _shared(thing: Any) -> Iterator[Any]:
    """Compiled models, and elements of their descriptions, in attributes and lists of them."""
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple)):
        for item in thing:
            yield from _shared(item)
    elif isinstance(thing, (load("mujoco").MjModel, load("dm_control.mjcf").Element)):
        yield thing
