"""The traffic policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpvla.registry import Registry, look_up

if TYPE_CHECKING:
    from navsim_bridge.traffic.policy import TrafficPolicy

TRAFFIC = Registry(
    "navsim_bridge.traffic.policy:TrafficPolicy",
    log_replay="navsim_bridge.traffic.log_replay:LogReplay",
    constant_velocity="navsim_bridge.traffic.constant_velocity:ConstantVelocity",
    idm="navsim_bridge.traffic.idm:IDM",
)


def make_traffic(name: str) -> TrafficPolicy:
    """The policy of a name; RegistryError for an unknown one."""
    made: TrafficPolicy = look_up(TRAFFIC, name, "traffic")()
    return made
