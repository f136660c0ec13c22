"""Scoring an agent over a split: one row per scene, averages, and what made them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.files import check_folder, write_json, write_text
from dpvla.plan import NUM_POSES
from dpvla.provenance import collect
from navsim_bridge.agents import Agent
from navsim_bridge.files.logs import log_path
from navsim_bridge.metric_cache.builder import MetricName, scene_builder
from navsim_bridge.metric_cache.cache import MetricCache
from navsim_bridge.metric_cache.store import file_hash
from navsim_bridge.metrics.metric import PDMS, Metric, SceneScore
from navsim_bridge.metrics.reward import SUB_SCORES
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord, by_log
from navsim_bridge.splits.token_list import SUFFIXES

COLUMNS = ("token", "valid", *SUB_SCORES, "reason")
"""Columns of scores.csv for the PDM score v1: the devkit's, then what cost the points."""
SCORES, SUMMARY = "scores.csv", "summary.json"
CHOOSE = "choose another --out, or replace them with --overwrite"
SCENES_AT_ONCE = 256
PDMS_V1 = PDMS()

LoadScenes = Callable[[Sequence[SceneRecord]], Sequence[MetricScene]]


class SceneFailureError(ValueError):
    """Planning or scoring a scene failed; the message names it."""


class Identity(TypedDict):
    """What is evaluated on what, as `identity` and `write_evaluation` take it."""

    agent: str
    split: Split
    data_root: Path | str
    seed: int
    omega: float | None
    checkpoint: Path | str | None


class ResultsError(ValueError):
    """A folder that cannot take the results; the message says why and what to do."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one agent, in the order of the records."""

    tokens: tuple[str, ...]
    valid: NDArray[np.bool_]  # (scene,) False where the scene failed
    values: NDArray[np.float64]  # (scene, column), NaN where the scene failed or, for EPDMS, has no previous frame
    failures: dict[str, str] = field(default_factory=dict)  # token -> error
    metric: dict[str, Any] = field(default_factory=dict)  # reference, centrelines, fingerprint of the metric scenes
    columns: tuple[str, ...] = SUB_SCORES  # names of the values
    average_row: str = "average"  # token of the last row of the CSV
    reasons: dict[str, str] = field(default_factory=dict)  # token -> what cost the points
    device: str = "cpu"  # where it was scored

    @property
    def averages(self) -> dict[str, float]:
        """Mean of every sub-score over the scenes that did not fail; NaN for one that no scene has.

        Raises ValueError when all failed.
        """
        if not self.valid.any():
            raise ValueError(f"all {len(self.tokens)} scenes failed; there is no average")
        found = [column[~np.isnan(column)] for column in self.values[self.valid].T]
        return {name: float(column.mean()) if len(column) else np.nan for name, column in zip(self.columns, found)}

    def to_csv(self, whole_split: bool = True) -> str:
        """One row per scene and a last one with the averages; missing sub-scores are empty.

        The last row is valid when every scene is and they are the whole split.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["token", "valid", *self.columns, "reason"])
        for token, valid, row in zip(self.tokens, self.valid.tolist(), self.values.tolist()):
            writer.writerow([token, valid, *map(_cell, row), self.reasons.get(token, "")])
        valid = whole_split and bool(self.valid.all())
        writer.writerow([self.average_row, valid, *map(_cell, self.averages.values()), ""])
        return text.getvalue()


def _cell(value: float) -> float | str:
    return "" if np.isnan(value) else value


def scenes_from_cache(cache: MetricCache) -> LoadScenes:
    """Metric scenes from a cache; a missing token raises CacheError."""
    return lambda records: cache.load([r.token for r in records])


class ScenesFromLogs:
    """Metric scenes built on the way, a log at a time; records of one log should come together."""

    def __init__(
        self,
        records: Sequence[SceneRecord],
        data_root: Path | str,
        maps_root: Path | str,
        metric: MetricName = "pdms",
    ) -> None:
        """``records``: all scenes of the split, since scenes depend on the ones before them in their log."""
        self._of_log, self._roots, self._metric = by_log(records), (data_root, maps_root), metric
        self._log: tuple[str, str] | None = None
        self._built: dict[str, MetricScene] = {}
        self._failed: dict[str, ValueError] = {}

    def __call__(self, records: Sequence[SceneRecord]) -> list[MetricScene]:
        """The scenes of ``records``; raises the ValueError of the first that cannot be built."""
        scenes: dict[str, MetricScene] = {}
        for log, wanted in by_log(records).items():
            self._build(log)
            for record in wanted:
                if record.token in self._failed:
                    raise self._failed[record.token]
                scenes[record.token] = self._built[record.token]
        return [scenes[r.token] for r in records]

    def _build(self, log: tuple[str, str]) -> None:
        if log != self._log:
            of_log = self._of_log[log]
            builder = scene_builder(of_log, *self._roots, self._metric)
            self._failed = {}
            self._built = {scene.token: scene for scene in builder.build(of_log, failed=self._failed)}
            self._log = log


def evaluate(
    agent: Agent,
    records: Sequence[SceneRecord],
    load_scenes: LoadScenes,
    *,
    metric: Metric = PDMS_V1,
    device: torch.device | str = "cpu",
    allow_failures: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Plan for every record and score it, one plan a scene.

    Args:
        agent: from records to plans (scene, 8, 3).
        records: the scenes; order them by log.
        load_scenes: from records to their metric scenes, e.g. `scenes_from_cache`, `ScenesFromLogs`.
        metric: what to score with.
        device: where to score.
        allow_failures: count a scene that fails as failed and go on, instead of stopping.
        progress: show a progress bar.

    Raises:
        SceneFailureError: a scene failed and ``allow_failures`` is off; names the token.
    """
    scores: dict[int, SceneScore] = {}
    failures: dict[str, str] = {}
    centerlines: Counter[str] = Counter()
    references: Counter[str] = Counter()
    digest = hashlib.sha256()
    with tqdm(total=len(records), desc="scenes", unit="scene", disable=not progress) as bar:
        for first in range(0, len(records), SCENES_AT_ONCE):
            chunk = records[first : first + SCENES_AT_ONCE]
            judge = _Judge(agent, load_scenes, metric, torch.device(device))
            for offset, scored in _score_chunk(judge, chunk, allow_failures):
                if isinstance(scored, Exception):
                    failures[chunk[offset].token] = f"{type(scored).__name__}: {scored}"
                    continue
                scores[first + offset], scene = scored
                references[scene.provenance.get("reference", "unknown")] += 1
                centerlines[scene.provenance.get("centerline", "unknown")] += 1
                digest.update(_scene_bytes(scene))
            bar.update(len(chunk))
    tokens = tuple(r.token for r in records)
    about = metric.about | {
        "reference": dict(references),
        "centerlines": dict(centerlines),
        "scenes_fingerprint": digest.hexdigest(),
    }
    return Evaluation(
        tokens=tokens,
        valid=np.array([token not in failures for token in tokens], dtype=bool),
        values=metric.finish(records, scores),
        failures=failures,
        metric=about,
        columns=metric.columns,
        average_row=metric.average_row,
        reasons={tokens[index]: score.reason for index, score in scores.items()},
        device=str(device),
    )


