"""Where things stand in a checkpoint and in a run; nothing else spells these names.

A run holds ``run.yaml``, ``metrics.csv`` and ``checkpoints/step_N``; where held-out scenes are scored, ``best``, a link
to one of these; after RL, ``run.png``. A checkpoint holds ``model/`` (``config.json``,
``model.safetensors``), ``adapters/`` (a folder each, and ``sampling.json``: what later sampling must know),
``trainer_state/`` (what is resumed) and ``run.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODEL, ADAPTERS, TRAINER_STATE = "model", "adapters", "trainer_state"
SELECTOR, SELECTOR_WEIGHTS = "selector", "selector.safetensors"
"""Folder of a trained selector in a checkpoint, and its weights beside its ``config.json``."""
CONFIG_FILE, WEIGHTS_FILE, SAMPLING_FILE = "config.json", "model.safetensors", "sampling.json"
RUN_FILE, METRICS_FILE, TRACKING, CHECKPOINTS = "run.yaml", "metrics.csv", "tracking", "checkpoints"
BEST, PICTURE = "best", "run.png"
KEPT_ROLL_OUTS = "roll_outs"
"""Folder of a run with what ``rl.kept`` keeps."""


@dataclass(frozen=True)
class CheckpointLayout:
    """Paths in one checkpoint, whether they exist or not."""

    path: Path

    @property
    def model(self) -> Path:
        """The whole model without adapters."""
        return self.path / MODEL

    @property
    def adapters(self) -> Path:
        """A folder for every adapter, and how to sample with them."""
        return self.path / ADAPTERS

    @property
    def selector(self) -> Path:
        """What chooses among plans, in a checkpoint of its own."""
        return self.path / SELECTOR

    @property
    def run(self) -> Path:
        """Config, provenance and what the weights have seen."""
        return self.path / RUN_FILE

    @property
    def trainer_state(self) -> Path:
        """What a run goes on from: weights, optimizer, average, the loop's own numbers."""
        return self.path / TRAINER_STATE

    @property
    def loop(self) -> Path:
        """The loop's own numbers."""
        return self.trainer_state / "loop.json"

    @property
    def buffer(self) -> Path:
        """Roll-outs of the cycle."""
        return self.trainer_state / "buffer.safetensors"

    @property
    def behavior(self) -> Path:
        """Adapters of the head that rolled them out."""
        return self.trainer_state / "behaviour"

    @property
    def replay(self) -> Path:
        """Rows that a state-based run has collected online."""
        return self.trainer_state / "replay.safetensors"

    @property
    def episodes(self) -> Path:
        """Its episodes under way."""
        return self.trainer_state / "online.safetensors"
