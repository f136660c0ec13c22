"""The PDM score with other weights, in scenes of its own kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

from navsim_bridge.files.logs import Log
from navsim_bridge.files.maps import VectorMap
from navsim_bridge.metrics.config import MetricConfig
from navsim_bridge.metrics.epdms_inputs import epdms_inputs
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.registry import METRICS
from navsim_bridge.metrics.scene_rules import NAVSIM_V1
from navsim_bridge.pdm.metric_scene import EPDMSInputs
from navsim_bridge.splits.scenes import SceneRecord


@dataclass(frozen=True)
class BraveConfig(MetricConfig):
    """It has no options."""

    name: str = "brave"  # its name


def inputs(log: Log, vector_map: VectorMap, record: SceneRecord, lanes: Collection[str]) -> EPDMSInputs:
    """What its scenes hold beside those of PDMS; worker processes find it by its name."""
    return epdms_inputs(log, vector_map, record, lanes)


class Brave(PDMS):
    """Progress is all that has a weight."""

    Config = BraveConfig
    version = "PDMS for the brave"
    columns = tuple(
        dataclasses.replace(column, weight=10.0 * (column.name == "ego_progress")) for column in PDMS.columns
    )
    scene_rules = dataclasses.replace(NAVSIM_V1, key="brave", name="the brave", inputs=inputs, suffix="-b")


METRICS["brave"] = Brave