@dataclass(frozen=True)
class _Judge:
    agent: Agent
    load: LoadScenes
    metric: Metric
    device: torch.device

    def __call__(self, records: Sequence[SceneRecord]) -> list[Scored]:
        plans = np.asarray(self.agent(records), dtype=np.float64)
        if plans.shape != (len(records), NUM_POSES, 3):
            raise ValueError(f"the agent gave plans of shape {plans.shape}, expected {(len(records), NUM_POSES, 3)}")
        scenes = self.load(records)
        scored = self.metric.score(scenes, torch.from_numpy(plans), self.device)
        for record, found in zip(records, scored):
            if not np.isfinite(found.values[-1]):
                raise ValueError(f"scene {record.token} got a score that is not finite")
        return list(zip(scored, scenes))


Scored = tuple[SceneScore, MetricScene]


def _score_chunk(
    judge: _Judge, records: Sequence[SceneRecord], allow_failures: bool
) -> Iterator[tuple[int, Scored | Exception]]:
    """Index and result of each record; when the chunk fails, scene by scene to find out which one."""
    try:
        yield from enumerate(judge(records))
        return
    except Exception as error:
        if len(records) == 1:
            if not allow_failures:
                raise SceneFailureError(
                    f"scene {records[0].token} (log {records[0].log_name}) failed: {error}"
                ) from error
            yield 0, error
            return
        together = error
    any_failed = False
    for i, record in enumerate(records):
        for _, scored in _score_chunk(judge, [record], allow_failures):
            any_failed = any_failed or isinstance(scored, Exception)
            yield i, scored
    if not any_failed:  # not one scene's fault, e.g. out of memory
        raise together


