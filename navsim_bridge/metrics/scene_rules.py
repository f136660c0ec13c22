"""What metric scenes hold: rules of the devkit's metric caching, which a metric names and the metric cache obeys."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from navsim_bridge.files.logs import Log
from navsim_bridge.files.maps import VectorMap
from navsim_bridge.metrics.epdms_inputs import KEY_FRAMES, epdms_inputs
from navsim_bridge.pdm.metric_scene import NUM_FRAMES, EPDMSInputs
from navsim_bridge.pdm_closed.planner import Version
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.traffic.log_replay import STEPS


@dataclass(frozen=True)
class SceneRules:
    """How the metric scenes of one metric, or of several, are made from logs and maps.

    Worker processes get the rules: what is called in them must be importable by its name, not a lambda.
    """

    key: str  # tells their scenes from others in hashes
    name: str  # what a cache says that its scenes are for
    reference: str  # the reference plan, in words
    planner: Version  # the version of PDM-Closed that plans it
    key_frames: int  # annotated frames from t = 0 on, 0.5 s apart, that objects are interpolated between
    inputs: Callable[[Log, VectorMap, SceneRecord, Collection[str]], EPDMSInputs] | None = None  # ``MetricScene.v2``
    suffix: str = ""  # of a split's name, where the cache of the split is kept beside those of others


NAVSIM_V1 = SceneRules(
    key="pdms",
    name="PDMS v1 (navsim 1.1)",
    reference="PDM-Closed (navsim 1.1)",
    planner="v1",
    key_frames=(NUM_FRAMES - 1) // STEPS + 1,
)
NAVSIM_V2 = SceneRules(
    key="epdms",
    name="EPDMS v2 (navsim 2.1.2, one stage, non-reactive traffic)",
    reference="PDM-Closed (navsim 2.1.2)",
    planner="v2",
    key_frames=KEY_FRAMES,
    inputs=epdms_inputs,
    suffix="-epdms",
)
