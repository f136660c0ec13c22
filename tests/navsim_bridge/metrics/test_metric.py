"""What a metric says of itself, and where it is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dpvla.registry import ContractError, RegistryError
from navsim_bridge.agents import constant_velocity, stand_still
from navsim_bridge.evaluation.metric_scenes import ScenesFromLogs, recorded_scenes
from navsim_bridge.evaluation.run import evaluate
from navsim_bridge.human_filter import HumanFilter
from navsim_bridge.metric_cache import build_scenes
from navsim_bridge.metrics.config import EPDMSConfig
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.registry import METRICS, make_metric
from navsim_bridge.metrics.reward import MetricReward, packed_bytes
from navsim_bridge.metrics.scene_rules import NAVSIM_V2
from navsim_bridge.metrics.scenes import RecordedPlans, RecordedScenes
from navsim_bridge.pdm.formula import Column, total
from navsim_bridge.splits.scene_filter import SceneFilter, Split
from navsim_bridge.splits.scenes import SceneRecord, select_scenes
from tests.navsim_bridge.conftest import World
from tests.paths import ROOT


@dataclasses.dataclass(frozen=True)
class Ends:
    """Terms of `Straightness`."""

    off: torch.Tensor


class Straightness(Metric[Any]):
    """A metric that its summary does not make from means, of the recording alone."""

    Config = EPDMSConfig
    version = "straight or not"
    columns = (Column("off", "OFF", "meters to the side", unit="m"), Column("score", "S", "minus that"))
    average_row = "worst"

    def pack(self, scenes: Sequence[SceneRecord]) -> RecordedPlans:
        return RecordedPlans.of(scenes)

    def terms(self, scenes: RecordedPlans, plans: torch.Tensor) -> Ends:
        return Ends((plans[..., -1, 1] - scenes.plans[:, None, -1, 1]).abs())

    def values(self, terms: Ends) -> dict[str, torch.Tensor]:
        return {"off": terms.off, "score": -terms.off}

    def finish(self, records: Sequence[SceneRecord], terms: Ends) -> Any:
        found = self.means(self.values(terms))
        return dataclasses.replace(found, summary={"off": found.rows[:, 0].max(), "score": found.rows[:, 1].min()})


def legend() -> str:
    """The README's table of labels."""

    def counts_for(column: Column | None) -> str:
        if column is None:
            return ""
        return "multiplier" if column.multiplies else f"weight {column.weight:g}" if column.weight else "no weight"

    metrics: list[Metric[Any]] = [PDMS(), EPDMS()]
    of_label = {column.label: column for metric in metrics for column in metric.columns[:-1]}
    lines = ["| label | meaning | in PDMS | in EPDMS |", "|---|---|---|---|"]
    for label, column in of_label.items():
        found = [next((c for c in metric.columns if c.label == label), None) for metric in metrics]
        lines.append(f"| {label} | {column.meaning} | {' | '.join(map(counts_for, found))} |")
    return "\n".join(lines)


def test_the_readme_explains_every_label_as_the_metrics_do() -> None:
    assert legend() in (ROOT / "README.md").read_text(encoding="utf-8"), f"put this into README.md:\n{legend()}"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_ours_keeps_the_contract(name: str) -> None:
    metric = make_metric(name)
    assert metric.config.name == name and metric.columns[-1].name == "score"
    for of in ("name", "label", "meaning"):
        assert len({getattr(column, of) for column in metric.columns}) == len(metric.columns)
    assert metric.about["name"] == metric.version and metric.scene_rules is not None


def test_an_unknown_metric_is_told_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match="unknown metric 'epdm'; nearest valid name: 'epdms'"):
        make_metric("epdm")


def test_the_total_is_multipliers_times_the_mean_of_what_has_weight() -> None:
    columns = (
        Column("a", "A", "", multiplies=True),
        Column("b", "B", "", weight=3.0),
        Column("c", "C", "", weight=1.0, optional=True),
        Column("d", "D", ""),
    )
    values = {"a": torch.tensor([0.5, 1.0]), "b": torch.tensor([1.0, 0.0]), "c": torch.tensor([torch.nan, 1.0])}
    assert total(columns, values).tolist() == [0.5, 0.25]
    assert total(columns, {"a": values["a"], "b": values["b"]}).tolist() == [0.5, 0.0]
    assert total(columns[:1], values).tolist() == [0.5, 1.0]
    with pytest.raises(KeyError, match="b"):
        total(columns, {"a": values["a"]})


def test_a_plan_is_noted_with_what_it_lost() -> None:
    full = {column.name: 1.0 for column in PDMS.columns}
    assert PDMS().note(full) == "PDMS 1.00"
    lost = full | {"drivable_area_compliance": 0.0, "ego_progress": 0.876, "score": 0.42}
    assert PDMS().note(lost | {"driving_direction_compliance": 0.0}) == "PDMS 0.42 (DAC 0, EP 0.88)"


@pytest.fixture(scope="module")
def records(world: World) -> list[SceneRecord]:
    rules = SceneFilter(num_history_frames=4, num_future_frames=10, frame_interval=1, max_scenes=6)
    return select_scenes(Split("adjacent", "mini", rules), world.root)


@dataclasses.dataclass(frozen=True)
class Built:
    """Metric scenes in memory."""

    by_token: dict[str, Any]

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self.by_token)

    def require(self, tokens: Sequence[str]) -> None:
        assert set(tokens) <= self.by_token.keys()

    def load(self, tokens: Sequence[str]) -> list[Any]:
        return [self.by_token[token] for token in tokens]


