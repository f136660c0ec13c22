"""Load: many plans in one call, many scenes in one cache, long lists, and an hour of work in a loop.

    OMP_NUM_THREADS=1 python benchmarks/load.py --json load.json          # all parts, the loop for an hour
    OMP_NUM_THREADS=1 python benchmarks/load.py --parts loop --minutes 25

Each part prints what it measured beside the bound that it is held to, and the exit status is 1 when a bound is passed:

- plans: what a call of ``--plans`` plans takes beyond what it is given and gives (PEAK_MB).
- scenes: a cache of ``--scenes`` logs with a scene each, opened, checked, read whole and scored with DESCRIPTORS open
  files allowed; tenfold scenes take at most TENFOLD times the CPU seconds.
- counts: a split of a tenth and all of ``--plans`` tokens over a tenth and all of LOGS logs, by the same bound.
- loop: scoring, roll-outs with a tiny policy, evaluation with pictures, and state-based updates in turns for
  ``--minutes``. After the first quarter, memory must not grow by more than GROWTH_MB an hour, nor open files and maps
  of files at all; the last quarter's rates, by CPU seconds, must be RATE of the second's or more.

Memory is what the process has for itself (RssAnon of Linux), after a collection and ``malloc_trim``: libraries and
cached files, which other processes share, move with them. Needs Linux.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import resource
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from random_scenes import RandomScenes
from torch import Tensor

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import ADAPTERS, Dipole
from dpvla.cli import reporting_errors
from dpvla.files import check_file, write_json
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.provenance import made_by
from dpvla.report.scene_picture import DrawnPlan
from dpvla.rl.rollout import collect
from dpvla.rl.token_cache import TokenCache
from dpvla.state_based.agents.registry import agent_class, make_agent
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.data.transitions import Transitions
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate
from navsim_bridge.agents.policy_agent import PolicyAgent
from navsim_bridge.demo_world import DemoWorldConfig, make_demo_world
from navsim_bridge.evaluation.metric_scenes import ScenesFromLogs, scenes_from_cache
from navsim_bridge.evaluation.pictures import save_scene_picture
from navsim_bridge.evaluation.results import write_evaluation
from navsim_bridge.evaluation.run import evaluate
from navsim_bridge.files.logs import log_path
from navsim_bridge.files.pickles import dump_plain_pickle, load_plain_pickle
from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metric_cache import MetricCache, build_metric_cache
from navsim_bridge.metric_cache.cache import finish
from navsim_bridge.metric_cache.jobs import entry_of
from navsim_bridge.metric_cache.store import SUFFIX, SceneFile, write_scenes
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.registry import make_metric
from navsim_bridge.metrics.reward import MetricReward, packed_bytes
from navsim_bridge.pdm.compiled import choice
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.splits.scene_filter import load_split
from navsim_bridge.splits.scenes import select_scenes

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
SCORERS: tuple[choice.Scorer, ...] = ("torch", "compiled")
PARTS = ("plans", "scenes", "counts", "loop")
PEAK_MB = 512.0
"""Beyond what is given and twice what is given back: chunks of the work, and results before they are joined."""
DESCRIPTORS = 256
TENFOLD = 15.0
LOGS = 500
GROWTH_MB = 8.0
RATE = 0.8
MB = 2**20
Numbers = dict[str, Any]


class Bounds:
    """What was measured, and which bounds it passes."""

    def __init__(self) -> None:
        self.broken: list[str] = []

    def hold(self, what: str, value: float, most: float) -> None:
        """``value`` may be ``most``; prints both."""
        passed = value <= most
        print(f"  {what}: {value:.4g}, bound {most:.4g}{'' if passed else '  PASSED'}", flush=True)
        if not passed:
            self.broken.append(f"{what}: {value:.4g} is more than {most:.4g}")


# Plans and scenes


def golden(metric: str) -> tuple[list[MetricScene], list[np.ndarray]]:
    """Stored scenes for a metric, and the plans of each."""
    files: list[Any] = (
        [read_golden(path) for path in sorted((FIXTURES / "golden_v1").glob("*.npz"))]
        if metric == "pdms"
        else [read_golden_epdms(path) for path in sorted((FIXTURES / "golden_v2").glob("*.npz"))]
    )
    return [file.scene for file in files], [file.proposals for file in files]


def make_cache(folder: Path, metric: str, count: int) -> MetricCache:
    """A metric cache of ``count`` logs with a scene each, made by repeating the stored ones."""
    folder.mkdir()
    scenes, _ = golden(metric)
    logs = {}
    for number in range(count):
        name, token = f"log{number:06d}", f"{number:016x}"
        scene = dataclasses.replace(scenes[number % len(scenes)], token=token, log_name=name)
        write_scenes(folder / f"{name}{SUFFIX}", [scene], token)
        logs[name] = entry_of(SceneFile(folder / f"{name}{SUFFIX}"))
    about = {"metric": metric, "split": "repeated", "data_split": "repeated", "reference": "golden"}
    finish(folder, logs, about, {})
    return MetricCache(folder)


def some_plans(metric: str, scenes: int, candidates: int) -> Tensor:
    """(scene, candidate, 8, 3) stored plans, again and again, each a little elsewhere."""
    pool = torch.from_numpy(np.concatenate(golden(metric)[1]))
    rows = torch.arange(scenes * candidates) % len(pool)
    shift = 1e-4 * torch.arange(scenes * candidates, dtype=torch.float64)[:, None, None]
    return (pool[rows] + shift).view(scenes, candidates, 8, 3)


def measure_plans(options: Namespace, folder: Path, bounds: Bounds) -> Numbers:
    """``--plans`` plans in one call: of one scene, of several, and of one that is named as often."""
    found: Numbers = {}
    for name in ("pdms", "epdms"):
        metric, cache = make_metric(name), make_cache(folder / f"plans-{name}", name, 12)
        for scorer in options.scorers:
            for scenes, candidates in ((1, options.plans), (12, options.plans // 12), (options.plans, 1)):
                row = f"{name}, {scorer}, {scenes} scenes x {candidates} plans"
                print(row, flush=True)
                with choice.using(scorer):
                    found[row] = one_call(metric, cache, scenes, some_plans(name, scenes, candidates))
                print(f"  {found[row]['plans_per_cpu_s']:,.0f} plans a CPU second", flush=True)
                bounds.hold(f"{row}: peak MB beyond", found[row]["beyond_mb"], PEAK_MB)
    return found


def one_call(metric: Metric[Any], cache: MetricCache, scenes: int, plans: Tensor) -> Numbers:
    """Peak memory and CPU seconds of scoring ``plans`` in one call."""
    reward = MetricReward(metric, cache)
    tokens = reward.tokens[:scenes] if scenes <= len(reward.tokens) else reward.tokens[:1] * scenes
    reward.terms(tokens[:1], plans[:1, :2])  # packs, compiles
    before = settled()["memory_mb"]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    resident = status("VmRSS") / MB
    began = time.process_time()
    terms = reward.terms(tokens, plans)
    seconds = time.process_time() - began
    peak, given_back = status("VmHWM") / MB - resident, packed_bytes(terms) / MB
    return {
        "plans_per_cpu_s": plans.shape[0] * plans.shape[1] / seconds,
        "peak_mb": peak,
        "beyond_mb": peak - 2 * given_back - plans.nbytes / MB,
        "given_back_mb": given_back,
        "before_mb": before,
    }


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Inside, the process may have ``count`` files open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, before[0]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def measure_scenes(options: Namespace, folder: Path, bounds: Bounds) -> Numbers:
    """A cache of a tenth and of all ``--scenes``: every step's CPU seconds, open files and maps."""
    found: dict[str, Numbers] = {}
    for count in (options.scenes // 10, options.scenes):
        made = process_seconds(partial(make_cache, folder / f"scenes-{count}", "pdms", count))
        with few_descriptors(DESCRIPTORS):
            numbers = read_cache(folder / f"scenes-{count}")
        found[str(count)] = {"make": made, **numbers}
        print(f"{count} scenes in {count} logs: " + ", ".join(f"{k} {v:.4g}" for k, v in found[str(count)].items()))
        bounds.hold(f"{count} scenes: open files", numbers["open_files"], DESCRIPTORS - 1)
    few, many = found.values()
    for step in ("make", "open", "check", "read", "score"):
        bounds.hold(f"{step}: CPU seconds of tenfold scenes", many[step] / max(few[step], 0.01), TENFOLD)
    return found


def read_cache(folder: Path) -> Numbers:
    """CPU seconds of opening, checking, reading and scoring all scenes; the most open files and maps meanwhile."""
    metric, cache = make_metric("pdms"), MetricCache(folder)
    seconds = {"open": process_seconds(lambda: MetricCache(folder), times=5), "check": process_seconds(cache.verify)}
    held: list[MetricScene] = []
    seconds["read"] = process_seconds(lambda: held.extend(cache.load(cache.tokens)))
    most = [open_now()]
    plans = some_plans("pdms", len(cache), 2)

    def score() -> None:
        MetricReward(metric, cache, keep_bytes=64 << 20)(cache.tokens, plans)  # packed call by call
        MetricReward(metric, cache)(cache.tokens, plans)  # packed once

    seconds["score"] = process_seconds(score)
    most.append(open_now())
    return {**seconds, "open_files": max(m[0] for m in most), "maps": max(m[1] for m in most)}


def process_seconds(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of ``work``, the least of ``times``: what takes hundredths of a second is told from noise by it."""
    found = []
    for _ in range(times):
        gc.collect()
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


# Counts


def measure_counts(options: Namespace, folder: Path, bounds: Bounds) -> Numbers:
    """Reading a split of many tokens, and finding its scenes in many logs."""
    world = small_world(folder)
    source = next((world / "navsim_logs" / "test").glob("*.pkl"))
    frames = load_plain_pickle(source)[:14]
    found: dict[str, Numbers] = {}
    for tokens, logs in ((options.plans // 10, LOGS // 10), (options.plans, LOGS)):
        root = folder / f"counts-{logs}"
        for number in range(logs):
            mine = [{**frame, "token": f"{number:08x}{place:08x}"} for place, frame in enumerate(frames)]
            path = log_path(root, "many", f"log{number:06d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dump_plain_pickle(mine))
        listed = [f"{number:08x}{3:08x}" for number in range(tokens)]
        path = root / "many.yaml"
        path.write_text("data_split: many\nframe_interval: 1\ntokens:\n" + "".join(f"- '{t}'\n" for t in listed))
        read = process_seconds(partial(load_split, path, root), times=5)
        select = process_seconds(partial(select_scenes, load_split(path, root), root, allow_missing=True))
        found[str(tokens)] = {"read": read, "select": select}
        print(f"split of {tokens} tokens in {logs} logs: read {read:.2f}, scenes found {select:.2f} CPU s", flush=True)
    few, many = found.values()
    for step in ("read", "select"):
        bounds.hold(f"{step}: CPU seconds of tenfold tokens and logs", many[step] / max(few[step], 0.01), TENFOLD)
    return found


def small_world(folder: Path) -> Path:
    """A demo world of one log a split, with small images and without metric caches."""
    root = folder / "world"
    make_demo_world(
        DemoWorldConfig(
            root=str(root), num_train_logs=1, num_test_logs=1, log_seconds=14.0, frame_interval=1, image_width=64,
            image_height=36, metric_cache=False, workers=1, quiet=True,
        )
    )  # fmt: skip
    return root


# The loop

Turn = Callable[[], int]
"""Does some work; gives how many pieces it was."""


def scoring(name: str, scorer: choice.Scorer, folder: Path) -> Turn:
    """Opens a cache, packs its scenes and scores 24 plans in each."""
    metric, cache = make_metric(name), make_cache(folder / f"loop-{name}-{scorer}", name, 12)
    plans = some_plans(name, 12, 24)

    def turn() -> int:
        with choice.using(scorer):
            reward = MetricReward(metric, MetricCache(cache.path))
            for _ in range(1 if scorer == "torch" else 10):
                reward(reward.tokens, plans)
        return plans.shape[0] * plans.shape[1] * (1 if scorer == "torch" else 10)

    return turn


def tiny_policy(tokens: Sequence[str]) -> tuple[DPVLA, RandomScenes]:
    """A policy in miniature with DIPOLE's adapters, and random pictures for it under the given names."""
    torch.manual_seed(0)
    config = DPVLAConfig.tiny()
    policy, source = DPVLA.from_config(config), RandomScenes(tokens, config.encoder.sensors)
    assert source.whole.plan is not None
    policy.plan_coding.fit(source.whole.plan, source.whole.ego_status)
    policy.add_adapters(ADAPTERS, 4)
    return policy.eval(), source


def rolling_out(folder: Path) -> Turn:
    """Encodes 12 scenes, samples 8 plans for each and scores them."""
    cache = make_cache(folder / "loop-roll-outs", "pdms", 12)
    reward = MetricReward(make_metric("pdms"), cache)
    policy, source = tiny_policy(reward.tokens)
    algorithm, accelerator, indices = Dipole(DipoleConfig()), Accelerator(cpu=True), torch.arange(len(source))
    cycle = 0

    def turn() -> int:
        nonlocal cycle
        cycle += 1
        tokens = TokenCache(policy, source, indices, accelerator, portion=4, limit_gb=1.0)
        buffer = collect(
            algorithm, policy, tokens, source, reward, cycle=cycle, group_size=8, seed=cycle, progress=False
        )
        return int(buffer.scores["score"].numel())

    return turn


def evaluating(folder: Path) -> Turn:
    """Evaluates a tiny policy on scenes from logs and from a cache, writes the results and a picture."""
    world, out = small_world(folder), folder / "evaluation"
    split = load_split("navtest_all", world)
    cache = build_metric_cache(world, world / "maps", split, folder / "evaluated", progress=False)
    records = select_scenes(split, world)
    policy, _ = tiny_policy([record.token for record in records])
    turns = 0

    def turn() -> int:
        nonlocal turns
        turns += 1
        agent = PolicyAgent(policy, world, seed=turns, workers=1)
        load = scenes_from_cache(MetricCache(cache.path)) if turns % 2 else ScenesFromLogs(
            records, world, world / "maps"
        )  # fmt: skip
        evaluation = evaluate(agent, records, load, progress=False)
        write_evaluation(
            out, evaluation, agent="tiny", split=split, records=records, data_root=world, seed=turns, cache=cache
        )
        record = records[turns % len(records)]
        drawn = [DrawnPlan("recorded", record.plan())]
        save_scene_picture(out / "scene.png", record, load([record])[0], world, drawn, f"turn {turns}")
        return len(records)

    return turn


def updating() -> Turn:
    """Updates of the state-based DIPOLE with 2,000 random transitions of cube-single's sizes."""
    rows, numbers = 2000, torch.Generator().manual_seed(0)
    data = Transitions(
        torch.randn(rows, 28, generator=numbers), 2 * torch.rand(rows, 5, generator=numbers) - 1,
        -torch.rand(rows, generator=numbers), torch.randn(rows, 28, generator=numbers), torch.ones(rows),
        (torch.arange(rows) % 100 == 99).float(),
    )  # fmt: skip
    agent = make_agent("dipole", agent_class("dipole").Config(), 28, 5, range(1))
    replay, update, step = Replay(data, range(1)), StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig()), 0

    def turn() -> int:
        nonlocal step
        for _ in range(10):
            step += 1
            update.step(replay, step, 3e-4)
        return 10

    return turn


def measure_loop(options: Namespace, folder: Path, bounds: Bounds) -> Numbers:
    """All turns again and again; memory and rates over time."""
    turns = {
        f"{name}, {scorer}": scoring(name, scorer, folder) for name in ("pdms", "epdms") for scorer in options.scorers
    }
    turns |= {"roll-outs": rolling_out(folder), "evaluation": evaluating(folder), "updates": updating()}
    for turn in turns.values():
        turn()
    samples: list[Numbers] = []
    began = said = time.monotonic()
    while not samples or samples[-1]["seconds"] < 60 * options.minutes or len(samples) < 8:
        row: Numbers = {"rates": {}}
        for name, turn in turns.items():
            cpu = time.process_time()
            pieces = turn()
            row["rates"][name] = pieces / (time.process_time() - cpu)
        samples.append({"seconds": time.monotonic() - began, **settled(), **row})
        if time.monotonic() - said > 60 or len(samples) == 1:
            said = time.monotonic()
            last = samples[-1]
            print(
                f"{last['seconds'] / 60:6.1f} min, round {len(samples)}: {last['memory_mb']:.1f} MB of its own, "
                f"{last['resident_mb']:.1f} MB resident, {last['open_files']} files, {last['maps']} maps",
                flush=True,
            )
    verdict = judged(samples, bounds)
    return {**verdict, "samples": samples}


def judged(samples: Sequence[Numbers], bounds: Bounds) -> Numbers:
    """What became of memory, files and rates after the first quarter of the time."""
    warm = [s for s in samples if s["seconds"] >= samples[-1]["seconds"] / 4]
    growth = slope([s["seconds"] / 3600 for s in warm], [s["memory_mb"] for s in warm])
    first, last = warm[: max(1, len(warm) // 3)], warm[-max(1, len(warm) // 3) :]
    print(f"{len(samples)} rounds in {samples[-1]['seconds'] / 60:.1f} min, {len(warm)} of them after the warm-up")
    bounds.hold("memory, MB an hour", growth, GROWTH_MB)
    for what in ("open_files", "maps"):
        more = float(np.median([s[what] for s in last]) - np.median([s[what] for s in first]))
        bounds.hold(f"{what} more in the last quarter than in the second", more, 0)
    ratios = {}
    for name in samples[0]["rates"]:
        one, other = (float(np.median([s["rates"][name] for s in part])) for part in (first, last))
        ratios[name] = other / one
        bounds.hold(f"{name}: {one:,.1f} then {other:,.1f} a CPU s: slower by", one / other, 1 / RATE)
    return {"growth_mb_per_hour": growth, "rate_ratios": ratios, "rounds": len(samples)}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Median of the slopes between all pairs of (at most 400) points: single peaks do not move it."""
    every = max(1, len(x) // 400)
    points = list(zip(x[::every], y[::every]))
    return float(np.median([(d - b) / (c - a) for (a, b), (c, d) in combinations(points, 2) if c > a]))


# The process


def settled() -> Numbers:
    """Memory, open files and maps of files once what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    files, maps = open_now()
    return {
        "memory_mb": status("RssAnon") / MB,
        "resident_mb": status("VmRSS") / MB,
        "open_files": files,
        "maps": maps,
    }


def open_now() -> tuple[int, int]:
    """Open files, and files mapped."""
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    return len(list(Path("/proc/self/fd").iterdir())), len(mapped)


def status(key: str) -> int:
    """Bytes that the kernel states under this name."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Measure the parts and, if asked for, write the numbers as JSON; returns 1 where a bound is passed."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the loop")
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=SCORERS, help="what scores; see DPVLA_SCORER")
    parser.add_argument("--plans", type=int, default=100_000, help="in one call, and tokens of a split")
    parser.add_argument("--scenes", type=int, default=5_000, help="in one metric cache, a log each")
    parser.add_argument("--folder", type=Path, help="where caches and a demo world are made (200 MB), new in it; "
                        "default: the system's temporary folder")  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    if not Path("/proc/self/status").is_file():
        parser.error("needs Linux, whose /proc says what a process takes")
    for name, least in (("minutes", 0.0), ("plans", 1000), ("scenes", 10)):
        if not getattr(options, name) >= least:
            parser.error(f"--{name} must be at least {least:g}")
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder")
    if options.json:
        try:
            check_file(options.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    if "compiled" in options.scorers and (problem := choice.without_numba()):
        parser.error(f"--scorers compiled: {problem}")
    torch.set_num_threads(1)
    measures = dict(zip(PARTS, (measure_plans, measure_scenes, measure_counts, measure_loop)))
    bounds, found = Bounds(), Numbers()
    for part in PARTS:
        if part in options.parts:
            print(f"# {part}", flush=True)
            with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
                found[part] = measures[part](options, Path(temporary), bounds)
    if options.json:
        write_json(options.json, {**found, "bounds_passed": bounds.broken, "provenance": made_by(0, "cpu")})
    for broken in bounds.broken:
        print(f"bound passed: {broken}", file=sys.stderr)
    return 1 if bounds.broken else 0


if __name__ == "__main__":
    sys.exit(main())
