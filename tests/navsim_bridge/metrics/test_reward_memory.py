"""A reward packs a scene once, also where its scenes do not all fit at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from navsim_bridge.golden.v1 import read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metrics import reward
from navsim_bridge.metrics.epdms import EPDMS
from navsim_bridge.metrics.metric import Metric
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.reward import MetricReward, packed_bytes
from navsim_bridge.pdm import chunks
from navsim_bridge.pdm.compiled import choice
from tests.paths import GOLDEN_V1, GOLDEN_V2


class Scenes:
    """As much of a metric cache as a reward asks for; counts what is loaded."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._scenes = {file.scene.token: file.scene for file in files}
        self.tokens = tuple(self._scenes)
        self.loaded: list[str] = []

    def load(self, tokens: Sequence[str]) -> list[Any]:
        self.loaded += tokens
        return [self._scenes[token] for token in tokens]

    def require(self, tokens: Sequence[str]) -> None: ...


def files_of(metric: Metric[Any]) -> list[Any]:
    """Six scenes of different sizes."""
    if isinstance(metric, PDMS):
        return [read_golden(path) for path in sorted(GOLDEN_V1.glob("*.npz"))[::7]]
    return [read_golden_epdms(path) for path in sorted(GOLDEN_V2.glob("*.npz"))[::2]]


@pytest.mark.parametrize("metric", [PDMS(), EPDMS()], ids=["pdms", "epdms"])
def test_scenes_of_several_calls_are_put_together_as_if_packed_together(metric: Metric[Any]) -> None:
    files = files_of(metric)
    scenes = Scenes(files)
    plans = {file.scene.token: torch.from_numpy(file.proposals[:3]) for file in files}
    kept = MetricReward(metric, scenes, keep_bytes=packed_bytes(metric.pack(scenes.load(scenes.tokens))) - 1)
    kept(scenes.tokens[4:], torch.stack([plans[token] for token in scenes.tokens[4:]]))
    scenes.loaded.clear()
    kept(scenes.tokens[:2], torch.stack([plans[token] for token in scenes.tokens[:2]]))
    assert scenes.loaded == list(scenes.tokens[:2])
    order = [scenes.tokens[i] for i in (5, 0, 2, 0, 4, 1)]
    scores = kept(order, torch.stack([plans[token] for token in order]))
    assert scenes.loaded == list(scenes.tokens[:3])
    for row, token in enumerate(order):
        expected = MetricReward(metric, Scenes(files), keep_bytes=0)([token], plans[token][None])
        for name, value in expected.items():
            torch.testing.assert_close(scores[name][row], value[0], rtol=0, atol=1e-12, msg=name)


def test_what_does_not_fit_is_packed_for_each_call() -> None:
    files = files_of(PDMS())
    scenes = Scenes(files)
    one = packed_bytes(PDMS().pack([files[0].scene]))
    kept = MetricReward(PDMS(), scenes, keep_bytes=one)
    plans = torch.from_numpy(np.stack([file.proposals[:2] for file in files]))
    kept(scenes.tokens[:1], plans[:1])
    scenes.loaded.clear()
    for _ in range(2):
        kept(scenes.tokens[:2], plans[:2])
    assert scenes.loaded == [scenes.tokens[1]] * 2


@pytest.mark.parametrize("metric", [PDMS(), EPDMS()], ids=["pdms", "epdms"])
def test_a_scene_that_a_call_names_often_is_not_there_as_often(
    metric: Metric[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(metric)
    whole = MetricReward(metric, Scenes(files))
    tokens = [token for token in whole.tokens for _ in range(5)]
    plans = torch.stack([torch.from_numpy(file.proposals[i : i + 2]) for file in files for i in range(5)])
    expected = whole(tokens, plans)
    sizes: list[int] = []
    select = type(metric.pack([files[0].scene])).select

    def noted(packed: Any, index: Any) -> Any:
        sizes.append(len(index))
        return select(packed, index)

    monkeypatch.setattr(type(metric.pack([files[0].scene])), "select", noted)
    monkeypatch.setattr(reward, "_AT_ONCE", 4 * whole._scene_bytes)
    monkeypatch.setattr(chunks, "_PLANS_IN_FLIGHT", dict.fromkeys(chunks._PLANS_IN_FLIGHT, 1000))
    scores = MetricReward(metric, Scenes(files))(tokens, plans)
    assert len(tokens) == 30 and sizes == [4] * 7 + [2]
    for name, value in expected.items():
        assert torch.equal(scores[name].nan_to_num(-1), value.nan_to_num(-1)), name
    for wrong in (plans[:-1], plans[:, 0]):
        with pytest.raises(ValueError, match=r"plans must have shape .* with 30 scenes"):
            whole(tokens, wrong)


@pytest.mark.parametrize("metric", [PDMS(), EPDMS()], ids=["pdms", "epdms"])
@pytest.mark.parametrize("scorer", ["torch", "compiled"])
def test_no_candidate_has_no_score_and_no_scene_is_refused(
    metric: Metric[Any], scorer: choice.Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scorer == "compiled":
        pytest.importorskip("numba")
    files = files_of(metric)
    with choice.using(scorer):
        scores = MetricReward(metric, Scenes(files))([files[0].scene.token] * 2, torch.zeros(2, 0, 8, 3))
        assert {tuple(value.shape) for value in scores.values()} == {(2, 0)}
        with pytest.raises(ValueError, match="there are no scenes to score"):
            MetricReward(metric, Scenes(files))([], torch.zeros(0, 3, 8, 3))
