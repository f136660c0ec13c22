"""The frozen encoder's tokens of a cycle: kept in memory where they fit, else made anew for every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.batch import SceneSource
from dpvla.models import DPVLA, SceneContext
from dpvla.registry import ContractError
from dpvla.tensors import not_finite


def chunks(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` covering ``range(count)``."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


class TokenCache:
    """Contexts of the scenes at ``indices`` of a source, on the accelerator's device when asked for.

    They are encoded in portions of ``portion`` scenes, which are also what ``portions`` gives: a batch's size may show
    in the last bits of its tokens, so a resumed run encodes the same portions.
    """

    def __init__(
        self,
        policy: DPVLA,
        source: SceneSource,
        indices: Tensor,
        accelerator: Accelerator,
        portion: int,
        limit_gb: float,
    ) -> None:
        self._policy, self._source, self._accelerator = policy, source, accelerator
        self.indices, self._portion = indices, portion
        self._kept = self._encode_all(limit_gb)

    def portions(self) -> Iterator[tuple[range, SceneContext]]:
        """Every portion in order: its rows of ``indices`` and its context."""
        for number, rows in enumerate(chunks(len(self.indices), self._portion)):
            if self._kept is not None and len(self._kept) > number:
                yield rows, self._kept[number].to(self._accelerator.device)
            else:
                yield rows, self._first_look(rows)

    def select(self, rows: Tensor) -> SceneContext:
        """Context of some rows (int64) of ``indices``."""
        if self._kept is None:
            return self._encode(self.indices[rows].tolist())
        if len(self._kept) > 1:
            self._kept = [SceneContext.cat(self._kept)]
        return self._kept[0].select(rows).to(self._accelerator.device)

    @torch.no_grad()
    def _encode(self, indices: Sequence[int]) -> SceneContext:
        self._policy.eval()
        return self._policy.encode(self._source.batch(indices).to(self._accelerator.device))

    def _first_look(self, rows: range) -> SceneContext:
        """Of a portion; tokens are looked through here alone, since updates must not wait for the device."""
        indices = self.indices[rows.start : rows.stop].tolist()
        context = self._encode(indices)
        if not_finite({"tokens": context.tokens}):
            bad = (~context.tokens.isfinite()).flatten(1).any(-1).nonzero().flatten().tolist()
            raise ContractError(
                f"the encoder {self._policy.config.encoder.name} gives NaN or infinity for {len(bad)} scenes, first "
                f"{self._source.tokens[indices[bad[0]]]}"
            )
        return context

    def _encode_all(self, limit_gb: float) -> list[SceneContext] | None:
        kept: list[SceneContext] = []
        for rows in chunks(len(self.indices), self._portion):
            context = self._first_look(rows)
            if not kept:
                total = context.tokens.nbytes / len(rows) * len(self.indices)
                if total > limit_gb * 2**30:
                    self._accelerator.print(
                        f"encoded scenes would take {total / 2**30:.1f} GiB of memory, more than "
                        f"context_cache_gb = {limit_gb}: encoding every batch afresh"
                    )
                    return None
                if total > 2**30:
                    self._accelerator.print(f"keeping {total / 2**30:.1f} GiB of encoded scenes in memory")
            kept.append(context.to("cpu"))
        return kept