def write_evaluation(
    out: Path | str,
    evaluation: Evaluation,
    *,
    agent: str,
    split: Split,
    records: Sequence[SceneRecord],
    data_root: Path | str,
    seed: int,
    omega: float | None = None,
    checkpoint: Path | str | None = None,
    cache: MetricCache | None = None,
    coverage: Coverage | None = None,
) -> dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json`` to ``out``; returns the summary.

    ``omega`` and ``checkpoint`` belong to the dpvla agent alone; ``cache`` when the metric scenes came from one;
    ``coverage``: how much of the split ``records`` are (default: all of it).
    """
    trained_on = training_stages(checkpoint) if checkpoint else []
    precision = weights_of(checkpoint)[1] if checkpoint else None
    part = (coverage or Coverage.whole(len(records))).without("failed", len(evaluation.failures))
    summary = {
        **identity(agent, split, data_root, evaluation.metric, seed, omega, checkpoint),
        "precision": precision,
        "scenes": len(evaluation.tokens),
        "scenes_scored": part.used,
        **part.as_dict(),
        "failed": len(evaluation.failures),
        "failures": evaluation.failures,
        "averages": {name: None if np.isnan(mean) else mean for name, mean in evaluation.averages.items()},
        "metric": evaluation.metric,
        "metric_cache": cache.provenance if cache else None,
        "data_fingerprint": data_fingerprint(records, data_root),
        "trained_on": trained_on,
        "trained_on_evaluation_split": saw_split(trained_on, split, records),
        "samples_per_scene": 1,  # plans drawn from the agent
        "candidates_per_scene": 1,  # plans scored
        "provenance": collect(seed, evaluation.device),
    }
    write_text(Path(out) / SCORES, evaluation.to_csv(part.is_whole))
    write_json(Path(out) / SUMMARY, summary)
    return summary


def identity(
    agent: str,
    split: Split,
    data_root: Path | str,
    metric: dict[str, Any],
    seed: int,
    omega: float | None = None,
    checkpoint: Path | str | None = None,
) -> dict[str, Any]:
    """What tells an evaluation from others: two with the same values are the same command. ``metric``: its `about`."""
    return {
        "agent": agent,
        "checkpoint": os.path.abspath(checkpoint) if checkpoint else None,
        "weights": weights_of(checkpoint)[0] if checkpoint else None,  # found there: of a run the newest
        "split": split.name,
        "split_file": os.path.abspath(split.path) if split.path else None,
        "data_split": split.data_split,
        "data_root": os.path.abspath(data_root),
        "omega": omega,
        "seed": seed,
        "metric": metric,
    }


def check_results(out: Path | str, wanted: dict[str, Any], overwrite: bool = False) -> None:
    """Raise ResultsError when ``out`` cannot take results, or holds those of another evaluation than ``wanted``.

    ``wanted`` is an `identity`. Results of the same evaluation may be replaced; with ``overwrite`` any.
    """
    folder = Path(out)
    check_folder(folder)
    if overwrite or not any((folder / name).exists() for name in (SCORES, SUMMARY)):
        return
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        there = {**found, "metric": {key: found["metric"].get(key) for key in wanted["metric"]}}
        differ = [
            f"{key} {_plain(there[key])} there, {_plain(wanted[key])} asked for"
            for key in wanted
            if there[key] != wanted[key]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ResultsError(
            f"{folder} holds a {SCORES} or {SUMMARY} that does not say which evaluation it is of; {CHOOSE}"
        ) from None
    if differ:
        raise ResultsError(f"{folder} holds the results of another evaluation ({'; '.join(differ)}); {CHOOSE}")


def keep_whole(out: Path | str, coverage: Coverage, overwrite: bool = False) -> None:
    """Raise ResultsError when ``out`` holds results of a whole split and those to come, of ``coverage``, are of a part.

    Not with ``overwrite``. Call it when `check_results` has passed.
    """
    summary = Path(out) / SUMMARY
    if overwrite or coverage.is_whole or not summary.exists():
        return
    found = json.loads(summary.read_text(encoding="utf-8"))
    if found.get("whole_split"):
        raise ResultsError(
            f"{out} holds results of the whole split, and now it would be {coverage} ({coverage.why}); {CHOOSE}"
        )


def _plain(value: Any) -> str:
    """A value of an `identity` in words."""
    if isinstance(value, dict):  # of a metric
        texts = [str(v) if key == "name" else f"{key} {v}" for key, v in value.items() if v is not None]
        return repr(", ".join(texts))
    return "none" if value is None else repr(value)


def weights_of(checkpoint: Path | str) -> tuple[str, str]:
    """Where the weights of a checkpoint, a run or a model directory lie, and what they are sampled in (no, bf16)."""
    from dpvla.training.start import open_start

    start = open_start(checkpoint)
    return os.path.abspath(start.path), start.precision


def training_stages(checkpoint: Path | str) -> list[dict[str, Any]] | None:
    """Stage, split, scenes and logs behind the weights of a checkpoint, oldest first.

    None when no ``run.yaml`` says what the weights have seen (a bare model directory).
    """
    from dpvla.training.run_directory import UNKNOWN
    from dpvla.training.start import open_start

    stages = open_start(checkpoint).trained_on
    if stages and all(stage.stage == UNKNOWN for stage in stages):
        return None
    return [dataclasses.asdict(stage) | {"logs": list(stage.logs)} for stage in stages]


def saw_split(trained_on: Sequence[dict[str, Any]] | None, split: Split, records: Sequence[SceneRecord]) -> bool | None:
    """Whether any stage trained on the split or on a log that it holds; None when that is unknown."""
    from dpvla.training.run_directory import UNKNOWN

    if trained_on is None:
        return None
    logs = {r.log_name for r in records}
    is_list = split.path is not None and split.path.suffix.lower() in SUFFIXES  # any list may be called scores.csv
    if any((stage["split"] == split.name and not is_list) or logs & set(stage["logs"]) for stage in trained_on):
        return True
    return None if any(stage["stage"] == UNKNOWN for stage in trained_on) else False


def data_fingerprint(records: Sequence[SceneRecord], data_root: Path | str) -> str:
    """Hash over the scenes' tokens and the content of their logs."""
    logs = sorted({(r.data_split, r.log_name) for r in records})
    content = [[name, file_hash(log_path(data_root, data_split, name))] for data_split, name in logs]
    return hashlib.sha256(json.dumps([[r.token for r in records], content]).encode()).hexdigest()


