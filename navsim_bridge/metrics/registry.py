"""The metrics by name, and how a config chooses one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from dpvla.config import OneOf
from dpvla.registry import ContractError, Registry, look_up
from navsim_bridge.metrics.config import MetricConfig

if TYPE_CHECKING:
    from navsim_bridge.metrics.metric import Metric

METRICS = Registry(
    "navsim_bridge.metrics.metric:Metric",
    {"pdms": "navsim_bridge.metrics.config:PDMSConfig", "epdms": "navsim_bridge.metrics.config:EPDMSConfig"},
    pdms="navsim_bridge.metrics.pdms:PDMS",
    epdms="navsim_bridge.metrics.epdms:EPDMS",
)
AnyMetric = Annotated[MetricConfig, OneOf(METRICS, "metric")]
"""Type of a config group that chooses a metric and has its options."""


def make_metric(config: MetricConfig | str) -> Metric[Any]:
    """The metric of a config, or of a name with its defaults; RegistryError for an unknown one,
    ContractError for one whose columns cannot be."""
    name = config if isinstance(config, str) else config.name
    found = look_up(METRICS, name, "metric")
    made: Metric[Any] = found() if isinstance(config, str) else found(config)
    names = [column.name for column in made.columns]
    if names[-1:] != ["score"] or len(set(names)) < len(names):
        raise ContractError(f"metric {name}: columns need names that differ, and score as the last, found {names}")
    return made