@pytest.mark.parametrize("human_filter", ["v2.1.2", "fixed"])
def test_epdms_as_a_reward_is_its_evaluation_of_scenes_without_a_frame_before_them(
    world: World, records: list[SceneRecord], human_filter: HumanFilter
) -> None:
    metric = EPDMS(EPDMSConfig(human_filter=human_filter))
    built = {scene.token: scene for scene in build_scenes(records, world.root, world.maps, NAVSIM_V2)}
    reward = MetricReward(metric, Built(built))
    apart = records[::2]  # no two follow each other
    plans = np.stack([constant_velocity(apart), stand_still(apart)], axis=1)
    scores = reward([r.token for r in apart], plans)
    assert tuple(scores) == tuple(name for name in metric.values(reward.terms([r.token for r in apart], plans))
                                  if name != "two_frame_extended_comfort")  # fmt: skip
    load = ScenesFromLogs(records, world.root, world.maps, NAVSIM_V2)
    for candidate, agent in enumerate((constant_velocity, stand_still)):
        expected = evaluate(agent, apart, load, metric=metric, progress=False)
        assert np.isnan(expected.values[:, expected.columns.index("two_frame_extended_comfort")]).all()
        for column, name in enumerate(expected.columns):
            if name in scores:
                np.testing.assert_allclose(scores[name][:, candidate], expected.values[:, column], rtol=0, atol=1e-12)
    assert all(values.dtype == torch.float64 and values.shape == (3, 2) for values in scores.values())


def test_an_evaluation_says_what_the_metric_makes_of_all_scenes(world: World) -> None:
    found = evaluate(stand_still, world.records, recorded_scenes, metric=Straightness(), progress=False)
    assert found.averages == {"off": found.values[:, 0].max(), "score": found.values[:, 1].min()}
    last = found.to_csv().splitlines()[-1].split(",")
    assert last[:2] == ["worst", "True"] and float(last[2]) == found.averages["off"]


def test_a_part_of_an_evaluation_is_that_of_the_part(world: World) -> None:
    def sometimes(some: Sequence[SceneRecord]) -> Any:
        if any(r.token == world.records[3].token for r in some):
            raise ValueError("no plan")
        return constant_velocity(some)

    tokens = [r.token for r in world.records[2:6]]
    options: dict[str, Any] = {"metric": Straightness(), "progress": False, "allow_failures": True}
    whole = evaluate(sometimes, world.records, recorded_scenes, **options).restricted(tokens)
    part = evaluate(sometimes, world.records[2:6], recorded_scenes, **options)
    assert whole.to_csv() == part.to_csv() and whole.about == part.about and whole.failures == part.failures
    assert whole.valid.tolist() == [True, False, True, True]


def test_scenes_that_were_not_opened_are_told(world: World) -> None:
    scenes = RecordedScenes(world.records[:2])
    reward = MetricReward(Straightness(), scenes)
    assert reward.tokens == scenes.tokens
    with pytest.raises(ValueError, match="1 of 1 scenes are not among those opened, first beef"):
        reward(["beef"], np.zeros((1, 1, 8, 3)))
    with pytest.raises(ValueError, match=r"plan of scene '.*', candidate 1 holds NaN"):
        reward(scenes.tokens[:1], np.array([0.0, np.nan])[None, :, None, None] * np.ones((1, 2, 8, 3)))


def test_the_memory_of_packed_scenes_counts_those_inside(world: World, records: list[SceneRecord]) -> None:
    packed = EPDMS().pack(list(build_scenes(records[:2], world.root, world.maps, NAVSIM_V2)))
    assert packed_bytes(packed) > packed_bytes(packed.scenes) > packed.scenes.object_boxes.nbytes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "column 'off' is missing"),
        ({"off": torch.zeros(2, 3)}, "column 'score' is missing"),
        ({"off": torch.zeros(2), "score": torch.zeros(2, 3)}, r"column 'off' is \(2,\), not .* = \(2, 3\)"),
        ({"off": 3.0, "score": torch.zeros(2, 3)}, r"column 'off' is \(\)"),
    ],
)
def test_values_that_lack_a_column_or_have_another_shape_are_told(
    values: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Straightness()
    monkeypatch.setattr(metric, "values", lambda terms: values)
    with pytest.raises(ContractError, match=f"^metric epdms: values: {message}"):
        metric.columns_of(Ends(torch.zeros(2, 3)), 2, 3)


def test_columns_end_with_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ((), Straightness.columns[::-1], (*Straightness.columns, Straightness.columns[1])):
        monkeypatch.setitem(METRICS, "odd", type("Odd", (Straightness,), {"columns": columns}))
        with pytest.raises(ContractError, match="metric odd: columns need names that differ, and score as the last"):
            make_metric("odd")
        monkeypatch.delitem(METRICS, "odd")


def test_a_reward_that_is_no_number_and_terms_that_are_no_dataclass_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = world.records[:2]
    reward = MetricReward(Straightness(), RecordedScenes(records))
    tokens, plans = [r.token for r in records], torch.zeros(2, 3, 8, 3, dtype=torch.float64)
    off = torch.zeros(2, 3, dtype=torch.float64)
    score = off.clone()
    score[1, 2] = float("nan")
    monkeypatch.setattr(reward.metric, "values", lambda terms: {"off": off, "score": score})
    with pytest.raises(ContractError, match=f"1 scenes got a score that is not finite, first {tokens[1]}"):
        reward(tokens, plans)
    monkeypatch.setattr(reward.metric, "terms", lambda scenes, plans: {})
    with pytest.raises(ContractError, match="terms gives a dict, not a dataclass of tensors"):
        reward(tokens, plans)


def test_a_metric_that_knows_one_sampling_alone_refuses_others() -> None:
    with pytest.raises(ValueError, match=r"metric epdms scores plans of 8 poses, 0\.5 s apart, and no others"):
        Straightness().sampled_every(0.1)
