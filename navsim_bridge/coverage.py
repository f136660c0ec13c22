"""How much of a split something stands for: a score, a cache or a training run over a part says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from navsim_bridge.logs import list_logs
from navsim_bridge.scene_filter import Split
from navsim_bridge.scenes import SceneRecord, select_scenes
from navsim_bridge.sensors import with_images

CAUSES = {
    "missing_logs": ("log is not there", "logs are not there"),
    "missing_scenes": ("scene is in no log", "scenes are in no log"),
    "missing_images": ("scene lacks camera files", "scenes lack camera files"),
    "missing_shards": ("shard is not there", "shards are not there"),
    "failed": ("scene failed", "scenes failed"),
}
"""What can be left out of a split, in order of appearance, with the words for one and for more. Logs and shards are
counted as such, all else in scenes."""


@dataclass(frozen=True)
class Coverage:
    """Scenes of a split that are used, and what is left out."""

    used: int  # scenes
    in_split: int | None  # scenes of the whole split; None: logs are missing of a split that lists no scenes
    left_out: Mapping[str, int] = field(default_factory=dict)  # cause (of `CAUSES`) -> count, those above zero

    @staticmethod
    def whole(scenes: int) -> Coverage:
        """All ``scenes`` of a split."""
        return Coverage(scenes, scenes)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return not self.left_out

    def without(self, cause: str, count: int) -> Coverage:
        """The same with ``count`` scenes less, for that cause."""
        if not count:
            return self
        left_out = {**self.left_out, cause: self.left_out.get(cause, 0) + count}
        return Coverage(self.used - count, self.in_split, left_out)

    def __str__(self) -> str:
        """'12 scenes', '2 of 12 scenes', or '2 scenes of a part' where the whole is unknown."""
        if not self.is_whole and self.in_split is not None:
            return f"{self.used} of {self.in_split} scenes"
        return f"{self.used} scene{'s' * (self.used != 1)}" + ("" if self.is_whole else " of a part")

    @property
    def why(self) -> str:
        """What is left out, e.g. '1 log is not there, 10 scenes are in no log'."""
        counts = [(self.left_out[cause], words) for cause, words in CAUSES.items() if cause in self.left_out]
        return ", ".join(f"{count} {words[count > 1]}" for count, words in counts)

    def as_dict(self) -> dict[str, Any]:
        """What summary.json and the index of a metric cache say of the split beside the number of scenes used."""
        left_out = {cause: self.left_out[cause] for cause in CAUSES if cause in self.left_out}
        return {"scenes_in_split": self.in_split, "whole_split": self.is_whole, "left_out": left_out}


def usable_scenes(
    split: Split,
    data_root: Path | str,
    cameras: Sequence[str] = (),
    allow_missing: bool = False,
    workers: int = 1,
) -> tuple[list[SceneRecord], Coverage]:
    """The scenes of a split that have a log and all of ``cameras``, and how much of the split they are.

    All of them, unless ``allow_missing``; raises as `select_scenes` and `with_images`.
    """
    found = select_scenes(split, data_root, allow_missing, workers)
    usable = with_images(found, data_root, cameras, split.name, allow_missing) if cameras else found
    whole = coverage(split, len(found), missing_logs(split, data_root))
    return usable, whole.without("missing_images", len(found) - len(usable))


def missing_logs(split: Split, data_root: Path | str) -> int:
    """How many of the logs that a split names are not there."""
    return len(set(split.scene_filter.log_names or ()) - set(list_logs(data_root, split.data_split)))


def coverage(split: Split, found: int, logs: int, shards: int = 0) -> Coverage:
    """How much of a split ``found`` scenes are, when ``logs`` of its logs and ``shards`` of a cache are missing."""
    rules = split.scene_filter
    limit = rules.max_scenes
    return coverage_of(found, None if rules.tokens is None else len(rules.tokens), limit, logs, shards)


def coverage_of(found: int, tokens: int | None, limit: int | None, logs: int, shards: int = 0) -> Coverage:
    """`Coverage` of ``found`` scenes of a split that lists so many ``tokens`` (None: none) and takes the first
    ``limit`` scenes (None: all), when so many of its logs and of a cache's shards are missing."""
    in_split = tokens if tokens is not None else None if logs or shards else found
    if limit is not None and (found >= limit or in_split is not None):
        in_split = limit if in_split is None else min(limit, in_split)
    counts = {
        "missing_logs": logs,
        "missing_scenes": max(0, in_split - found) if in_split is not None else 0,
        "missing_shards": shards,
    }
    return Coverage(found, in_split, {cause: count for cause, count in counts.items() if count})
