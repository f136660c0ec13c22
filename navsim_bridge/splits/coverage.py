"""How much of a split something stands for: a score, a cache or a training run over a part says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpvla.parallel import Workers
from navsim_bridge.files.logs import list_logs
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord, Selection, find_scenes
from navsim_bridge.splits.sensors import with_images

CAUSES = {
    "missing_logs": ("log is not there", "logs are not there"),
    "missing_scenes": ("scene is in no log", "scenes are in no log"),
    "missing_images": ("scene lacks camera files", "scenes lack camera files"),
    "missing_cached": ("scene is not in the metric cache", "scenes are not in the metric cache"),
    "missing_shards": ("shard is not there", "shards are not there"),
    "missing_plans": ("scene has no plan", "scenes have no plan"),
    "failed": ("scene failed", "scenes failed"),
}
"""What can be left out of a split, in order of appearance, with the words for one and for more. Logs and shards are
counted as such, all else in scenes; `missing_scenes` are those that the split lists."""


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
        """'12 scenes', '2 of 12 scenes', or '2 scenes of a part' where it is unknown which scenes the whole is."""
        if not self.is_whole and self.in_split is not None and self.used < self.in_split:
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
    workers: Workers = 1,
    preload: Sequence[str] = (),
) -> tuple[list[SceneRecord], Coverage]:
    """The scenes of a split that have a log and all of ``cameras``, and how much of the split they are.

    All of them, unless ``allow_missing``; raises as `find_scenes` and `with_images`.
    """
    found = find_scenes(split, data_root, allow_missing, workers, preload=preload)
    records = found.records
    usable = with_images(records, data_root, cameras, split.name, allow_missing) if cameras else records
    whole = coverage(split, found, missing_logs(split, data_root))
    return usable, whole.without("missing_images", len(records) - len(usable))


def missing_logs(split: Split, data_root: Path | str) -> int:
    """How many of the logs that a split names are not there."""
    return len(set(split.scene_filter.log_names or ()) - set(list_logs(data_root, split.data_split)))


def coverage(split: Split, found: Selection, logs: int) -> Coverage:
    """How much of a split ``found`` is, without a shard, when ``logs`` of its logs are missing."""
    tokens, limit = None if split.tokens is None else len(split.tokens), split.scene_filter.max_scenes
    return coverage_of(len(found.records), found.scenes, tokens, limit, len(found.absent), logs)


def coverage_of(
    used: int, found: int | None, tokens: int | None, limit: int | None, absent: int, logs: int, shards: int = 0
) -> Coverage:
    """`Coverage` of ``used`` scenes.

    Args:
        used: scenes that are used.
        found: scenes of the split that there are; None when shards are missing that alone know theirs.
        tokens: how many scenes the split lists; None: it lists none.
        limit: the split takes the first so many scenes; None: all.
        absent: scenes that it lists and no log has.
        logs: logs that it names and that are missing.
        shards: shards of a cache that are missing.
    """
    in_split = tokens if tokens is not None else None if logs else found
    if limit is not None and in_split is not None:
        in_split = min(limit, in_split)
    elif limit is not None and found == limit:
        in_split = limit
    counts = {"missing_logs": logs, "missing_scenes": absent, "missing_shards": shards}
    return Coverage(used, in_split, {cause: count for cause, count in counts.items() if count})
