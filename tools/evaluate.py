"""Score an agent on a split: scores.csv and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from dpvla import cli
from dpvla.cli import reporting_errors
from dpvla.config import Count, NotNegative, Whole
from dpvla.device import usable_device
from dpvla.files import check_folder, one_writer
from navsim_bridge.agents import BASELINES, Agent, PolicyAgent
from navsim_bridge.evaluation.run import (
    SCORES,
    SUMMARY,
    Identity,
    LoadScenes,
    ScenesFromLogs,
    check_results,
    describe,
    evaluate,
    identity,
    keep_whole,
    recorded_scenes,
    scenes_from_cache,
    write_evaluation,
)
from navsim_bridge.files import roots
from navsim_bridge.metric_cache import MetricCache
from navsim_bridge.metric_cache.builder import require_scorable
from navsim_bridge.metrics.pdms import PDMSConfig
from navsim_bridge.metrics.registry import AnyMetric, make_metric
from navsim_bridge.splits.coverage import usable_scenes
from navsim_bridge.splits.scene_filter import load_split

LEARNED = ("checkpoint", "omega", "seed", "batch_size")
"""Options of --agent dpvla alone."""


@dataclass(frozen=True)
class Evaluate:
    """Score an agent on a split with the PDM score (NAVSIM v1), EPDMS (v2) or a metric of yours, one plan a scene."""

    RENAMED: ClassVar[Mapping[str, str]] = {"human_filter": "metric.human_filter"}

    agent: Literal["constant_velocity", "stand_still", "human", "dpvla"]  # who drives
    split: str  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str  # folder for scores.csv and summary.json; the same command again replaces its own
    metric: AnyMetric = field(default_factory=PDMSConfig)  # what to score with
    checkpoint: str = ""  # dpvla: checkpoint or model directory
    omega: NotNegative | None = None  # dpvla: greediness of the guided combination; default: what it was trained with
    seed: Whole = 0  # dpvla: of the sampling noise
    data_split: str = ""  # folder below navsim_logs/; default: what the split says, else the one that has its scenes
    data_root: str = ""  # folder with navsim_logs/; default: OPENSCENE_DATA_ROOT, then the demo world
    maps_root: str = ""  # folder with nuplan-maps-v1.0.json; default: NUPLAN_MAPS_ROOT, then the demo world
    metric_cache: str = ""  # what tools/cache_metrics.py wrote; default: build the metric scenes on the way
    batch_size: Count = 64  # dpvla: scenes planned together
    device: str = "auto"  # cpu, cuda, cuda:1, ...
    overwrite: bool = False  # replace what --out holds of another evaluation
    allow_failures: bool = False  # count scenes that fail, leave them out of the averages, and go on
    plugin: tuple[str, ...] = ()  # modules of yours that add encoders, metrics, ...: names or .py files
    allow_missing: bool = False  # score what there is, and say so, when logs, images or (cached) scenes are missing


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = cli.parse(Evaluate, argv)
    learned = options.agent == "dpvla"
    if not learned:
        cli.refuse_given(options, LEARNED, "--agent dpvla")
    elif not options.checkpoint:
        raise ValueError("--agent dpvla needs --checkpoint")
    check_folder(options.out)
    device = usable_device(options.device)
    metric = make_metric(options.metric)
    data_root = roots.data_root(options.data_root)
    split = load_split(options.split, data_root, options.data_split)
    cache = MetricCache(options.metric_cache) if options.metric_cache else None
    if cache is not None:
        cache.require_metric(metric)
    elif metric.scene_rules is not None:
        require_scorable(split, metric.scene_rules)
        maps_root = roots.maps_root(options.maps_root)
    agent: Agent
    if learned:
        agent = PolicyAgent.from_checkpoint(
            options.checkpoint,
            data_root,
            device,
            omega=options.omega,
            seed=options.seed,
            batch_size=options.batch_size,
        )
        agent.refuse_idle_omega()
    else:
        agent = BASELINES[options.agent]
    about: Identity = {
        "agent": options.agent,
        "split": split,
        "data_root": data_root,
        "seed": options.seed,
        "omega": agent.guidance if isinstance(agent, PolicyAgent) else None,
        "checkpoint": options.checkpoint or None,
    }
    with one_writer(options.out):
        check_results(options.out, identity(metric=metric.about, **about), options.overwrite)
        cameras = agent.cameras if isinstance(agent, PolicyAgent) else ()
        records, coverage = usable_scenes(split, data_root, cameras, options.allow_missing)
        load_scenes: LoadScenes
        if cache is not None:
            records, coverage = cache.usable(records, coverage, options.allow_missing)
            load_scenes = scenes_from_cache(cache)
        elif metric.scene_rules is not None:
            load_scenes = ScenesFromLogs(records, data_root, maps_root, metric.scene_rules)
        else:
            load_scenes = recorded_scenes
        keep_whole(options.out, coverage, options.overwrite)
        evaluation = evaluate(
            agent, records, load_scenes, metric=metric, device=device, allow_failures=options.allow_failures
        )
        keep_whole(options.out, coverage.without("failed", len(evaluation.failures)), options.overwrite)
        summary = write_evaluation(options.out, evaluation, records=records, cache=cache, coverage=coverage, **about)
    print(describe(summary, metric))
    print(f"written: {Path(options.out) / SCORES}, {Path(options.out) / SUMMARY}")


if __name__ == "__main__":
    main()
