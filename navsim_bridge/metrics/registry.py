"""The metrics by name, and how a config chooses one."""

from __future__ import annotations

from typing import Annotated, Any

from dpvla.config import OneOf
from dpvla.registry import look_up
from navsim_bridge.metrics.metric import Metric, MetricConfig

METRICS: dict[str, Any] = {
    "pdms": "navsim_bridge.metrics.pdms:PDMS",
    "epdms": "navsim_bridge.metrics.epdms:EPDMS",
}
AnyMetric = Annotated[MetricConfig, OneOf(METRICS, "metric")]
"""Type of a config group that chooses a metric and has its options."""


def make_metric(config: MetricConfig | str) -> Metric[Any]:
    """The metric of a config, or of a name with its defaults; RegistryError for an unknown one."""
    if isinstance(config, str):
        return look_up(METRICS, config, "metric")()  # type: ignore[no-any-return]
    return look_up(METRICS, config.name, "metric")(config)  # type: ignore[no-any-return]
