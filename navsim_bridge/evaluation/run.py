"""Scoring an agent over a split, alone or by a crew that shares the scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dpvla.parallel import run_jobs
from dpvla.plan import NUM_POSES
from dpvla.provenance import device_name
from dpvla.registry import ContractError
from navsim_bridge.agents import Agent
from navsim_bridge.agents.crew import SCENES_AT_ONCE, Crew
from navsim_bridge.evaluation.evaluation import Evaluation, Origin, ScoredPart
from navsim_bridge.evaluation.metric_scenes import LoadScenes
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.pdm.chunks import mapped
from navsim_bridge.splits.scenes import SceneRecord

PDMS_V1 = PDMS()


class SceneFailureError(ValueError):
    """Planning or scoring a scene failed; the message names it."""


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
