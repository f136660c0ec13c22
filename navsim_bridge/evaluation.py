"""Scoring an agent over a split: one row per scene, averages, and what made them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.files import write_json, write_text
from dpvla.provenance import collect
from navsim_bridge.agents import Agent
from navsim_bridge.agents.policy_agent import is_model
from navsim_bridge.logs import log_path
from navsim_bridge.metric_cache.builder import build_scenes
from navsim_bridge.metric_cache.cache import METRIC, MetricCache
from navsim_bridge.metric_cache.store import file_hash
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import score_plans
from navsim_bridge.reward import SUB_SCORES
from navsim_bridge.scene_filter import Split
from navsim_bridge.scenes import NUM_POSES, SceneRecord

COLUMNS = ("token", "valid", *SUB_SCORES)
"""The devkit's columns."""
SCENES_AT_ONCE = 256

LoadScenes = Callable[[Sequence[SceneRecord]], Sequence[MetricScene]]


class SceneFailureError(ValueError):
    """Planning or scoring a scene failed; the message names it."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one agent, in the order of the records."""

    tokens: tuple[str, ...]
    valid: NDArray[np.bool_]  # (scene,) False where the scene failed
    values: NDArray[np.float64]  # (scene, 7) columns of SUB_SCORES, NaN where the scene failed
    failures: dict[str, str] = field(default_factory=dict)  # token -> error
    metric: dict[str, Any] = field(default_factory=dict)  # reference, centrelines, fingerprint of the metric scenes

    @property
    def averages(self) -> dict[str, float]:
        """Mean of every sub-score over the scenes that did not fail.

        Raises ValueError when all failed.
        """
        if not self.valid.any():
            raise ValueError(f"all {len(self.tokens)} scenes failed; there is no average")
        return dict(zip(SUB_SCORES, self.values[self.valid].mean(axis=0).tolist()))

    def to_csv(self) -> str:
        """One row per scene and a last one, `average`; sub-scores of failed scenes are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for token, valid, row in zip(self.tokens, self.valid.tolist(), self.values.tolist()):
            writer.writerow([token, valid, *(row if valid else [""] * len(row))])
        writer.writerow(["average", bool(self.valid.all()), *self.averages.values()])
        return text.getvalue()


def scenes_from_cache(cache: MetricCache) -> LoadScenes:
    """Metric scenes from a cache; a missing token raises CacheError."""
    return lambda records: cache.load([r.token for r in records])


def scenes_from_logs(data_root: Path | str, maps_root: Path | str) -> LoadScenes:
    """Metric scenes built on the way; records of one log should come together."""
    return lambda records: list(build_scenes(records, data_root, maps_root))


def evaluate(
    agent: Agent,
    records: Sequence[SceneRecord],
    load_scenes: LoadScenes,
    *,
    device: torch.device | str = "cpu",
    allow_failures: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Plan for every record and score it with the PDM score v1, one plan a scene.

    Args:
        agent: from records to plans (scene, 8, 3).
        records: the scenes; order them by log.
        load_scenes: from records to their metric scenes, e.g. `scenes_from_cache`.
        device: where to score.
        allow_failures: count a scene that fails as failed and go on, instead of stopping.
        progress: show a progress bar.

    Raises:
        SceneFailureError: a scene failed and ``allow_failures`` is off; names the token.
    """
    values = np.full((len(records), len(SUB_SCORES)), np.nan)
    failures: dict[str, str] = {}
    centerlines: Counter[str] = Counter()
    references: Counter[str] = Counter()
    digest = hashlib.sha256()
    with tqdm(total=len(records), desc="scenes", unit="scene", disable=not progress) as bar:
        for first in range(0, len(records), SCENES_AT_ONCE):
            chunk = records[first : first + SCENES_AT_ONCE]
            for offset, scored in _score_chunk(agent, chunk, load_scenes, torch.device(device), allow_failures):
                if isinstance(scored, Exception):
                    failures[chunk[offset].token] = f"{type(scored).__name__}: {scored}"
                    continue
                row, scene = scored
                values[first + offset] = row
                references[scene.provenance.get("reference", "unknown")] += 1
                centerlines[scene.provenance.get("centerline", "unknown")] += 1
                digest.update(_scene_bytes(scene))
            bar.update(len(chunk))
    tokens = tuple(r.token for r in records)
    valid = np.array([token not in failures for token in tokens], dtype=bool)
    metric = {
        "name": METRIC,
        "reference": dict(references),
        "centerlines": dict(centerlines),
        "scenes_fingerprint": digest.hexdigest(),
    }
    return Evaluation(tokens, valid, values, failures, metric)


Scored = tuple[NDArray[np.float64], MetricScene]