def describe(summary: dict[str, Any]) -> str:
    """What to print of a summary."""
    means = summary["averages"]
    short = {"no_at_fault_collisions": "NC", "drivable_area_compliance": "DAC", "driving_direction_compliance": "DDC",
             "traffic_light_compliance": "TLC", "ego_progress": "EP", "time_to_collision_within_bound": "TTC",
             "comfort": "C", "lane_keeping": "LK", "history_comfort": "HC",
             "two_frame_extended_comfort": "EC"}  # fmt: skip
    numbers = "  ".join(f"{short[n]} {100 * mean:.1f}" for n, mean in means.items() if n in short and mean is not None)
    human_filter = summary["metric"].get("human_filter")
    total = "PDMS" if human_filter is None else f"EPDMS (human filter {human_filter})"
    numbers = f"{numbers}  {total} {100 * means['score']:.1f}"
    part = Coverage(summary["scenes_scored"], summary["scenes_in_split"], summary["left_out"])
    lines = [f"{summary['agent']} on {summary['split']} ({part}): {numbers}"]
    if summary["weights"] is not None:
        lines.append(f"weights: {summary['weights']}")
    if not part.is_whole:
        lines.append(f"NOT the score of {summary['split']}, and not to be compared with scores of it: {part.why}.")
    if summary["failed"]:
        first = next(iter(summary["failures"]))
        lines.append(
            f"{summary['failed']} of {summary['scenes']} scenes FAILED and are not in the averages; first {first}: "
            f"{summary['failures'][first]}"
        )
    if summary["trained_on_evaluation_split"]:
        lines.append(
            "trained_on_evaluation_split: true. The weights were trained on scenes or logs of "
            f"{summary['split']}: not a held-out score."
        )
    if summary["trained_on_evaluation_split"] is None:
        lines.append("What the weights were trained on is unknown, at least in part: no run.yaml tells it.")
    return "\n".join(lines)


def _scene_bytes(scene: MetricScene) -> bytes:
    """A digest of all that the score reads of a scene."""
    digest = hashlib.sha256(
        repr((scene.token, scene.ego_time_us, scene.polygon_tokens, scene.polygon_types, scene.route_lane_ids,
              scene.track_tokens, scene.track_types)).encode()
    )  # fmt: skip
    for array in (scene.ego_state, scene.reference_states, scene.reference_times_us, scene.polygon_ring_offsets,
                  scene.ring_offsets, scene.vertices, scene.centerline, scene.frame_offsets, scene.object_track,
                  scene.object_boxes, scene.track_first_speed):  # fmt: skip
        digest.update(np.ascontiguousarray(array).tobytes())
    if scene.v2 is not None:
        for part in dataclasses.astuple(scene.v2):
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.digest()
