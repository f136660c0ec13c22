"""The frozen encoder's tokens of a cycle: from disk, kept in memory, or made anew for every batch; always read ahead.

While an update runs, a thread gets what the next ones need ready in pinned memory: tokens where they are kept, decoded
images where they are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla import ahead
from dpvla.batch import SceneSource
from dpvla.models import DPVLA, SceneContext
from dpvla.rl.config import TokensConfig
from dpvla.rl.token_files import TokenFiles
from dpvla.rl.tokens import encoded, refuse_not_finite
from dpvla.training.reading import batches_ahead


def chunks(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` covering ``range(count)``."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


class TokenCache:
    """Contexts of the scenes at ``indices`` of a source, on the accelerator's device when asked for.

    What is not on disk is encoded in portions of ``portion`` scenes, which are also what ``portions`` gives: a batch's
    size may show in the last bits of its tokens, so a resumed run encodes the same portions.
    """

    encodings: int
    """Scenes encoded so far, each time it was."""

    def __init__(
        self,
        policy: DPVLA,
        source: SceneSource,
        indices: Tensor,
        accelerator: Accelerator,
        portion: int,
        limit_gb: float,
        config: TokensConfig | None = None,
        files: TokenFiles | None = None,
        visits: int = 1,
    ) -> None:
        """``files``: where the tokens lie; without, they stay in memory up to ``limit_gb``.

        ``visits``: how often every scene will be asked for, for what encoding them each time takes.
        """
        self._policy, self._source, self._accelerator = policy, source, accelerator
        self.indices, self._portion, self._visits = indices, portion, visits
        self._config = config or TokensConfig()
        self._files, self.encodings = files, 0
        self._rows: list[int] = []
        self._kept: SceneContext | None = None
        if files is None:
            self._kept = self._encode_all(limit_gb)
        else:
            self._rows = files.rows([source.tokens[index] for index in indices.tolist()])

    @property
    def encodes_batches(self) -> bool:
        """Whether ``batches`` runs the encoder: its tokens are neither on disk nor in memory."""
        return self._files is None and self._kept is None

    def portions(self) -> Iterator[tuple[range, SceneContext]]:
        """Every portion in order: its rows of ``indices`` and its context."""
        portions = [*chunks(len(self.indices), self._portion)]
        yield from zip(portions, self._contexts(portions, look_through=True))

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[SceneContext]:
        """Contexts of some rows of ``indices`` after another, each made ready before it is asked for."""
        return self._contexts(batches, look_through=False)

    def _contexts(self, batches: Sequence[Sequence[int]], look_through: bool) -> Iterator[SceneContext]:
        device, pin = self._accelerator.device, self._accelerator.device.type == "cuda"
        if self.encodes_batches:
            indices = [self.indices[[*rows]].tolist() for rows in batches]
            yield from self._encoded(indices, look_through)
            return
        for context in ahead.ahead((self._read(rows, pin) for rows in batches), self._config.ahead):
            yield context.to(device)

    def _read(self, rows: Sequence[int], pin: bool) -> SceneContext:
        """On the CPU; in a thread of its own."""
        if self._files is not None:
            return self._files.read([self._rows[row] for row in rows], pin)
        assert self._kept is not None
        found = self._kept.select(torch.as_tensor([*rows]))
        return found.pin_memory() if pin else found

    def _encoded(self, indices: Sequence[Sequence[int]], look_through: bool) -> Iterator[SceneContext]:
        """Contexts of scenes of the source, decoded ahead; looked through at roll-outs alone: updates wait for none."""
        config, device = self._config, self._accelerator.device
        for batch in batches_ahead(self._source, indices, config.workers, device, config.ahead):
            context = encoded(self._policy, batch, device)
            self.encodings += len(batch)
            if look_through:
                refuse_not_finite(self._policy, context, batch.tokens)
            yield context

    def _encode_all(self, limit_gb: float) -> SceneContext | None:
        """All contexts on the CPU, or None where they are too large to be kept."""
        kept: SceneContext | None = None
        portions = [*chunks(len(self.indices), self._portion)]
        indices = [self.indices[rows.start : rows.stop].tolist() for rows in portions]
        began = time.perf_counter()
        # The first by itself: where tokens are too large to be kept, no others are decoded in vain.
        contexts = chain(self._encoded(indices[:1], True), self._encoded(indices[1:], True))
        for rows, context in zip(portions, contexts):
            if kept is None:
                total = context.tokens.nbytes / len(rows) * len(self.indices)
                if total > limit_gb * 2**30:
                    self._say_what_encoding_takes(total, limit_gb, (time.perf_counter() - began) / len(rows))
                    return None
                if total > 2**30:
                    self._accelerator.print(f"keeping {total / 2**30:.1f} GiB of encoded scenes in memory")
                kept = context.room(len(self.indices))
            kept.put(rows, context)
        return kept

    def _say_what_encoding_takes(self, total: float, limit_gb: float, seconds: float) -> None:
        again = self._visits * len(self.indices)
        self._accelerator.print(
            f"encoded scenes would take {total / 2**30:.1f} GiB of memory, more than context_cache_gb = {limit_gb}: "
            f"encoding every batch afresh, {again} scenes more a process at {seconds:.3g} s each: about "
            f"{again * seconds / 3600:.2g} hours that --tokens.directory would save"
        )
