"""Scoring an agent over a split: one row per scene, averages, and what made them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.files import FileError, check_folder, read_json, short, write_together
from dpvla.manifest import sha256_of
from dpvla.parallel import run_jobs
from dpvla.plan import NUM_POSES
from dpvla.provenance import device_name, made_by
from dpvla.registry import ContractError
from navsim_bridge.agents import Agent
from navsim_bridge.agents.crew import SCENES_AT_ONCE, Crew
from navsim_bridge.files.logs import log_path
from navsim_bridge.files.odd import odd_lines
from navsim_bridge.metric_cache.builder import scene_builder
from navsim_bridge.metric_cache.cache import MetricCache
from navsim_bridge.metrics.metric import Metric, Result
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.pdm.chunks import join, mapped
from navsim_bridge.pdm.metric_scene import MetricScene, odd_causes
from navsim_bridge.splits.coverage import Coverage
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import SceneRecord, by_log
from navsim_bridge.splits.token_list import SUFFIXES

SCORES, SUMMARY = "scores.csv", "summary.json"
CHOOSE = "choose another --out, or replace them with --overwrite"
PDMS_V1 = PDMS()

LoadScenes = Callable[[Sequence[SceneRecord]], Sequence[Any]]
"""From records to scenes as the metric takes them."""


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
        return tuple(column.name for column in self.metric.columns)

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
        """One row per scene and a last one with the averages; missing sub-scores are empty.

        The last row is valid when every scene is and they are the whole split.
        """
        text, reasons, valid = io.StringIO(), self.reasons, self.valid
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["token", "valid", *self.columns, "reason"])
        for token, good, row in zip(self.tokens, valid.tolist(), self.values.tolist()):
            writer.writerow([token, good, *map(_cell, row), reasons.get(token, "")])
        averages = [self.averages[column] for column in self.columns]
        writer.writerow([self.metric.average_row, whole_split and bool(valid.all()), *map(_cell, averages), ""])
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


@dataclass(frozen=True)
class Origin:
    """What a plan was scored in."""

    digest: bytes  # of all that the score reads of the scene
    reference: str = ""  # plan of its metric scene
    centerline: str = ""
    odd: tuple[str, ...] = ()  # what its metric scene says of log and map

    @classmethod
    def of(cls, scene: MetricScene | SceneRecord) -> Origin:
        """Of a scene as the metric gets it."""
        if isinstance(scene, SceneRecord):
            return cls(hashlib.sha256(scene.token.encode() + scene.plan().tobytes()).digest())
        about = scene.provenance
        return cls(
            _scene_bytes(scene),
            about.get("reference", "unknown"),
            about.get("centerline", "unknown"),
            odd_causes(about),
        )


def _cell(value: float) -> float | str:
    return "" if np.isnan(value) else value


@dataclass(frozen=True)
class _FromCache:
    cache: MetricCache

    def __call__(self, records: Sequence[SceneRecord]) -> list[MetricScene]:
        return self.cache.load([r.token for r in records])


def scenes_from_cache(cache: MetricCache) -> LoadScenes:
    """Metric scenes from a cache; a missing token raises CacheError."""
    return _FromCache(cache)


def recorded_scenes(records: Sequence[SceneRecord]) -> Sequence[SceneRecord]:
    """The records themselves: what a metric without scene rules is scored in."""
    return records


class ScenesFromLogs:
    """Metric scenes built on the way, a log at a time; records of one log should come together."""

    def __init__(
        self,
        records: Sequence[SceneRecord],
        data_root: Path | str,
        maps_root: Path | str,
        rules: SceneRules = NAVSIM_V1,
    ) -> None:
        """``records``: all scenes of the split, since scenes depend on the ones before them in their log."""
        self._of_log, self._roots, self._rules = by_log(records), (data_root, maps_root), rules
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
            builder = scene_builder(of_log, *self._roots, self._rules)
            self._failed = {}
            self._built = {scene.token: scene for scene in builder.build(of_log, failed=self._failed)}
            self._log = log


def evaluate(
    agent: Agent,
    records: Sequence[SceneRecord],
    load_scenes: LoadScenes,
    *,
    metric: Metric[Any] = PDMS_V1,
    device: torch.device | str = "cpu",
    allow_failures: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Plan for every record and score it, one plan a scene.

    Args:
        agent: from records to plans (scene, 8, 3).
        records: the scenes; order them by log.
        load_scenes: from records to scenes as the metric takes them: `scenes_from_cache`, `ScenesFromLogs`, or
            `recorded_scenes`.
        metric: what to score with.
        device: where to score.
        allow_failures: count a scene that fails as failed and go on, instead of stopping.
        progress: show a progress bar.

    Raises:
        SceneFailureError: a scene failed and ``allow_failures`` is off; names the token.
    """
    crew = Crew.alone(str(device))
    return evaluate_together(
        lambda: agent, records, load_scenes, crew, metric=metric, allow_failures=allow_failures, progress=progress
    )


