"""What the encoder leaves of a scene: enough to denoise plans for it again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpvla.models.head import Condition


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
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> SceneContext:
        """Copy on ``device``; ``dtype`` (bfloat16 to save memory) applies to the tokens alone.

        What comes to the CPU is there when it is given; a copy to a GPU is only queued.
        """
        context = self if dtype is None else replace(self, tokens=self.tokens.to(dtype))
        later = torch.device(device).type != "cpu"  # a copy from a GPU would be read before it is made
        return context._map(lambda tensor: tensor.to(device, non_blocking=later))

    def pin_memory(self) -> SceneContext:
        """Copy in page-locked memory, from which a GPU copies while the CPU goes on."""
        return self._map(Tensor.pin_memory)

    def room(self, scenes: int) -> SceneContext:
        """Memory on the CPU for so many scenes like these, to be filled by ``put``."""
        return self._map(lambda tensor: torch.empty(scenes, *tensor.shape[1:], dtype=tensor.dtype))

    def put(self, rows: range, context: SceneContext) -> None:
        """Copy ``context`` into ``rows``; it is there afterwards, wherever it comes from."""
        if (context.mask is None) != (self.mask is None) or context.tokens.shape[1:] != self.tokens.shape[1:]:
            raise ValueError("contexts of one encoder must have one shape, and all a mask or none")
        for name in ("tokens", "mask", "command", "ego_status", "history"):
            own, theirs = getattr(self, name), getattr(context, name)
            if own is not None:
                own[rows.start : rows.stop].copy_(theirs)

    @staticmethod
    def cat(contexts: Sequence[SceneContext]) -> SceneContext:
        """Several contexts of one policy behind one another."""
        masks = [context.mask for context in contexts if context.mask is not None]
        if masks and len(masks) < len(contexts):
            raise ValueError("some of the contexts have a mask and some have none: they come from different encoders")
        return SceneContext(
            tokens=torch.cat([context.tokens for context in contexts]),
            mask=torch.cat(masks) if masks else None,
            command=torch.cat([context.command for context in contexts]),
            ego_status=torch.cat([context.ego_status for context in contexts]),
            history=torch.cat([context.history for context in contexts]),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> SceneContext:
        return SceneContext(
            tokens=change(self.tokens),
            mask=None if self.mask is None else change(self.mask),
            command=change(self.command),
            ego_status=change(self.ego_status),
            history=change(self.history),
        )
