"""The load benchmark: what it measures, and that it tells growth from noise."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from navsim_bridge.metrics.pdms import PDMS
from tests.paths import OPEN_FILES, ROOT

pytestmark = pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="there is no list of open files")


@pytest.fixture(scope="module")
def load(load_benchmark: Callable[..., Any]) -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT / "benchmarks")
        return load_benchmark("load")  # type: ignore[no-any-return]


def samples(**changes: Callable[[float], float]) -> list[dict[str, Any]]:
    """Of an hour, a minute apart, with noise and single peaks; ``changes``: what a value is at an hour."""
    rng = np.random.default_rng(0)
    found = []
    for minute in range(61):
        hour = minute / 60
        values = {"memory_mb": 600.0, "open_files": 20.0, "maps": 900.0, "rate": 100.0}
        values |= {name: change(hour) for name, change in changes.items()}
        values["memory_mb"] += rng.normal(0, 2) + 300 * (minute % 17 == 5)
        rates = {"scoring": values.pop("rate") * rng.uniform(0.9, 1.1)}
        found.append({"seconds": 3600 * hour, "rates": rates, **values})
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"memory_mb": lambda hour: 600 + 300 * min(hour, 0.2)}, []),  # it warms up
        ({"memory_mb": lambda hour: 600 + 60 * hour}, ["memory, MB an hour"]),
        ({"open_files": lambda hour: 20 + round(10 * hour)}, ["open_files more"]),
        ({"maps": lambda hour: 900 + round(40 * hour)}, ["maps more"]),
        ({"rate": lambda hour: 100 - 60 * hour}, ["scoring: "]),
    ],
)
def test_growth_and_slowing_are_told_from_noise_and_warming_up(
    load: ModuleType, changes: dict[str, Callable[[float], float]], said: list[str]
) -> None:
    bounds = load.Bounds()
    load.judged(samples(**changes), bounds)
    assert len(bounds.broken) == len(said)
    assert all(found.startswith(begins) for found, begins in zip(bounds.broken, said))


def test_a_cache_of_many_logs_is_read_with_few_descriptors(
    load: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    load.make_cache(tmp_path / "cache", "pdms", 80)
    room = len(list(OPEN_FILES.iterdir())) + 50  # libraries open some of their own
    with load.few_descriptors(room):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == room
        numbers = load.read_cache(tmp_path / "cache")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit
    assert 0 < numbers["open_files"] <= room and all(numbers[step] > 0 for step in ("check", "read", "score"))


def test_a_call_is_measured_beyond_what_it_is_given_and_gives(load: ModuleType, tmp_path: Path) -> None:
    cache = load.make_cache(tmp_path / "cache", "pdms", 2)
    numbers = load.one_call(PDMS(), cache, 1, load.some_plans("pdms", 1, 40))
    assert numbers["plans_per_cpu_s"] > 0 and 0 <= numbers["given_back_mb"] < 1
    assert numbers["beyond_mb"] < load.PEAK_MB


def test_a_passed_bound_is_the_exit_status(
    load: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, status in ((1.0, 0), (3.0, 1)):
        monkeypatch.setattr(load, "measure_counts", lambda _, __, bounds, value=value: bounds.hold("it", value, 2.0))
        assert load.main(["--parts", "counts", "--scorers", "torch"]) == status
    assert capsys.readouterr().err == "bound passed: it: 3 is more than 2\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "nan"], "--minutes must be at least 0"),
        (["--plans", "-1"], "--plans must be at least 1000"),
        (["--folder", "/nowhere"], "--folder: /nowhere is no folder"),
    ],
)
def test_wrong_options_are_told_first(
    load: ModuleType, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        load.main(options)
    assert said in capsys.readouterr().err
