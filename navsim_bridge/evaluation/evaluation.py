"""What an evaluation comes to: the scores of every scene, their averages, and what they were scored in."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navsim_bridge.metrics.metric import Metric, Result
from navsim_bridge.pdm.chunks import join, mapped
from navsim_bridge.pdm.metric_scene import MetricScene, TrafficInputs, odd_causes
from navsim_bridge.splits.scenes import SceneRecord


@dataclass(frozen=True)
class Evaluation:
    """Scores of one agent, one plan a scene."""

    metric: Metric[Any]
    records: tuple[SceneRecord, ...]  # all that were asked for
    parts: tuple[ScoredPart, ...]  # those that did not fail, in the order of the records
    failures: dict[str, str] = field(default_factory=dict)  # token -> error
    device: str = "cpu"  # name of what it was scored on

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of all scenes."""
        return tuple(r.token for r in self.records)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values."""
        return tuple(column.name for column in self.metric.result_columns)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(scene,) False where the scene failed."""
        return np.array([token not in self.failures for token in self.tokens], dtype=bool)

    @property
    def values(self) -> NDArray[np.float64]:
        """(scene, column), NaN where the scene failed, or has no value (an optional column without other frames)."""
        values = np.full((len(self.records), len(self.columns)), np.nan)
        if self.parts:
            values[self._rows] = self._result.rows
        return values

    @property
    def averages(self) -> dict[str, float]:
        """What the scenes that did not fail come to, by column; NaN for one that no scene has.

        Raises ValueError when all failed.
        """
        if not self.parts:
            raise ValueError(f"all {len(self.tokens)} scenes failed; there is no average")
        return dict(self._result.summary)

    @property
    def part_averages(self) -> dict[str, dict[str, float]]:
        """The same of parts of the scenes, by name, where the metric has such."""
        return {name: dict(means) for name, means in self._result.parts.items()} if self.parts else {}

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why the averages are not what they should be of, as the metric says."""
        return self._result.caveats if self.parts else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What else must be said of them, as the metric says."""
        return self._result.notes if self.parts else ()

    @property
    def reasons(self) -> dict[str, str]:
        """Token -> what cost the points."""
        tokens = self.tokens
        return {tokens[row]: reason for part in self.parts for row, reason in zip(part.rows, part.reasons)}

    @property
    def about(self) -> dict[str, Any]:
        """The metric, and for metric scenes their reference plans, centerlines and a fingerprint."""
        origins = [origin for part in self.parts for origin in part.origins]
        digest = hashlib.sha256(b"".join(origin.digest for origin in origins))
        found = {
            "reference": dict(Counter(o.reference for o in origins)),
            "centerlines": dict(Counter(o.centerline for o in origins)),
        }
        return {
            **self.metric.about,
            **self.metric.setting,
            **(found if self.metric.scene_rules else {}),
            "scenes_fingerprint": digest.hexdigest(),
        }

    @property
    def odd(self) -> dict[str, int]:
        """Cause (of `odd.ODD`) -> scored scenes in which log or map are odd."""
        causes = Counter(
            cause
            for part in self.parts
            for row, origin in zip(part.rows, part.origins)
            for cause in {*origin.odd, *self.records[row].odd}
        )
        return dict(sorted(causes.items()))

    @cached_property
    def _rows(self) -> list[int]:
        return [row for part in self.parts for row in part.rows]

    @cached_property
    def _result(self) -> Result:
        terms = join([part.terms for part in self.parts], dim=0)
        return self.metric.finish([self.records[row] for row in self._rows], terms)

    def restricted(self, tokens: Collection[str]) -> Evaluation:
        """The part of it that concerns ``tokens``, as if they alone had been evaluated."""
        place = {row: i for i, row in enumerate(i for i, r in enumerate(self.records) if r.token in tokens)}
        parts = [part.only([i for i, row in enumerate(part.rows) if row in place]) for part in self.parts]
        return replace(
            self,
            records=tuple(self.records[row] for row in place),
            parts=tuple(replace(p, rows=tuple(place[row] for row in p.rows)) for p in parts if p.rows),
            failures={token: why for token, why in self.failures.items() if token in tokens},
        )

    def to_csv(self, whole_split: bool = True) -> str:
        """One row per scene, rows of parts of them where the metric has such, and a last one with the averages.

        Missing sub-scores are empty. Rows of averages are valid when every scene is and they are the whole split.
        """
        text, reasons, valid = io.StringIO(), self.reasons, self.valid
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["token", "valid", *self.columns, "reason"])
        for token, good, row in zip(self.tokens, valid.tolist(), self.values.tolist()):
            writer.writerow([token, good, *map(cell, row), reasons.get(token, "")])
        good = whole_split and bool(valid.all()) and not self.caveats
        for name, means in {**self.part_averages, self.metric.average_row: self.averages}.items():
            writer.writerow([name, good, *(cell(means[column]) for column in self.columns), ""])
        return text.getvalue()


