"""Tiny data sets in LeRobot's layouts, written as its recorders write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

Episode = Mapping[str, np.ndarray]
"""Arrays by feature, (frame, number) or (frame,)."""


def write_lerobot(folder: Path, episodes: Sequence[Episode], version: str = "v3.0", **info: Any) -> Path:
    """A data set: v2 has a file for each episode, v3 one for several."""
    tables, start = [], 0
    for number, episode in enumerate(episodes):
        frames = len(episode["action"])
        counted = {"episode_index": np.full(frames, number), "frame_index": np.arange(frames)}
        tables.append(pyarrow.table({name: column_of(v) for name, v in {**episode, **counted}.items()}))
        start += frames
    data = folder / "data" / "chunk-000"
    data.mkdir(parents=True)
    if version.startswith("v2"):
        for number, table in enumerate(tables):
            pyarrow.parquet.write_table(table, data / f"episode_{number:06d}.parquet")
    else:
        half = len(tables) // 2
        for number, some in enumerate((tables[:half], tables[half:])):
            if some:
                pyarrow.parquet.write_table(pyarrow.concat_tables(some), data / f"file-{number:03d}.parquet")
    features = {name: feature_of(values) for name, values in episodes[0].items()}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("episode_index", "frame_index")}
    features["observation.images.top"] = {"dtype": "video", "shape": [96, 96, 3], "names": ["height", "width", "c"]}
    content = {"codebase_version": version, "fps": 10, "total_frames": start, "features": features}
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(content | info))
    return folder


def column_of(values: np.ndarray) -> pyarrow.Array:
    """Scalars as they are, lists of one length as such."""
    if values.ndim == 1:
        return pyarrow.array(values)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])


def feature_of(values: np.ndarray) -> dict[str, Any]:
    """As ``meta/info.json`` tells of it."""
    return {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}


def episode_of(frames: int, seed: int, success: bool | None = True) -> dict[str, np.ndarray]:
    """Random numbers; ends in success, by the time limit, or (None) says nothing of either."""
    draw = np.random.default_rng(seed)
    last = np.arange(frames) == frames - 1
    found = {
        "observation.state": draw.normal(3, 2, (frames, 3)).astype(np.float32),
        "observation.environment_state": draw.normal(-1, 5, (frames, 2)).astype(np.float32),
        "action": draw.uniform(-40, 160, (frames, 2)).astype(np.float32),
        "next.reward": draw.normal(size=frames).astype(np.float32),
        "next.done": last,
    }
    return found | ({} if success is None else {"next.success": last & success})
