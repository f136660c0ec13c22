"""Several methods scored on a split and on a part of it: the plans of one pass over the whole serve both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dpvla.parallel import run_jobs
from dpvla.registry import import_plugin
from navsim_bridge.agents import Agent, PolicyAgent, find_agent
from navsim_bridge.agents.crew import SCENES_AT_ONCE
from navsim_bridge.data.training_data import own_metric_cache
from navsim_bridge.evaluation.evaluation import Evaluation
from navsim_bridge.evaluation.metric_scenes import scenes_from_cache
from navsim_bridge.evaluation.results import write_evaluation
from navsim_bridge.evaluation.run import evaluate
from navsim_bridge.splits.scene_filter import Split
from navsim_bridge.splits.scenes import select_scenes


@dataclass(frozen=True)
class Method:
    """A trained policy, or an agent that needs nothing but its name."""

    name: str  # in the names of files; without a checkpoint that of the agent
    checkpoint: Path | None = None
    omega: float | None = None  # of the policy; None: what it was trained with
    seed: int = 0  # of the policy's sampling noise

    def agent(self, data_root: Path, image_cache: Path | None = None) -> Agent:
        """Who drives; errors as `PolicyAgent.from_checkpoint` and `find_agent`."""
        if self.checkpoint is None:
            agent: Agent = find_agent(self.name)
            return agent
        return PolicyAgent.from_checkpoint(
            self.checkpoint, data_root, omega=self.omega, seed=self.seed, image_cache=image_cache,
            batch_size=SCENES_AT_ONCE,
        )  # fmt: skip


def score_methods(
    methods: Sequence[Method],
    whole: Split,
    part: Split,
    data_root: Path,
    out: Path,
    *,
    workers: int = 1,
    plugin: Sequence[str] = (),
) -> dict[str, tuple[Evaluation, Evaluation]]:
    """Evaluations of each method on ``part`` and on ``whole``, which holds it; one sample a scene, PDM score v1.

    They are written to ``out``/METHOD_SPLIT. Metric caches are those of ``data_root``, whose maps lie in its `maps/`;
    ``plugin``: modules that the processes import first.
    """
    records = select_scenes(whole, data_root)
    inside = {r.token for r in select_scenes(part, data_root)}
    jobs = [(method, whole, data_root, plugin) for method in methods]
    done = tqdm(run_jobs(_score, jobs, workers), total=len(jobs), unit="method")
    found = {name: (evaluation, omega) for name, evaluation, omega in done}
    cache = own_metric_cache(part, data_root, data_root / "maps", workers=1)
    scored = {}
    for method in methods:
        evaluation, omega = found[method.name]
        scored[method.name] = evaluation.restricted(inside), evaluation
        for split, of_split in zip((part, whole), scored[method.name]):
            write_evaluation(
                out / f"{method.name}_{split.name}",
                of_split,
                agent=method.name if method.checkpoint is None else "dpvla",
                split=split,
                records=[r for r in records if r.token in inside or split is whole],
                data_root=data_root,
                seed=method.seed,
                omega=omega,
                checkpoint=method.checkpoint,
                cache=cache,
            )
    return scored


def _score(
    method: Method, split: Split, data_root: Path, plugin: Sequence[str]
) -> tuple[str, Evaluation, float | None]:
    """Its name, what it scores, and the omega that it was sampled with; for a process of its own."""
    for module in plugin:
        import_plugin(module)
    cache = own_metric_cache(split, data_root, data_root / "maps", workers=1)
    agent = method.agent(data_root, data_root / "image_cache")
    omega = agent.guidance if isinstance(agent, PolicyAgent) else None
    scenes = select_scenes(split, data_root)
    return method.name, evaluate(agent, scenes, scenes_from_cache(cache), progress=False), omega
