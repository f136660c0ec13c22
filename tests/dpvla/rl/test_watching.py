"""What is watched: measures of plans, alarms against the pretrained policy, and that watching changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import ADAPTERS, Dipole
from dpvla.batch import Scores
from dpvla.models import DPVLA
from dpvla.models.adapters import adaptable_layers, update_sizes
from dpvla.registry import ContractError
from dpvla.rl.checks import check_weights
from dpvla.rl.config import RolloutConfig, WatchConfig
from dpvla.rl.means import Means
from dpvla.rl.measures import displacement, effective_share, pairwise_distance, reverses, stands_still
from dpvla.rl.stage import RolloutStage
from dpvla.rl.watching import Watch, Watched
from dpvla.training.loop import train
from tests.dpvla.training.test_resume import LOOP, assert_same_files, describe, rows
from tests.gpu.tiny_driving import make_policy
from tests.scenes_in_memory import prefer_left


def straight(steps: Sequence[float], heading: float = 0.0) -> Tensor:
    """A plan (8, 3) that goes so many meters along ``heading`` from pose to pose."""
    along = torch.tensor(steps).cumsum(0)
    return torch.stack([along * math.cos(heading), along * math.sin(heading), torch.full((8,), heading)], dim=-1)


@given(st.floats(-3, 3), st.floats(0.05, 3))
def test_a_plan_reverses_where_its_last_step_goes_backwards_along_its_own_heading(heading: float, back: float) -> None:
    ahead, reversing = straight([1.0] * 8, heading), straight([1.0] * 7 + [-back], heading)
    found = reverses(torch.stack([ahead, reversing]), speed=0.1)
    assert found.tolist() == [False, back > 0.05 + 1e-6] or abs(back - 0.05) < 1e-4
    assert not reverses(reversing, speed=2 * back + 0.01)


@given(st.lists(st.floats(-2, 2), min_size=8, max_size=8), st.floats(0.1, 5))
def test_a_plan_stands_still_by_its_way_and_not_by_where_it_ends(steps: list[float], meters: float) -> None:
    way = float(torch.tensor(steps).abs().sum())
    if abs(way - meters) > 1e-3:
        assert bool(stands_still(straight(steps, 0.4), meters)) == (way < meters)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_distances_are_those_of_loops_over_pairs(scenes: int, candidates: int, seed: int) -> None:
    plans = torch.randn(scenes, candidates, 8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = [(i, j) for i in range(candidates) for j in range(candidates) if i != j]
    for scene, found in zip(plans, pairwise_distance(plans)):
        apart = [float((scene[i, :, :2] - scene[j, :, :2]).norm(dim=-1).mean()) for i, j in pairs]
        assert float(found) == pytest.approx(sum(apart) / len(apart) if apart else 0.0)
    moved = plans + torch.tensor([3.0, 4.0, 1.0])
    torch.testing.assert_close(displacement(plans, moved), torch.full((scenes, candidates), 5.0, dtype=torch.float64))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_effective_share_lies_between_one_of_all_and_all_whatever_the_scale(
    weights: list[float], scale: float
) -> None:
    found = effective_share(torch.tensor(weights, dtype=torch.float64))
    if not any(weight > 1e-100 for weight in weights):
        return
    assert 1 / len(weights) - 1e-9 <= found <= 1 + 1e-9
    assert effective_share(torch.tensor(weights, dtype=torch.float64) * scale) == pytest.approx(found)


def test_equal_weights_are_worth_all_plans_and_one_weight_is_worth_one() -> None:
    assert effective_share(torch.full((3, 4), 0.5)) == pytest.approx(1)
    assert effective_share(torch.tensor([[0.0, 0, 7, 0]])) == 0.25
    assert effective_share(torch.zeros(2, 2)) == 0


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_weights_of_dipole_are_those_of_its_loss(beta: float) -> None:
    algorithm, scores = Dipole(DipoleConfig(beta=beta)), torch.rand(4, 6, dtype=torch.float64)
    weights = algorithm.weights(algorithm.targets({"score": scores}, {}))
    assert tuple(weights) == ADAPTERS
    torch.testing.assert_close(weights["positive"] + weights["negative"], torch.ones(4, 6))
    sizes = [effective_share(value) for value in weights.values()]
    assert sizes == [1.0, 1.0] if beta == 0 else all(0.4 < size < 0.99 for size in sizes)


@pytest.mark.parametrize("given_", [torch.ones(2, 3, 1), -torch.ones(2, 3), torch.full((2, 3), math.nan), 1.0])
def test_weights_that_cannot_be_are_the_fault_of_their_algorithm(given_: object) -> None:
    with pytest.raises(ContractError, match="algorithm dipole: weights gave"):
        check_weights(Dipole(DipoleConfig()), {"positive": given_}, 2, 3)


def test_the_size_of_an_update_is_that_of_its_matrix() -> None:
    policy, _ = make_policy()
    layers = [*adaptable_layers(policy.head).values()]
    weights = norm([layer.weight for layer in layers])
    expected = {}
    for index, name in enumerate(ADAPTERS):
        pairs = [(layer.adapter_scale, *layer.stacked((index,))) for layer in layers]
        expected[name] = norm([scale * up[0] @ down[0] for scale, down, up in pairs]) / weights
    assert update_sizes(policy.head) == pytest.approx(expected, rel=1e-5)


def norm(matrices: Sequence[Tensor]) -> float:
    return sum(float(matrix.detach().double().square().sum()) for matrix in matrices) ** 0.5


def comfort(tokens: Sequence[str], plans: Tensor) -> Scores:
    """A metric that finds every plan comfortable that does not go far to the left."""
    return {"comfort": (plans[:, :, -1, 1] < 2).double(), "score": plans[:, :, -1, 0].double()}


def make_stage(watch: Mapping[str, object] | None, cycles: int = 2) -> RolloutStage:
    policy, source = make_policy()
    with torch.no_grad():
        policy.merge_adapters()
    torch.manual_seed(3)
    policy.add_adapters(ADAPTERS, 4)
    accelerator = Accelerator(cpu=True)
    config = RolloutConfig(group_size=3, cycles=cycles, epochs_per_cycle=2, batch_size=4, scenes_per_call=4)
    looker = None
    if watch is not None:
        watched = Watched({"other": comfort}, ("comfort",))
        looker = Watch(WatchConfig(**watch), watched, accelerator, 7)  # type: ignore[arg-type]
    return RolloutStage(policy, Dipole(DipoleConfig()), source, prefer_left, config, accelerator, 7, None, describe,
                        watch=looker)  # fmt: skip


def first_values(stage: RolloutStage) -> dict[str, float]:
    tracked: list[dict[str, float]] = []
    next(stage.batches(0, lambda step, values: tracked.append(dict(values)), nullcontext))
    return tracked[0]


def test_a_policy_that_has_not_moved_is_no_distance_from_the_pretrained_one_and_raises_no_alarm() -> None:
    found = first_values(make_stage({}))
    assert found["rollout/from_pretrained_m"] == pytest.approx(0, abs=1e-5)
    assert found["rl/update_size_positive"] == found["rl/update_size_negative"] == 0
    alarms = {name: value for name, value in found.items() if name.startswith("alarm/")}
    assert alarms == dict.fromkeys(("alarm/reversing", "alarm/standing", "alarm/alike", "alarm/other/comfort_lost"), 0)
    assert {"rollout/other/score", "rollout/other/comfort", "rollout/pairwise_distance_m", "rl/ess_positive",
            "speed/encode_s", "speed/sample_s", "speed/score_s", "speed/watch_s"} <= found.keys()  # fmt: skip


def always(policy: DPVLA, plan: Tensor) -> None:
    """Have every adapter plan this; the head without any plans as before."""
    plain = policy.sample

    def sample(context: object, count: int, *rest: object, **more: object) -> Tensor:
        made = plain(context, count, *rest, **more)  # type: ignore[arg-type]
        sampling = more.get("sampling") or policy.sampling
        return made if sampling.policies == (None,) else plan.expand_as(made)  # type: ignore[attr-defined]

    policy.sample = sample  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("plan", "raised"),
    [
        (straight([1.0] * 7 + [-2.0]), {"reversing", "alike"}),
        (torch.zeros(8, 3), {"standing", "alike"}),
        (straight([1.0] * 8, 1.5), {"other/comfort_lost", "alike"}),
    ],
)
def test_what_the_pretrained_policy_does_not_do_is_an_alarm_and_is_said_once(
    plan: Tensor, raised: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stage = make_stage({"fall": 0.2})
    stage.algorithm = Dipole(DipoleConfig(beta=0.0))  # learns from no reward: this one tells none of these plans apart
    with torch.no_grad():  # the pretrained policy goes to the right and ahead, as far as it can be told
        stage.policy.plan_coding.mean += torch.tensor([5.0, -3.0, 0, 0])
    always(stage.policy, plan)
    for cycle in range(2):
        _, values = stage._roll_out(cycle)
        found = {name.removeprefix("alarm/") for name, value in values.items() if name.startswith("alarm/") and value}
        assert found == raised
        assert values["rollout/from_pretrained_m"] > 1
    said = capsys.readouterr().out
    assert all(said.count(f"ALARM {alarm} in cycle 1") == 1 for alarm in raised) and said.count("ALARM") == len(raised)


def test_nothing_is_compared_where_nothing_is_asked_for() -> None:
    found = first_values(make_stage({"scenes": 0}))
    assert not [name for name in found if name.startswith("alarm/")] and "rollout/from_pretrained_m" not in found
    assert "rollout/reversing" in found


def test_a_run_that_is_watched_ends_bit_for_bit_as_one_that_is_not(tmp_path: Path) -> None:
    ends = []
    for name, watch in (("seen", {"scenes": 3}), ("unseen", None)):
        stage = make_stage(watch)
        ends.append(train(stage, replace(LOOP, steps=stage.steps), tmp_path / name, stage.accelerator))
    assert_same_files(*ends)
    logged = rows(tmp_path / "seen")
    assert [row["step"] for row in logged if row["rollout/other/score"]] == ["0", "4"]


def test_means_are_over_all_that_was_added() -> None:
    means = Means()
    means.add("a", torch.tensor([1.0, 2.0]))
    means.add("b", torch.tensor([True, False]))
    means.add("a", torch.tensor([[6.0]]))
    assert means.over_processes(Accelerator(cpu=True)) == {"a": 3.0, "b": 0.5}
