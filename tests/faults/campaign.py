"""The campaign: all cases by group, run side by side, and what came out."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.faults.case import CLASSES, Bench, Case, Class, Outcome
from tests.faults.groups import caches, driving, options, state_based, training, two_stage
from tests.faults.server import Server

GROUPS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "log": driving.log, "map": driving.map_, "image": driving.image, "imagecache": caches.imagecache,
    "official": caches.official, "submission": caches.submission, "cache": caches.cache, "merge": caches.merge,
    "split": driving.split, "token list": driving.token_list, "checkpoint": training.checkpoint,
    "adapter": training.adapter, "resume": training.resume_pretrain, "resume dipole": training.resume_dipole,
    "buffer": training.buffer, "tokens": training.tokens, "run directory": training.run_directory,
    "state-based resume": state_based.state_resume, "ogbench": state_based.ogbench, "exorl": state_based.exorl,
    "collector": state_based.collector, "yaml": options.yaml_, "cli": options.cli,
    "evaluation results": caches.evaluation_results, "demo world": driving.demo_world,
    "synthetic scene": two_stage.synthetic_scene, "official v2": two_stage.official_v2,
    "two-stage split": two_stage.two_stage_split,
}  # fmt: skip
"""Group to what makes its cases from pristine samples."""


class CampaignError(RuntimeError):
    """The campaign itself failed at a case."""


def all_cases(samples: Path, groups: Sequence[str] = ()) -> list[Case]:
    """Every case there is, of some groups; names differ."""
    found = [case for name, make in GROUPS.items() if not groups or name in groups for case in make(samples)]
    repeated = [title for title, count in Counter(case.title for case in found).items() if count > 1]
    assert not repeated, f"cases of the same name: {repeated[:5]}"
    return found


def chosen(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """``count`` of them, as many of a small group as of a large one as far as it has them."""
    draw = random.Random(seed)
    groups = {name: [case for case in cases if case.group == name] for name in dict.fromkeys(c.group for c in cases)}
    for group in groups.values():
        draw.shuffle(group)
    found: list[Case] = []
    while len(found) < count and any(groups.values()):
        found += [group.pop() for group in groups.values() if group]
    return found[:count]


def run(
    cases: Sequence[Case],
    folder: Path,
    servers: Sequence[Server],
    report: Callable[[Outcome], object] = lambda outcome: None,
    keep: bool = False,
) -> list[Outcome]:
    """Run cases on samples below ``folder``, on several servers; outcomes in the order of the cases."""
    benches: SimpleQueue[Bench] = SimpleQueue()
    for number, server in enumerate(servers):
        benches.put(Bench(folder / "sample", folder / f"work{number}", server, keep))
    lock = threading.Lock()

    def one(case: Case) -> Outcome:
        bench = benches.get()
        try:
            outcome = bench.run(case)
        except Exception as error:
            raise CampaignError(f"{case.title}: {type(error).__name__}: {error}") from error
        finally:
            benches.put(bench)
        with lock:
            report(outcome)
        return outcome

    with ThreadPoolExecutor(len(servers)) as threads:
        outcomes = list(threads.map(one, cases))
    if not keep:
        for number in range(len(servers)):
            shutil.rmtree(folder / f"work{number}", ignore_errors=True)
    return outcomes


def counts(outcomes: Sequence[Outcome]) -> dict[Class, int]:
    """How many ended in each class."""
    found = Counter(outcome.kind for outcome in outcomes)
    return {kind: found[kind] for kind in CLASSES}


def table(outcomes: Sequence[Outcome]) -> str:
    """Classes by group, as text."""
    groups = list(dict.fromkeys(outcome.title.partition("/")[0] for outcome in outcomes))
    lines = [f"{'group':20}{'cases':>7}" + "".join(f"{kind:>11}" for kind in CLASSES)]
    for name in (*groups, "all"):
        of_group = [o for o in outcomes if name == "all" or o.title.startswith(f"{name}/")]
        lines.append(
            f"{name:20}{len(of_group):7}" + "".join(f"{count or '':>11}" for count in counts(of_group).values())
        )
    return "\n".join(lines)


def reached(outcomes: Sequence[Outcome]) -> bool:
    """Whether the goal is: nothing silent, no hang, crash or traceback, at most 2 % unclear."""
    found = counts(outcomes)
    worst: tuple[Class, ...] = ("silent", "hang", "crash", "traceback")
    return not any(found[kind] for kind in worst) and found["unclear"] <= 0.02 * len(outcomes)
