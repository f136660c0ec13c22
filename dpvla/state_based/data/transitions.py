"""The data of the state-based track: rows ``(s, a, r, s')`` in the order they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

ACTION_LIMIT = 1.0 - 1e-5
"""Recorded actions are clipped to ± this (the FQL code's bound), so that they stay inside a tanh's range."""


@dataclass(frozen=True)
class Transitions:
    """Recorded steps, one row each; the rows of one episode follow each other in time.

    Two flags that are easily confused:

    - ``masks``: 0 where nothing follows, so that a target is the reward alone (success on OGBench); 1 elsewhere, and 1
      at a time limit. The only thing bootstrapping looks at. On ExORL it is 1 everywhere.
    - ``terminals``: 1 on the last row of an episode for whatever reason, time limits included. Tells where
      the next row belongs to another episode (ReBRAC asks for the next action).

    All float32, on one device. Actions lie in [-1, 1].
    """

    observations: Tensor  # (row, observation)
    actions: Tensor  # (row, action)
    rewards: Tensor  # (row,), of this row's step
    next_observations: Tensor  # (row, observation)
    masks: Tensor  # (row,), 0 or 1
    terminals: Tensor  # (row,), 0 or 1

    def __post_init__(self) -> None:
        rows = len(self.observations)
        for field in fields(self):
            value: Tensor = getattr(self, field.name)
            axes = 2 if "observations" in field.name or field.name == "actions" else 1
            if value.ndim != axes or len(value) != rows or value.dtype != torch.float32:
                raise ValueError(
                    f"transitions: {field.name} must be float32 with {axes} axes and {rows} rows, "
                    f"found {value.dtype} {tuple(value.shape)}"
                )
            finite = torch.isfinite(value)
            if not finite.all():
                bad = int((~finite).reshape(rows, -1).any(1).sum())
                raise ValueError(f"transitions: {field.name} holds NaN or infinity in {bad} of {rows} rows")
        if self.next_observations.shape != self.observations.shape:
            raise ValueError(
                f"transitions: next_observations are {tuple(self.next_observations.shape)}, "
                f"observations {tuple(self.observations.shape)}"
            )
        if rows and float(self.actions.abs().max()) > 1:
            raise ValueError(f"transitions: actions must lie in [-1, 1], found {float(self.actions.abs().max())}")
        for name in ("masks", "terminals"):
            value = getattr(self, name)
            if not ((value == 0) | (value == 1)).all():
                raise ValueError(f"transitions: {name} must be 0 or 1")

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Transitions:
        """From NumPy arrays of any number type under this class's field names (others are ignored).

        Actions are clipped to ``ACTION_LIMIT``; a missing field is refused by name.
        """
        missing = [field.name for field in fields(Transitions) if field.name not in arrays]
        if missing:
            raise ValueError(f"transitions: the data lack {', '.join(missing)}; found {', '.join(arrays)}")
        tensors = {f.name: torch.from_numpy(np.asarray(arrays[f.name], dtype=np.float32)) for f in fields(Transitions)}
        if not torch.isfinite(tensors["actions"]).all():  # clipping would hide it
            raise ValueError("transitions: actions holds NaN or infinity")
        tensors["actions"] = tensors["actions"].clamp(-ACTION_LIMIT, ACTION_LIMIT)
        return Transitions(**tensors)

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def observation_dim(self) -> int:
        """Numbers in an observation."""
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.actions.shape[1]
