"""Scoring any number of scenes and candidates with bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.compiled import choice

_PLANS_IN_FLIGHT = {"cpu": 192, "compiled": 2048, "cuda": 16384}
PER_SCENE = {"axes": "scene"}
"""Metadata of result fields without a candidate axis."""


class Scenes(Protocol):
    """What is needed of a batch of scenes."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> NDArray[np.int64]: ...  # (scene, 5) columns of SceneSizes

    @property
    def device(self) -> torch.device: ...

    def select(self, index: NDArray[np.int64]) -> Any: ...


Result = TypeVar("Result")
"""A dataclass whose fields are all tensors, scene axis first and then, unless PER_SCENE, the candidate axis."""


def score_in_chunks(
    score: Callable[[Any, Tensor], Result], scenes: Scenes, plans: Tensor, max_plans_in_flight: int | None
) -> Result:
    """``score(scenes, plans)``, computed on pieces of at most ``max_plans_in_flight`` plans, references included.

    None takes 192 on the CPU (fits its caches), 2048 where kernels are compiled for it, 16384 on CUDA. Candidates must
    not influence each other.
    """
    if max_plans_in_flight is None:
        kind = "cuda" if scenes.device.type != "cpu" else "compiled" if choice.use_numba(plans) else "cpu"
        max_plans_in_flight = _PLANS_IN_FLIGHT[kind]
    if max_plans_in_flight < 1:
        raise ValueError(f"max_plans_in_flight must be at least 1, found {max_plans_in_flight}")
    candidates = max(1, max_plans_in_flight - 1)
    if plans.shape[1] > candidates:
        return join([_by_scenes(score, scenes, part, 1) for part in plans.split(candidates, dim=1)], dim=1)
    return _by_scenes(score, scenes, plans, max(1, max_plans_in_flight // (plans.shape[1] + 1)))


def _by_scenes(score: Callable[[Any, Tensor], Result], scenes: Scenes, plans: Tensor, per_chunk: int) -> Result:
    """Score ``per_chunk`` scenes at a time."""
    if len(scenes) <= per_chunk:
        return score(scenes, plans)
    # scenes of similar size go together, so that one crowded scene does not pad all others
    order = np.lexsort((scenes.sizes[:, 1], scenes.sizes[:, 4] // 16))
    parts = []
    for start in range(0, len(order), per_chunk):
        rows = order[start : start + per_chunk]
        parts.append(score(scenes.select(rows), plans[torch.from_numpy(rows).to(plans.device)]))
    back = torch.from_numpy(np.argsort(order)).to(plans.device)
    return mapped(join(parts, dim=0), lambda tensor: tensor[back])


def mapped(result: Result, function: Callable[[Tensor], Tensor]) -> Result:
    """``result`` with ``function`` of each of its tensors: some of its scenes, or another device."""
    fields: Any = dataclasses.fields(result)  # type: ignore[arg-type]
    return dataclasses.replace(result, **{f.name: function(getattr(result, f.name)) for f in fields})  # type: ignore[type-var]


def join(parts: list[Result], dim: int) -> Result:
    """Concatenate results of further scenes (dim 0) or further candidates of the same scenes (dim 1)."""
    first: Any = parts[0]
    joined = {}
    for field in dataclasses.fields(first):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = values[0] if dim == 1 and field.metadata == PER_SCENE else torch.cat(values, dim)
    return dataclasses.replace(first, **joined)