def evaluate_together(
    open_agent: Callable[[], Agent],
    records: Sequence[SceneRecord],
    load_scenes: LoadScenes,
    crew: Crew,
    *,
    metric: Metric[Any] = PDMS_V1,
    allow_failures: bool = False,
    progress: bool = True,
    reads: Sequence[Path] = (),
) -> Evaluation:
    """As `evaluate`, by a crew: each worker opens an agent and takes `SCENES_AT_ONCE` scenes at a time.

    The same scenes are together as with one worker, and results come in the order of the records: they do not depend on
    the crew.

    Args:
        open_agent: gives the agent, in each worker.
        crew: who shares the scenes.
        reads: what the workers read, see `run_jobs`.
    """
    parts: list[ScoredPart] = []
    failures: dict[str, str] = {}
    places = [(first, min(first + SCENES_AT_ONCE, len(records))) for first in range(0, len(records), SCENES_AT_ONCE)]
    jobs = [(range(*place), allow_failures) for place in places]
    opener = _OpenJudge(open_agent, load_scenes, metric, crew.device, tuple(records))
    device = "cpu"
    with tqdm(total=len(records), desc="scenes", unit="scene", disable=not progress) as bar:
        for found, name in run_jobs(
            _score_rows, jobs, crew.executor, in_order=True, opener=opener, gpu_each=crew.gpu_each, reads=reads
        ):
            device = name
            parts += [part for part in found if isinstance(part, ScoredPart)]
            failures |= {failure.token: failure.why for failure in found if isinstance(failure, _Failure)}
            bar.update(sum(len(part.rows) if isinstance(part, ScoredPart) else 1 for part in found))
    return Evaluation(metric, tuple(records), tuple(parts), failures, device)


@dataclass(frozen=True)
class _OpenJudge:
    """What a worker scores with."""

    open_agent: Callable[[], Agent]
    load: LoadScenes
    metric: Metric[Any]
    device: str
    records: tuple[SceneRecord, ...]

    def __call__(self) -> _Judge:
        return _Judge(self.open_agent(), self.load, self.metric, torch.device(self.device), self.records)


def _score_rows(judge: _Judge, rows: range, allow_failures: bool) -> tuple[list[ScoredPart | _Failure], str]:
    """The scored scenes at ``rows``, and the name of the device."""
    return list(_score(judge, rows, allow_failures)), device_name(judge.device)


@dataclass(frozen=True)
class _Judge:
    agent: Agent
    load: LoadScenes
    metric: Metric[Any]
    device: torch.device
    records: Sequence[SceneRecord]

    def __call__(self, rows: Sequence[int]) -> ScoredPart:
        records = [self.records[row] for row in rows]
        plans = np.asarray(self.agent(records), dtype=np.float64)
        if plans.shape != (len(records), NUM_POSES, 3):
            raise ValueError(f"the agent gave plans of shape {plans.shape}, expected {(len(records), NUM_POSES, 3)}")
        scenes = self.load(records)
        packed = self.metric.pack(scenes).to(self.device)
        on_device = torch.from_numpy(plans)[:, None].to(self.device)
        terms = self.metric.judge(packed, on_device)
        values = self.metric.columns_of(terms, len(records), 1)
        for record, score in zip(records, values["score"][:, 0].tolist()):
            if not np.isfinite(score):
                raise ValueError(f"scene {record.token} got a score that is not finite")
        reasons = tuple(why[0] for why in self.metric.explain(packed, on_device, terms))
        terms = mapped(terms, lambda tensor: tensor.cpu())
        return ScoredPart(tuple(rows), terms, reasons, tuple(map(Origin.of, scenes)))


