"""What the encoder leaves of a scene: enough to denoise plans for it again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dpvla.models.dit import Condition


@dataclass(frozen=True)
class SceneContext:
    """Encoder tokens and the scene's numbers; scene axis first. Cache it while the encoder is frozen."""

    tokens: Tensor  # (scene, token, encoder width)
    mask: Tensor | None  # (scene, token) bool, True for real tokens; None when all are
    command: Tensor  # (scene,) int64
    ego_status: Tensor  # (scene, 4) m/s, m/s^2
    history: Tensor  # (scene, 3, 3) m, m, rad

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.tokens.device

    @property
    def condition(self) -> Condition:
        """The part that conditions the head besides the tokens."""
        return Condition(self.command, self.ego_status, self.history)

    def select(self, index: Tensor) -> SceneContext:
        """The scenes at ``index`` (int64 or bool tensor or slice), in that order."""
        return SceneContext(**{name: t if t is None else t[index] for name, t in self._tensors().items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SceneContext:
        """Copy on ``device``; ``dtype`` (bfloat16 to save memory) applies to the tokens alone."""
        moved = {name: t if t is None else t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        if dtype is not None and moved["tokens"] is not None:
            moved["tokens"] = moved["tokens"].to(dtype)
        return SceneContext(**moved)  # type: ignore[arg-type]

    def detach(self) -> SceneContext:
        """The same without gradient history."""
        return SceneContext(**{name: t if t is None else t.detach() for name, t in self._tensors().items()})

    @staticmethod
    def cat(contexts: Sequence[SceneContext]) -> SceneContext:
        """Several contexts of one policy behind one another."""
        columns = [context._tensors() for context in contexts]
        joined = {}
        for name in columns[0]:
            parts = [column[name] for column in columns]
            joined[name] = None if parts[0] is None else torch.cat([p for p in parts if p is not None])
        return SceneContext(**joined)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor | None]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
