"""``--help`` and mistakes are answered at once: options are read without loading a network library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpvla.algorithms.registry import ALGORITHMS
from dpvla.encoders.registry import ENCODERS
from dpvla.registry import Registry, look_up, look_up_config
from dpvla.training.strategies.registry import STRATEGIES
from navsim_bridge.metrics.registry import METRICS
from tests.paths import ROOT

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("[a-z]*.py"))
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "timm", "peft", "accelerate", "tokenizers", "deepspeed",
         "numba", "ray", "pandas", "matplotlib", "mujoco")  # fmt: skip
"""Libraries that take from a tenth of a second to several to import."""

ASK = """
import contextlib, importlib, io, json, sys
heavy, found = {*json.loads(sys.argv[2])}, {}
for name, options in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(f"tools.{name}").main(options)
        except SystemExit as end:
            status = end.code
    found[" ".join([name, *options])] = (status, len(said.getvalue()), sorted(heavy & {*sys.modules}))
print(json.dumps(found))
"""


def asked(*calls: tuple[str, list[str]], cwd: Path) -> dict[str, tuple[int, int, list[str]]]:
    """Status, length of what was said, and heavy libraries loaded by then, after each call in one new process."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(calls), json.dumps(HEAVY)],
        cwd=cwd, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, tuple[int, int, list[str]]] = json.loads(done.stdout)
    return found


def test_the_help_of_every_tool_loads_no_network_library(tmp_path: Path) -> None:
    chosen = [
        ("pretrain", ["--model.encoder", "florence", "--help"]),
        ("evaluate", ["--metric", "epdms", "--help"]),
        ("train_state_based", ["--config", str(ROOT / "configs/state_based/protocol_cpu.yaml"), "--help"]),
    ]
    found = asked(*((name, ["--help"]) for name in TOOLS), *chosen, cwd=tmp_path)
    assert {call: (status, heavy) for call, (status, _, heavy) in found.items()} == dict.fromkeys(found, (0, []))
    assert all(length > 500 for _, length, _ in found.values())


def test_a_mistake_is_told_without_loading_a_network_library(tmp_path: Path) -> None:
    calls = [
        ("pretrain", ["--loop.steps", "many"]),
        ("rl_finetune", ["--algorithm.bata", "1"]),
        ("evaluate", ["--metric.human_filter", "off"]),
        ("reproduce", ["--table", "99"]),
    ]
    found = asked(*calls, cwd=tmp_path)
    assert {call: (status, heavy) for call, (status, _, heavy) in found.items()} == dict.fromkeys(found, (2, []))


@pytest.mark.parametrize("registry", [ENCODERS, ALGORITHMS, STRATEGIES, METRICS])
def test_the_config_that_is_read_alone_is_that_of_the_class(registry: Registry) -> None:
    assert set(registry.configs) <= set(registry)
    for name in registry.configs:
        config = look_up_config(registry, name, "thing")
        assert config is look_up(registry, name, "thing").Config
        assert config().name == name