@dataclass(frozen=True)
class ScoredPart:
    """Scenes that were scored together."""

    rows: tuple[int, ...]  # places among the records
    terms: Any  # of the metric, on the CPU; (scene, 1) and more
    reasons: tuple[str, ...]  # what cost the points; empty when nothing did
    origins: tuple[Origin, ...]

    def only(self, kept: Sequence[int]) -> ScoredPart:
        """The scenes at ``kept``."""
        index = torch.tensor(kept, dtype=torch.int64)
        return ScoredPart(
            tuple(self.rows[i] for i in kept),
            mapped(self.terms, lambda tensor: tensor[index]),
            tuple(self.reasons[i] for i in kept),
            tuple(self.origins[i] for i in kept),
        )


def in_order(parts: Sequence[ScoredPart]) -> tuple[ScoredPart, ...]:
    """The same scenes in the order of the records, as one part; none where there is none."""
    if not parts:
        return ()
    rows = tuple(row for part in parts for row in part.rows)
    whole = ScoredPart(
        rows,
        join([part.terms for part in parts], dim=0),
        tuple(reason for part in parts for reason in part.reasons),
        tuple(origin for part in parts for origin in part.origins),
    )
    return (whole.only(np.argsort(rows).tolist()),)


@dataclass(frozen=True)
class Origin:
    """What a plan was scored in."""

    digest: bytes  # of all that the score reads of the scene
    reference: str = ""  # plan of its metric scene
    centerline: str = ""
    odd: tuple[str, ...] = ()  # what its metric scene says of log and map

    @classmethod
    def of(cls, scene: MetricScene | SceneRecord, traffic: bool = False) -> Origin:
        """Of a scene as the metric gets it; ``traffic``: the metric reads what vehicles need to react."""
        if isinstance(scene, SceneRecord):
            return cls(hashlib.sha256(scene.token.encode() + scene.plan().tobytes()).digest())
        about = scene.provenance
        return cls(
            _scene_bytes(scene, traffic),
            about.get("reference", "unknown"),
            about.get("centerline", "unknown"),
            odd_causes(about),
        )


def cell(value: float) -> float | str:
    """A number in a CSV file; empty where there is none."""
    return "" if np.isnan(value) else value


def _scene_bytes(scene: MetricScene, traffic: bool) -> bytes:
    """A digest of all that the score reads of a scene."""
    digest = hashlib.sha256(
        repr((scene.token, scene.ego_time_us, scene.polygon_tokens, scene.polygon_types, scene.route_lane_ids,
              scene.track_tokens, scene.track_types)).encode()
    )  # fmt: skip
    for array in (scene.ego_state, scene.reference_states, scene.reference_times_us, scene.polygon_ring_offsets,
                  scene.ring_offsets, scene.vertices, scene.centerline, scene.frame_offsets, scene.object_track,
                  scene.object_boxes, scene.track_first_speed):  # fmt: skip
        digest.update(np.ascontiguousarray(array).tobytes())
    for inputs in (scene.v2, scene.v2.traffic if scene.v2 is not None and traffic else None):
        for field_ in dataclasses.fields(inputs) if inputs is not None else ():
            part = getattr(inputs, field_.name)
            if not isinstance(part, TrafficInputs):
                digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.digest()
