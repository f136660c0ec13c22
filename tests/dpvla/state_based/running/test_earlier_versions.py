"""Runs that an earlier version began: they go on as they began, whatever a new run does now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpvla.manifest import renew_manifests
from dpvla.state_based.running.training_run import train_state_based
from tests.dpvla.state_based.running.test_training_run import same_weights, stopped_at, tiny

FORMER_OPTIONS = {
    "rebrac": ("target_lag=false", "actor_coasts=false"),
    "fql": ("target_lag=false",),
    "cfgrl": ("target_lag=false", "advantage_from=target", "omega=0.5"),
}
ADDED = {"target_lag", "actor_coasts", "next_omega", "next_samples", "next_choice", "td_targets", "clip_advantage",
         "clip_choice"}  # fmt: skip
"""Hyperparameters that earlier versions did not have."""


def as_an_earlier_version_left_it(run: Path, options: tuple[str, ...]) -> None:
    """Take out of a stopped run what only this version writes."""
    for path in (run / "run.yaml", *run.glob("checkpoints/*/run.yaml")):
        content = yaml.safe_load(path.read_text())
        assert content["config"].pop("reading")
        content["config"]["options"] = list(options)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    for folder in run.glob("checkpoints/*/model"):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["config"] = {name: value for name, value in content["config"].items() if name not in ADDED}
        path.write_text(json.dumps(content))
        renew_manifests(folder)
        renew_manifests(folder.parent)


@pytest.mark.parametrize("agent", ["dipole", "rebrac", "fql", "cfgrl"])
def test_a_run_of_an_earlier_version_goes_on_as_it_began_and_says_so(
    agent: str, data: Path, tmp_path: Path, short_episodes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    common = tiny(data, tmp_path).options if agent != "rebrac" else ("batch_size=32",)
    formerly = (*common, *FORMER_OPTIONS.get(agent, ()))
    changes: dict[str, Any] = {"agent": agent, "reading": "paper", "options": formerly}
    straight = train_state_based(tiny(data, tmp_path / "straight", **changes))
    stopped_at(tiny(data, tmp_path / "stopped", **changes), 5)
    as_an_earlier_version_left_it(tmp_path / "stopped", common)
    capfd.readouterr()
    result = train_state_based(tiny(data, tmp_path / "stopped", agent=agent, options=common))
    same_weights(tmp_path / "straight/checkpoints/step_00000012", tmp_path / "stopped/checkpoints/step_00000012")
    said = capfd.readouterr()
    assert "reading stays 'paper', as an earlier version began this run; a new one has 'release'" in said.out
    for option in FORMER_OPTIONS.get(agent, ()):
        assert f"{option.partition('=')[0]} stays " in said.err
    assert result["hyperparameters"] == straight["hyperparameters"]
    assert (result["config"]["reading"], result["success"]) == ("paper", straight["success"])
    theirs = [line for line in result["deviations_from_the_paper"] if line.startswith(f"{agent}: ")]
    assert theirs and theirs == [d for d in straight["deviations_from_the_paper"] if d.startswith(f"{agent}: ")]