def _score_chunk(
    agent: Agent, records: Sequence[SceneRecord], load: LoadScenes, device: torch.device, allow_failures: bool
) -> Iterator[tuple[int, Scored | Exception]]:
    """Index and result of each record; when the chunk fails, scene by scene to find out which one."""
    try:
        yield from enumerate(_score(agent, records, load, device))
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
        for _, scored in _score_chunk(agent, [record], load, device, allow_failures):
            any_failed = any_failed or isinstance(scored, Exception)
            yield i, scored
    if not any_failed:  # not one scene's fault, e.g. out of memory
        raise together


def _score(agent: Agent, records: Sequence[SceneRecord], load: LoadScenes, device: torch.device) -> list[Scored]:
    plans = np.asarray(agent(records), dtype=np.float64)
    if plans.shape != (len(records), NUM_POSES, 3):
        raise ValueError(f"the agent gave plans of shape {plans.shape}, expected {(len(records), NUM_POSES, 3)}")
    scenes = load(records)
    batch = SceneBatch.from_scenes(scenes).to(device)
    scores = score_plans(batch, torch.from_numpy(plans)[:, None].to(device))
    table = torch.stack([getattr(scores, name)[:, 0].double() for name in SUB_SCORES], dim=-1).cpu().numpy()
    if not np.isfinite(table).all():
        bad = records[int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])].token
        raise ValueError(f"scene {bad} got a score that is not finite")
    return list(zip(table, scenes))


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
) -> dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json`` to ``out``; returns the summary.

    ``omega`` and ``checkpoint`` belong to the dpvla agent alone; ``cache`` when the metric scenes came from one.
    """
    trained_on = training_stages(checkpoint) if checkpoint else []
    summary = {
        "agent": agent,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "split": split.name,
        "data_split": split.data_split,
        "scenes": len(evaluation.tokens),
        "failed": len(evaluation.failures),
        "failures": evaluation.failures,
        "averages": evaluation.averages,
        "metric": evaluation.metric,
        "metric_cache": cache.provenance if cache else None,
        "data_fingerprint": data_fingerprint(records, data_root),
        "trained_on": trained_on,
        "trained_on_evaluation_split": saw_split(trained_on, split, records),
        "samples_per_scene": 1,
        "omega": omega,
        "seed": seed,
        "provenance": collect(seed),
    }
    write_text(Path(out) / "scores.csv", evaluation.to_csv())
    write_json(Path(out) / "summary.json", summary)
    return summary


def training_stages(checkpoint: Path | str) -> list[dict[str, Any]] | None:
    """Stage, split, scenes and logs behind the weights of a checkpoint, oldest first.

    None when no ``run.yaml`` says what the weights have seen (a bare model directory).
    """
    from dpvla.training.checkpoint import resolve_checkpoint
    from dpvla.training.run_directory import RUN, read_trained_on

    folder = Path(checkpoint).parent if is_model(checkpoint) else resolve_checkpoint(checkpoint)
    if not (folder / RUN).is_file():
        return None
    return [
        {"stage": s.stage, "split": s.split, "scenes": s.scenes, "logs": list(s.logs)} for s in read_trained_on(folder)
    ]


def saw_split(trained_on: Sequence[dict[str, Any]] | None, split: Split, records: Sequence[SceneRecord]) -> bool | None:
    """Whether any stage trained on the split or on a log that it holds; None when that is unknown."""
    if trained_on is None:
        return None
    logs = {r.log_name for r in records}
    return any(stage["split"] == split.name or logs & set(stage["logs"]) for stage in trained_on)


def data_fingerprint(records: Sequence[SceneRecord], data_root: Path | str) -> str:
    """Hash over the scenes' tokens and the content of their logs."""
    logs = sorted({(r.data_split, r.log_name) for r in records})
    content = [[name, file_hash(log_path(data_root, data_split, name))] for data_split, name in logs]
    return hashlib.sha256(json.dumps([[r.token for r in records], content]).encode()).hexdigest()


def describe(summary: dict[str, Any]) -> str:
    """What to print of a summary."""
    means = summary["averages"]
    short = {"no_at_fault_collisions": "NC", "drivable_area_compliance": "DAC", "ego_progress": "EP",
             "time_to_collision_within_bound": "TTC", "comfort": "C", "score": "PDMS"}  # fmt: skip
    numbers = "  ".join(f"{label} {100 * means[name]:.1f}" for name, label in short.items())
    lines = [f"{summary['agent']} on {summary['split']} ({summary['scenes']} scenes): {numbers}"]
    if summary["failed"]:
        first = next(iter(summary["failures"]))
        lines.append(
            f"{summary['failed']} of {summary['scenes']} scenes FAILED and are not in the averages; first {first}: "
            f"{summary['failures'][first]}"
        )
    if summary["trained_on_evaluation_split"]:
        lines.append(f"The weights were trained on scenes or logs of {summary['split']}: not a held-out score.")
    if summary["trained_on_evaluation_split"] is None:
        lines.append("No run.yaml beside the weights: what they were trained on is unknown.")
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
    return digest.digest()
