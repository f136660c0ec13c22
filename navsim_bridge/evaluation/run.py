"""Scoring an agent over a split, alone or by a crew that shares the scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpvla.parallel import run_jobs
from dpvla.provenance import device_name
from dpvla.registry import ContractError
from navsim_bridge.agents.agent import Agent, Plans, Proposer
from navsim_bridge.agents.crew import SCENES_AT_ONCE, Crew
from navsim_bridge.agents.plans import Alike, by_candidate, by_sampling
from navsim_bridge.evaluation.evaluation import Evaluation, Origin, ScoredPart, in_order
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
        agent: from records to a plan each.
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
    return evaluate_each(
        OnePlan(open_agent), records, load_scenes, crew, 1,
        metric=metric, allow_failures=allow_failures, progress=progress, reads=reads,
    )[0]  # fmt: skip


def evaluate_each(
    open_agent: Callable[[], Proposer],
    records: Sequence[SceneRecord],
    load_scenes: LoadScenes,
    crew: Crew,
    candidates: int,
    *,
    metric: Metric[Any] = PDMS_V1,
    allow_failures: bool = False,
    progress: bool = True,
    reads: Sequence[Path] = (),
) -> list[Evaluation]:
    """As `evaluate_together`, of every candidate of an agent that proposes so many plans a scene.

    Each is to the bit what its plans alone would come to: candidates are scored one by one, and fail so.
    """
    parts: list[list[ScoredPart]] = [[] for _ in range(candidates)]
    failures: list[dict[str, str]] = [{} for _ in range(candidates)]
    places = [(first, min(first + SCENES_AT_ONCE, len(records))) for first in range(0, len(records), SCENES_AT_ONCE)]
    jobs = [(range(*place), range(candidates), allow_failures) for place in places]
    opener = _OpenJudge(open_agent, load_scenes, metric, crew.device, tuple(records))
    device = "cpu"
    with tqdm(total=len(records), desc="scenes", unit="scene", disable=not progress) as bar:
        for rows, found, name in run_jobs(
            _score_rows, jobs, crew.executor, in_order=True, opener=opener, gpu_each=crew.gpu_each, reads=reads
        ):
            device = name
            for candidate, those in found.items():
                parts[candidate] += [part for part in those if isinstance(part, ScoredPart)]
                failures[candidate] |= {failed.token: failed.why for failed in those if isinstance(failed, _Failure)}
            bar.update(len(rows))
    return [Evaluation(metric, tuple(records), tuple(p), f, device) for p, f in zip(parts, failures)]


@dataclass(frozen=True)
class _OnePlan:
    """An agent's one plan a scene as what it proposes."""

    agent: Agent

    def __call__(self, records: Sequence[SceneRecord]) -> Plans:
        return self.agent(records)

    def propose(self, records: Sequence[SceneRecord]) -> list[Plans]:
        return [self.agent(records)]

    def require_finite(self, plans: NDArray[Any], candidate: int) -> None:
        """An agent refuses its own; what it gives nevertheless, scoring refuses."""


@dataclass(frozen=True)
class OnePlan:
    """Opens an agent as what proposes its one plan a scene."""

    open_agent: Callable[[], Agent]

    def __call__(self) -> Proposer:
        """The agent."""
        return _OnePlan(self.open_agent())


@dataclass(frozen=True)
class _OpenJudge:
    """What a worker scores with."""

    open_agent: Callable[[], Proposer]
    load: LoadScenes
    metric: Metric[Any]
    device: str
    records: tuple[SceneRecord, ...]

    def __call__(self) -> _Judge:
        return _Judge(self.open_agent(), self.load, self.metric, torch.device(self.device), self.records)


@dataclass(frozen=True)
class _Failure:
    token: str
    why: str


_Found = dict[int, list[ScoredPart | _Failure]]
"""By candidate."""


def _score_rows(judge: _Judge, rows: range, candidates: range, allow_failures: bool) -> tuple[range, _Found, str]:
    """``rows``, what was found there, and the name of the device."""
    return rows, _score(judge, rows, candidates, allow_failures), device_name(judge.device)


@dataclass(frozen=True)
class _Judge:
    agent: Proposer
    load: LoadScenes
    metric: Metric[Any]
    device: torch.device
    records: Sequence[SceneRecord]

    def __call__(self, rows: Sequence[int], candidates: Sequence[int]) -> dict[int, ScoredPart | Exception]:
        """By candidate its scores, or why there are none. ContractError, of the metric in whatever scene, is raised."""
        records = [self.records[row] for row in rows]
        found: dict[int, ScoredPart | Exception] = {}
        try:
            plans = by_candidate(self.agent.propose(records), len(records))
            scenes = self.load(records)
            packed = self.metric.pack(scenes).to(self.device)
            origins = tuple(Origin.of(scene, self.metric.needs_traffic) for scene in scenes)
        except ContractError:
            raise
        except Exception as error:
            return dict.fromkeys(candidates, error)
        for candidate in candidates:
            try:
                parts = [
                    self._scored(rows, packed, origins, alike, candidate) for alike in by_sampling(plans[candidate])
                ]
                (found[candidate],) = parts if len(parts) == 1 else in_order(parts)
            except ContractError:
                raise
            except Exception as error:
                found[candidate] = error
        return found

    def _scored(
        self, rows: Sequence[int], packed: Any, origins: Sequence[Origin], plans: Alike, candidate: int
    ) -> ScoredPart:
        """Plans of a candidate for some of the scenes at ``rows``, scored and explained; on the CPU."""
        self.agent.require_finite(plans.poses, candidate)
        metric = self.metric if plans.interval is None else self.metric.sampled_every(plans.interval)
        mine = [rows[place] for place in plans.places]
        if len(mine) < len(rows):
            packed = packed.select(np.array(plans.places, dtype=np.int64))
        on_device = torch.from_numpy(plans.poses[:, None]).to(self.device)
        terms = metric.judge(packed, on_device)
        values = metric.columns_of(terms, len(mine), 1)
        for row, score in zip(mine, values["score"][:, 0].tolist()):
            if not np.isfinite(score):
                raise ValueError(f"scene {self.records[row].token} got a score that is not finite")
        reasons = tuple(why[0] for why in metric.explain(packed, on_device, terms))
        of_mine = tuple(origins[place] for place in plans.places)
        return ScoredPart(tuple(mine), mapped(terms, lambda tensor: tensor.cpu()), reasons, of_mine)


def _score(judge: _Judge, rows: Sequence[int], candidates: Sequence[int], allow_failures: bool) -> _Found:
    """The scored scenes at ``rows``; of a candidate where that fails, scene by scene to find out which one."""
    found: _Found = {candidate: [] for candidate in candidates}
    failed: dict[int, Exception] = {}
    for candidate, scored in judge(rows, candidates).items():
        if isinstance(scored, ScoredPart):
            found[candidate].append(scored)
        else:
            failed[candidate] = scored
    if len(rows) == 1:
        record = judge.records[rows[0]]
        for candidate, error in failed.items():
            if not allow_failures:
                raise SceneFailureError(f"scene {record.token} (log {record.log_name}) failed: {error}") from error
            found[candidate].append(_Failure(record.token, f"{type(error).__name__}: {error}"))
    elif failed:
        for row in rows:
            for candidate, those in _score(judge, [row], [*failed], allow_failures).items():
                found[candidate] += those
        for candidate, error in failed.items():
            if not any(isinstance(one, _Failure) for one in found[candidate]):  # not one scene's fault: out of memory
                raise error
    return found
