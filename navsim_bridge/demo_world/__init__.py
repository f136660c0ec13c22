"""A small synthetic driving world written in NAVSIM's own file formats."""

from navsim_bridge.demo_world.build import OtherWorldError, make_demo_world, make_demo_world_if_needed
from navsim_bridge.demo_world.config import DemoWorldConfig

__all__ = ["DemoWorldConfig", "OtherWorldError", "make_demo_world", "make_demo_world_if_needed"]