@dataclass(frozen=True)
class _Failure:
    token: str
    why: str


def _score(judge: _Judge, rows: Sequence[int], allow_failures: bool) -> Iterator[ScoredPart | _Failure]:
    """The scored scenes at ``rows``; when that fails, scene by scene to find out which one."""
    try:
        yield judge(rows)
        return
    except ContractError:  # of the metric, in whatever scene
        raise
    except Exception as error:
        if len(rows) == 1:
            record = judge.records[rows[0]]
            if not allow_failures:
                raise SceneFailureError(f"scene {record.token} (log {record.log_name}) failed: {error}") from error
            yield _Failure(record.token, f"{type(error).__name__}: {error}")
            return
        together = error
    any_failed = False
    for row in rows:
        for found in _score(judge, [row], allow_failures):
            any_failed = any_failed or isinstance(found, _Failure)
            yield found
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
        **identity(agent, split, data_root, evaluation.about, seed, omega, checkpoint),
        "precision": precision,
        "scenes": len(evaluation.tokens),
        "scenes_scored": part.used,
        **part.as_dict(),
        "failed": len(evaluation.failures),
        "failures": evaluation.failures,
        "odd": evaluation.odd,
        "averages": {name: None if np.isnan(mean) else mean for name, mean in evaluation.averages.items()},
        "metric": evaluation.about,
        "metric_cache": cache.provenance if cache else None,
        "data_fingerprint": data_fingerprint(records, data_root),
        "trained_on": trained_on,
        "trained_on_evaluation_split": saw_split(trained_on, split, records),
        "samples_per_scene": 1,  # plans drawn from the agent
        "candidates_per_scene": 1,  # plans scored
        "provenance": made_by(seed, "cpu") | {"device": evaluation.device},
    }
    texts = {
        SUMMARY: json.dumps(summary, indent=2, allow_nan=False) + "\n",  # first: it says which evaluation it is of
        SCORES: evaluation.to_csv(part.is_whole),
    }
    write_together({Path(out) / name: partial(_put, text) for name, text in texts.items()})
    return summary


def _put(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


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
        found = read_json(folder / SUMMARY)
        there = {**found, "metric": {key: found["metric"].get(key) for key in wanted["metric"]}}
        differ = [
            f"{key} {_plain(there[key])} there, {_plain(wanted[key])} asked for"
            for key in wanted
            if there[key] != wanted[key]
        ]
    except (OSError, FileError, KeyError, TypeError, AttributeError):
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
    if read_json(summary).get("whole_split"):
        raise ResultsError(
            f"{out} holds results of the whole split, and now it would be {coverage} ({coverage.why}); {CHOOSE}"
        )


def _plain(value: Any) -> str:
    """A value of an `identity` in words."""
    if isinstance(value, dict):  # of a metric
        shown = {key: v if isinstance(v, str) else short(v) for key, v in value.items() if v is not None}
        texts = [v if key == "name" else f"{key} {v}" for key, v in shown.items()]
        return repr(", ".join(texts))[:400]
    return "none" if value is None else short(value)


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
    content = [[name, sha256_of(log_path(data_root, data_split, name))] for data_split, name in logs]
    return hashlib.sha256(json.dumps([[r.token for r in records], content]).encode()).hexdigest()


def describe(summary: dict[str, Any], metric: Metric[Any] = PDMS_V1) -> str:
    """What to print of a summary."""
    means = summary["averages"]
    columns = (*metric.columns[:-1], replace(metric.columns[-1], label=metric.title))
    numbers = "  ".join(column.shown(means[column.name]) for column in columns if means.get(column.name) is not None)
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
    lines += [f"{line}: scored nevertheless." for line in odd_lines(summary["odd"], part.used)]
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
