"""Split files of the demo world: all scenes, and the scenes NAVSIM would keep.

NAVSIM leaves out scenes that driving straight on solves and scenes that the recorded driver fails: kept are those where
the constant-velocity agent scores below 0.8 and the recorded driver at least 0.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from dpvla.files import write_text
from navsim_bridge.agents import constant_velocity, human
from navsim_bridge.demo_world.config import FUTURE_FRAMES, HISTORY_FRAMES
from navsim_bridge.metric_cache import build_metric_cache
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import score_plans
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import by_log, select_scenes

HIGHEST_CONSTANT_VELOCITY, LOWEST_HUMAN = 0.8, 0.8


def write_split(
    root: Path, name: str, folder: str, logs: Sequence[str], frame_interval: int, tokens: Sequence[str] | None
) -> Path:
    """Write ``splits/<name>.yaml`` in the devkit's scene-filter schema.

    A scene starts every ``frame_interval`` frames of a log; ``tokens`` None keeps all of them.
    """
    content: dict[str, Any] = {
        "data_split": folder,
        "scene_filter": {
            "_target_": "navsim.common.dataclasses.SceneFilter",
            "_convert_": "all",
            "num_history_frames": HISTORY_FRAMES,
            "num_future_frames": FUTURE_FRAMES,
            "frame_interval": frame_interval,
            "has_route": True,
            "max_scenes": None,
            "log_names": list(logs),
            "tokens": None if tokens is None else list(tokens),
        },
    }
    text = yaml.dump(content, default_flow_style=False, sort_keys=False)
    return write_text(root / "splits" / f"{name}.yaml", text)


@dataclass(frozen=True)
class Judgments:
    """Scores of the two judges over an unfiltered split, in order of log and time."""

    tokens: tuple[str, ...]
    constant_velocity: NDArray[np.float64]  # (scene,) PDMS in [0, 1]
    human: NDArray[np.float64]

    @property
    def kept(self) -> tuple[str, ...]:
        keep = (self.constant_velocity < HIGHEST_CONSTANT_VELOCITY) & (self.human >= LOWEST_HUMAN)
        return tuple(t for t, k in zip(self.tokens, keep) if k)


def select(root: Path, name: str, workers: int, progress: bool = True) -> Judgments:
    """Build the metric cache of the unfiltered split at ``metric_cache/<name>_all`` and score both judges on it."""
    split = load_split(f"{name}_all", root)
    cache = build_metric_cache(
        root, root / "maps", split, root / "metric_cache" / split.name, workers=workers, progress=progress
    )
    records = select_scenes(split, root, workers=workers, preload=(__name__,))
    tokens, straight, driver = [], [], []
    for of_log in by_log(records).values():
        batch = SceneBatch.from_scenes(cache.load([r.token for r in of_log]))
        plans = np.stack([constant_velocity(of_log).astype(np.float64), human(of_log)], axis=1)
        scores = score_plans(batch, torch.from_numpy(plans)).score.numpy()
        tokens += [r.token for r in of_log]
        straight.append(scores[:, 0])
        driver.append(scores[:, 1])
    return Judgments(tuple(tokens), np.concatenate(straight), np.concatenate(driver))
