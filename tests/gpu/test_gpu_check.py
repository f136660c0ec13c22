"""benchmarks/gpu_check.sh on a machine without a GPU, and what it does with a part that fails."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
ENVIRONMENT = dict(os.environ) | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
OTHERS = ("pdm", "epdms", "state_based", "rl_cycle", "evaluation", "command_lines", "latency", "adapters_beside_peft",
          "pretraining", "pretraining_recomputed")  # fmt: skip
"""All but the tests, which these are, and what needs a C++ compiler and a minute."""


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *options], capture_output=True, text=True, env=ENVIRONMENT | environment)


def test_without_a_gpu_every_part_runs_at_toy_size_and_says_so(tmp_path: Path) -> None:
    done = run("--json", str(tmp_path / "check.json"), "--parts", *OTHERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU: ")
    assert done.stdout.rstrip().endswith("all parts passed")
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"] and not found["on_gpu"]
    assert {"command", "git_commit", "packages", "device"} <= found["provenance"].keys()
    parts = {part["part"]: part["numbers"] for part in found["parts"]}
    assert tuple(parts) == OTHERS
    assert parts["pdm"]["plans_per_s"] > 0 and parts["pdm"]["sub_scores_equal"] > 5000
    for name in ("pretraining", "pretraining_recomputed", "rl_cycle"):
        assert parts[name]["updates_per_s"] > 0
    assert parts["state_based"]["updates_per_s_1"] > 0 and parts["state_based"]["updates_per_s_2"] > 0
    assert parts["latency"]["all_ms"] > parts["latency"]["sample_ms"] > 0
    assert parts["adapters_beside_peft"]["largest_difference"] < 1e-4
    assert parts["pretraining"]["tflop_per_scene"] > 0 and "mfu" not in parts["pretraining"]
    assert parts["evaluation"]["scenes_per_s"] > 0 and parts["command_lines"]["evaluate_s"] > 0


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def test_a_part_that_fails_is_reported_with_its_last_line_and_the_rest_goes_on(
    gpu_check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(check: object) -> None:
        raise RuntimeError("many lines\nof which this is the last")

    def refused(check: object) -> None:
        raise SystemExit("error: no such option")

    def endless(check: object) -> None:
        time.sleep(60)

    parts = {"broken": broken, "refused": refused, "fine": lambda check: {"answer": 42}, "endless": endless}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(gpu_check, "SECONDS", 1.0)
    path = tmp_path / "new" / "check.json"
    assert gpu_check.main(["--json", str(path)]) == 1
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("FAILED: broken, refused, endless")
    outcomes = {part["part"]: part for part in json.loads(path.read_text())["parts"]}
    assert outcomes["broken"]["error"] == "of which this is the last"
    assert outcomes["refused"]["error"] == "SystemExit: error: no such option"
    assert outcomes["fine"]["ok"] and outcomes["fine"]["numbers"] == {"answer": 42}
    assert outcomes["endless"]["error"].startswith("TimeoutError: stopped after")


def test_a_difference_between_devices_is_a_failure(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    score = gpu_check.score_plans
    calls = []

    def other_on_the_second_call(*arguments: object) -> object:
        calls.append(arguments)
        scores = score(*arguments)
        if len(calls) == 2:
            scores.comfort[0] = 1 - scores.comfort[0]
        return scores

    monkeypatch.setattr(gpu_check, "score_plans", other_on_the_second_call)
    check = gpu_check.Check(gpu_check.torch.device("cpu"), gpu_check.TOY, ROOT)
    outcome = gpu_check.run_part("pdm", check, 60)
    assert not outcome.ok and "differ from the CPU's" in outcome.error


def test_operations_of_an_update_are_those_of_all_weights_whatever_parts_ran_before(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    """An RL cycle freezes the shared policy, whose update would count for less, and MFU with it."""
    before, after = (gpu_check.Check(gpu_check.torch.device("cpu"), gpu_check.TOY, tmp_path) for _ in range(2))
    after.policy.freeze_encoder()
    assert after.imitation_flops == before.imitation_flops > 0


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    done = run(WHEELS=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: WHEELS={tmp_path} holds no .whl file"


def test_packages_that_are_missing_are_named_in_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    done = run(PYTHON=str(python))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and " lacks numpy" in done.stderr and "WHEELS" in done.stderr
    assert done.stderr.count("\n") == 1
