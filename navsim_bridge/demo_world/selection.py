"""Split files of the demo world: all scenes, and the scenes NAVSIM would keep.

NAVSIM leaves out scenes that driving straight on solves and scenes that the recorded driver fails: kept are those where
the constant-velocity agent scores below 0.8 and the recorded driver at least 0.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dpvla.files import write_text
from navsim_bridge.demo_world.config import FUTURE_FRAMES, HISTORY_FRAMES

SPLITS = {"navtrain": "trainval", "navtest": "test"}
"""Name of the filtered split per folder; the unfiltered one has ``_all`` behind its name."""


def write_split(root: Path, name: str, folder: str, logs: Sequence[str], tokens: Sequence[str] | None) -> Path:
    """Write ``splits/<name>.yaml`` in the devkit's scene-filter schema; ``tokens`` None keeps every window."""
    content: dict[str, Any] = {
        "data_split": folder,
        "scene_filter": {
            "_target_": "navsim.common.dataclasses.SceneFilter",
            "_convert_": "all",
            "num_history_frames": HISTORY_FRAMES,
            "num_future_frames": FUTURE_FRAMES,
            "frame_interval": 1,
            "has_route": True,
            "max_scenes": None,
            "log_names": list(logs),
            "tokens": None if tokens is None else list(tokens),
        },
    }
    text = yaml.dump(content, default_flow_style=False, sort_keys=False)
    return write_text(root / "splits" / f"{name}.yaml", text)
