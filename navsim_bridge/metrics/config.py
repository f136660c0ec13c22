"""Options of the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from navsim_bridge.human_filter import HumanFilter


@dataclass(frozen=True)
class MetricConfig:
    """Options of a metric; each has its own subclass, and a ``name`` that is the one in the registry."""

    name: str


@dataclass(frozen=True)
class PDMSConfig(MetricConfig):
    """The PDM score v1 has no options."""

    name: str = "pdms"  # pdms (NAVSIM v1), epdms (NAVSIM v2), or one of a plug-in


@dataclass(frozen=True)
class EPDMSConfig(MetricConfig):
    """Options of EPDMS."""

    name: str = "epdms"  # pdms (NAVSIM v1), epdms (NAVSIM v2), or one of a plug-in
    human_filter: HumanFilter = "v2.1.2"  # what the recorded driver fails, too: as released, as fixed later, or off
    traffic: str | None = None  # other cars: log_replay, constant_velocity, idm; default: recorded, in two stages idm
