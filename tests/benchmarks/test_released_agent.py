"""The comparison with official agents, which a second one of ours stands in for: nothing here needs JAX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpvla.state_based.agents.dipole import Dipole
from dpvla.state_based.agents.values import bootstrapped
from dpvla.state_based.networks.draws import TapeDraws
from tests.benchmarks.conftest import BENCHMARKS
from tests.dpvla.state_based.agent_of import config_of

SMALL: dict[str, Any] = {"hidden": (6, 5), "batch_size": 7}
AGENTS = ("dipole", "iql", "ifql", "fql", "rebrac", "cfgrl")


class Drawn:
    """Random numbers that are kept in the order they were asked for."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.normals: list[Tensor] = []
        self.uniforms: list[Tensor] = []

    def normal(self, *shape: int) -> Tensor:
        self.normals.append(torch.randn(shape, generator=self._generator, dtype=torch.float64))
        return self.normals[-1][None]

    def uniform(self, *shape: int) -> Tensor:
        self.uniforms.append(torch.rand(shape, generator=self._generator, dtype=torch.float64))
        return self.uniforms[-1][None]


@pytest.fixture(scope="module")
def released(load_benchmark: Callable[..., Any]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield load_benchmark("released_agent")


def job_of(released: Any, name: str, updates: int = 4, **changes: Any) -> Any:
    few = {} if name in ("iql", "rebrac") else {"flow_steps": 2}
    return released.Job(name, config_of(name, **(SMALL | few | changes)), (3, 2), updates)


def pretended(released: Any, job: Any, **changes: Any) -> Callable[[Path], None]:
    """An official side that is an agent of ours, with other hyperparameters where they are given."""
    official = released.OFFICIAL[job.name]

    def run(folder: Path) -> None:
        given = dict(np.load(folder / "given.npz"))
        twin = replace(job, config=replace(job.config, **changes)).agent()
        how = released.FollowedUpdate(twin)
        for number, batch in enumerate(job.batches()):
            drawn = Drawn(number)
            twin.loss(batch, drawn, number % twin.period)
            arrays: dict[str, Any] = {}
            if isinstance(twin, Dipole):
                value = twin.next_value(batch, TapeDraws(released.tape(drawn.normals, batch), torch.zeros(1, 0)))
                assert value is not None
                arrays["target/0"] = bootstrapped(batch, twin.config.discount, value)[0].expand(2, -1)
                tape = TapeDraws(released.tape(drawn.normals, batch), torch.zeros(1, 0))
                with torch.no_grad():
                    arrays["next_actions/0"] = twin.sample(batch.next_observations, tape, twin.config.next_omega or 0)[
                        0
                    ]
                drawn.normals[0] = drawn.normals[0][:, None]
            how.follow(batch, drawn.normals, drawn.uniforms, number)
            arrays |= {f"normal/{official.draws[place]}": drawn.normals[place] for place in range(len(official.draws))}
            arrays |= {f"uniform/{official.uniforms[p]}": drawn.uniforms[p] for p in range(len(official.uniforms))}
            all_of_them = {name: torch.zeros_like(weight) for name, weight in zip(how.names, how.parameters)}
            gradients = released.official_names(twin, all_of_them | how.gradients, official)
            arrays |= {f"gradient/{name}": array for name, array in gradients.items()}
            arrays |= {f"part/{part}": how.info[ours] for part, ours in official.losses.items()}
            np.savez(folder / f"update_{number}.npz", loss=how.info["train/loss"], **arrays)
        drawn, observations = Drawn(99), torch.from_numpy(given["observations"])
        end = {f"action/{row}": a for row, a in enumerate(twin.act(observations[None], drawn)[0])}
        end |= {f"normal/{place}": array for place, array in enumerate(drawn.normals)}
        weights = released.official_names(twin, dict(twin.named_parameters()), official)
        np.savez(folder / "end.npz", **end, **{f"weights/{name}": array for name, array in weights.items()})

    return run


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_equal_to_its_twin_in_all_that_is_compared(released: Any, name: str) -> None:
    job = job_of(released, name)
    found = released.compare(job, pretended(released, job)).largest
    assert max(difference for difference, _ in found.values()) == 0.0
    networks = {module for module in released.OFFICIAL[name].networks if "target" not in module}
    assert {f"gradient of {module}" for module in networks} <= found.keys()
    assert {f"weights of {module}" for module in released.OFFICIAL[name].networks} <= found.keys()
    assert {"loss", "actions"} <= found.keys()
    assert ({"TD targets", "actions of TD targets"} <= found.keys()) is (name == "dipole")


@pytest.mark.parametrize(
    "name, changes, expected, first",
    [
        ("dipole", {"omega": 1.0}, "actions", 4),
        ("dipole", {"next_omega": 1.0}, "TD targets", 1),
        ("dipole", {"td_targets": "one"}, "gradient of critic", 1),
        ("dipole", {"clip_advantage": False, "clip_q": False}, "gradient of actor_flow_neg", 1),
        ("dipole", {"activation": "tanh"}, "loss", 1),
        ("iql", {"target_lag": False}, "weights of target_critic", 4),
        ("iql", {"target_lag": False}, "gradient of value", 2),
        ("rebrac", {"actor_coasts": False}, "weights of actor", 4),
        ("cfgrl", {"advantage_from": "target"}, "gradient of is_positive_embedding", 1),
        ("fql", {"alpha": 9.0}, "gradient of actor_onestep_flow", 1),
        ("ifql", {"discount": 0.9}, "loss critic/loss", 1),
    ],
)
def test_what_is_not_equal_is_found_where_it_is(
    released: Any, name: str, changes: dict[str, Any], expected: str, first: int
) -> None:
    job = job_of(released, name, **({"clip_q": False} if "clip_q" in changes else {}))
    found = released.compare(job, pretended(released, job, **changes)).largest
    difference, update = found[expected]
    assert difference > 1e-7 and update >= first, found


def test_our_tensors_get_the_official_names_and_shapes(released: Any) -> None:
    job = job_of(released, "dipole")
    agent = job.agent()
    arrays = released.official_names(agent, dict(agent.named_parameters()), released.OFFICIAL["dipole"])
    assert len(arrays) == 2 * (2 * 3 + 2 * 2) + (2 * 3 + 2 * 2) + 2 * 2 * 3
    assert arrays["modules_critic/value_net/Dense_0/kernel"].shape == (2, 5, 6)
    assert arrays["modules_critic/value_net/LayerNorm_1/scale"].shape == (2, 5)
    assert arrays["modules_value/value_net/Dense_2/bias"].shape == (1,)
    negative = arrays["modules_actor_flow_neg/mlp/Dense_2/kernel"]
    assert np.array_equal(negative, agent.state_dict()["policies.final.weight"][1].numpy()) and negative.shape == (5, 2)
    assert {name for name in arrays if "actor_net" in name or "mean_net" in name} == set()


def test_cfgrls_first_layer_has_its_label_behind_the_observation_there(released: Any) -> None:
    agent = job_of(released, "cfgrl").agent()
    arrays = released.official_names(agent, dict(agent.named_parameters()), released.OFFICIAL["cfgrl"])
    ours, theirs = agent.state_dict()["policy.layers.0.weight"][0], arrays["modules_actor_flow/mlp/Dense_0/kernel"]
    s, x, t, label = torch.randn(3).double(), torch.randn(2).double(), torch.rand(1).double(), torch.randn(32).double()
    expected = torch.cat((s, x, t, label)) @ ours
    assert np.allclose(torch.cat((s, label, x, t)).numpy() @ theirs, expected.numpy())
    assert arrays["modules_is_positive_embedding/Embed_0/embedding"].shape == (3, 32)


def test_the_official_side_is_asked_for_what_our_config_says(released: Any, tmp_path: Path) -> None:
    job = job_of(released, "dipole", omega=2.0, next_omega=0.5, clip_q=False, samples=3, shift=1.0, beta=0.5)
    job.write(tmp_path, job.agent(), job.batches(), torch.zeros(4, 3))
    asked = json.loads((tmp_path / "job.json").read_text())
    assert asked["acting"] == {"cfg": 3.0} and asked["bits"] == 64 and asked["updates"] == 4
    config = asked["config"]
    assert (config["cfg_fortrain"], config["q_agg"], config["num_samples"], config["k"]) == (1.5, "mean", 3, 1.0)
    assert (config["lr"], config["value_hidden_dims"], config["batch_size"]) == (3e-4, [6, 5], 7)
    assert np.load(tmp_path / "given.npz")["batch/observations"].shape == (4, 7, 3)


def test_what_cannot_be_compared_is_no_equality(released: Any) -> None:
    found = released.Comparison()
    found.add("loss", 1.0, 1.0, 1)
    found.add("loss", np.nan, 1.0, 2)
    found.add("loss", 5.0, 1.0, 3)
    assert not found.largest["loss"][0] <= 1e-9 and found.largest["loss"][1] == 2
    with pytest.raises(ValueError, match=r"actions is \(2,\) here and \(3,\) there"):
        found.add("actions", np.zeros(2), np.zeros(3), 1)
    with pytest.raises(ValueError, match="gradient: there is no b"):
        found.add_all("gradient", {"a": np.zeros(1), "b": np.zeros(1)}, {"a": np.zeros(1)}, 1)
    large = released.Comparison()
    large.add("TD targets", np.array([1000.0, 1.0]), np.array([1000.001, 1.0]), 1)
    assert large.largest["TD targets"][0] == pytest.approx(1e-6, rel=1e-3), "of the largest number"


@pytest.mark.parametrize("difference, status", [(1e-12, 0), (1e-6, 1), (float("nan"), 1)])
def test_the_command_ends_with_1_where_something_differs_and_writes_all_down(
    released: Any, difference: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = released.Comparison({"loss": (0.0, 1), "actions": (difference, 20)})
    asked: list[tuple[str, int, int]] = []

    def compare(job: Any, run: Any) -> Any:
        asked.append((job.name, job.updates, job.config.hidden[0]))
        return made

    monkeypatch.setattr(released, "compare", compare)
    command = ["--fql-repo", "fql", "--agent-file", "dipole.py", "--json", str(tmp_path / "found.json"), "--width", "8"]
    if status:
        with pytest.raises(SystemExit, match=r"error: 5 of 10 numbers differ by more than 1e-09: dipole, iql"):
            released.main(command)
    else:
        released.main(command)
    assert asked == [("dipole", 20, 8), ("iql", 40, 8), ("ifql", 40, 8), ("fql", 40, 8), ("rebrac", 40, 8)]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["equal"] for row in rows] == [True, not status] * 5


def test_nothing_to_compare_with_is_said(released: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        released.main([])
    assert "no official code is given" in capsys.readouterr().err
