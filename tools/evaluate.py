"""Score an agent on a split: scores.csv and summary.json; a policy under several omegas, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from dpvla.cli import parse, refuse_given, reporting_errors
from dpvla.config import ConfigError, NotNegative, Range, Whole
from dpvla.files import check_folder, one_writer
from navsim_bridge.agents.options import SharedAgentOptions
from navsim_bridge.files import roots
from navsim_bridge.files.roots import DataAndMapOptions
from navsim_bridge.metrics.config import PDMSConfig
from navsim_bridge.metrics.registry import AnyMetric, make_metric
from navsim_bridge.splits.coverage import usable_scenes
from navsim_bridge.splits.scene_filter import load_split

Samples = Annotated[int, Range(least=1, most=1024)]


@dataclass(frozen=True, kw_only=True)
class Evaluate(SharedAgentOptions, DataAndMapOptions):
    """Score an agent on a split with the PDM score (NAVSIM v1), EPDMS (v2) or a metric of yours, one plan a scene.

    Several omegas share one look at each scene, and their noise. Each has its results in OUT/omega_W, as if it had been
    evaluated alone, and OUT/omega.csv (.md) has a row for each.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {"human_filter": "metric.human_filter"}

    seed: Whole = 0  # dpvla: of the sampling noise
    omega: tuple[NotNegative, ...] | None = None  # dpvla: greediness of the guided combination; several: 0,0.5,1,2,4
    samples: Samples = 1  # plans a scene; dpvla: each of other noise; submission: seeds
    select_oracle: bool = False  # with --select: score also all that is chosen among, and the oracle's choice
    split: str  # name of a split, or a YAML, CSV or Parquet file that lists its scenes
    out: str  # folder for scores.csv and summary.json; the same command again replaces its own
    metric: AnyMetric = field(default_factory=PDMSConfig)  # what to score with
    metric_cache: str | None = None  # what tools/cache_metrics.py wrote; default: build the metric scenes on the way
    overwrite: bool = False  # replace what --out holds of another evaluation
    allow_failures: bool = False  # count scenes that fail, leave them out of the averages, and go on
    allow_missing: bool = False  # score what there is, and say so, when logs, images or (cached) scenes are missing

    @staticmethod
    def in_full(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """One omega as a list."""
        return {**data, "omega": [data["omega"]]} if isinstance(data.get("omega"), int | float) else data

    def __post_init__(self) -> None:
        if self.omega is not None and not self.omega:
            raise ValueError("omega needs a number, or several: 0,0.5,1,2,4 (without it: what it was trained with)")
        if twice := [f"{omega:g}" for omega in self.omegas if self.omegas.count(omega) > 1]:
            raise ValueError(f"omega names {twice[0]} twice")

    @property
    def omegas(self) -> tuple[float, ...]:
        """That are asked for; none: what the policy was trained with."""
        return tuple(omega + 0.0 for omega in self.omega or ())  # no -0


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Evaluate, argv)
    from navsim_bridge.evaluation.floors import WithFloors, floors_for, floors_of
    from navsim_bridge.evaluation.metric_scenes import LoadScenes, ScenesFromLogs, recorded_scenes, scenes_from_cache
    from navsim_bridge.evaluation.omegas import folder_of, write_omegas
    from navsim_bridge.evaluation.results import (
        SAMPLES,
        SCORES,
        SUMMARY,
        Identity,
        check_results,
        describe,
        identity,
        keep_whole,
        write_evaluation,
    )
    from navsim_bridge.evaluation.run import OnePlan, evaluate_each
    from navsim_bridge.metric_cache import MetricCache
    from navsim_bridge.metric_cache.builder import require_scorable

    options.check_agent("seed", "omega", "samples", "select_oracle")
    _check_selection(options)
    check_folder(options.out)
    crew = options.crew()
    data_root = roots.data_root(options.data_root)
    split = load_split(options.split, data_root, options.data_split, options.synthetic_root)
    metric = make_metric(options.metric).on(split)
    cache = MetricCache(options.metric_cache) if options.metric_cache is not None else None
    if cache is not None:
        cache.require_metric(metric)
    elif metric.scene_rules is not None:
        require_scorable(split, metric.scene_rules)
        maps_root = roots.maps_root(options.maps_root)
    agent = options.open_for(crew, data_root, options.seed, options.omegas, options.samples)
    omegas: Sequence[float | None] = options.omegas or (agent.guidance,)
    out = Path(options.out)
    runs: dict[Path, Identity] = {
        (folder_of(out, omega) if omega is not None and len(omegas) > 1 else out): {
            "agent": options.agent,
            "split": split,
            "data_root": data_root,
            "seed": options.seed,
            "omega": omega,
            "checkpoint": options.checkpoint,
            "selection": agent.selection,
            "submission": agent.submission,
        }
        for omega in omegas
    }
    with ExitStack() as held:
        for folder in dict.fromkeys([out, *runs]):
            held.enter_context(one_writer(folder))
        for folder, about in runs.items():
            check_results(folder, identity(metric=metric.about, samples=options.samples, **about), options.overwrite)
        records, coverage = usable_scenes(split, data_root, agent.cameras, options.allow_missing)
        load_scenes: LoadScenes
        records, coverage = agent.usable(records, coverage, options.allow_missing)
        reads = [data_root, *(Path(p) for p in (options.checkpoint, options.selector, options.submission) if p)]
        if cache is not None:
            records, coverage = cache.usable(records, coverage, options.allow_missing)
            load_scenes, reads = scenes_from_cache(cache), [*reads, cache.path]
        elif metric.scene_rules is not None:
            load_scenes, reads = ScenesFromLogs(records, data_root, maps_root, metric.scene_rules), [*reads, maps_root]
        else:
            load_scenes = recorded_scenes
        for folder in runs:
            keep_whole(folder, coverage, options.overwrite)
        how: dict[str, Any] = {"metric": metric, "allow_failures": options.allow_failures, "reads": reads}
        proposals = options.select if options.select_oracle else 0
        own = len(runs) * options.samples
        floors = floors_for(options.agent, split)
        open_agent = agent.open_proposer if own + proposals > 1 else OnePlan(agent.open)
        opener = WithFloors(open_agent, floors) if floors else open_agent
        found = evaluate_each(opener, records, load_scenes, crew, own + proposals + len(floors), **how)
        found, chosen_among, of_floors = found[:own], found[own : own + proposals], found[own + proposals :]
        groups = [found[i : i + options.samples] for i in range(0, len(found), options.samples)]
        what: dict[str, Any] = {
            "records": records, "cache": cache, "coverage": coverage,
            "floors": floors_of({options.agent: found[0], **dict(zip(floors, of_floors))}, split),
        }  # fmt: skip
        if len(runs) > 1:
            said, paths = write_omegas(
                out, runs, groups, trained_with=agent.trained_with, overwrite=options.overwrite, **what
            )
        else:
            keep_whole(out, coverage.without("failed", len(found[0].failures)), options.overwrite)
            summary = write_evaluation(out, *groups[0], chosen_among=chosen_among, **what, **runs[out])
            said = describe(summary, metric)
            paths = [out / name for name in (SCORES, SUMMARY, *([SAMPLES] if options.samples > 1 else []))]
    print(said)
    print(f"written: {', '.join(map(str, paths))}")


def _check_selection(options: Evaluate) -> None:
    """ConfigError where a choice among plans and several of them are asked for together."""
    if not options.select:
        return refuse_given(options, ["select_oracle"], "--select K")
    if options.samples > 1 or len(options.omegas) > 1:
        raise ConfigError(
            "--select scores one plan a scene, the chosen one: leave --samples out, and give several omegas to choose "
            "among with --select-omegas"
        )


if __name__ == "__main__":
    main()
