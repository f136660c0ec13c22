"""Stand-ins for what the plug-in imports of the official devkit, in both of its versions, and a policy that is served.

The devkit itself cannot share an environment with dpvla; its classes are told here as far as an agent meets them.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpvla_devkit.address import Address
from dpvla_devkit.protocol import CAMERAS
from navsim_bridge.agents import PolicyAgent
from navsim_bridge.serving.listening import listening
from navsim_bridge.serving.policy import NamedPlans, policy_server
from navsim_bridge.serving.requests import SceneNames
from navsim_bridge.serving.server import PolicyServer
from navsim_bridge.splits.scenes import SceneRecord
from tests.navsim_bridge.conftest import World, checkpoint, world

__all__ = ["checkpoint", "world"]


@dataclass(frozen=True)
class TrajectorySampling:
    """As nuPlan's, of which an agent reads two fields."""

    num_poses: int = 8
    interval_length: float = 0.5


@dataclass
class SensorConfig:
    """Which sensors are read: all history frames, none, or those listed."""

    cam_f0: bool | list[int] = False
    cam_l0: bool | list[int] = False
    cam_l1: bool | list[int] = False
    cam_l2: bool | list[int] = False
    cam_r0: bool | list[int] = False
    cam_r1: bool | list[int] = False
    cam_r2: bool | list[int] = False
    cam_b0: bool | list[int] = False
    lidar_pc: bool | list[int] = False

    @classmethod
    def build_no_sensors(cls) -> SensorConfig:
        return cls()

    def wanted(self, frame: int) -> list[str]:
        return [name for name, which in asdict(self).items() if which is True or (which and frame in which)]


@dataclass
class EgoStatus:
    ego_pose: Any
    ego_velocity: Any
    ego_acceleration: Any
    driving_command: Any
    in_global_frame: bool = False


class Camera:
    """v2 says where an image is from; v1.1 has no such field."""

    def __init__(self, image: Any = None, **path: Any) -> None:
        self.image = image
        self.__dict__.update(path)


@dataclass
class AgentInput:
    ego_statuses: list[EgoStatus]
    cameras: list[Any]
    lidars: list[Any]


@dataclass
class Trajectory:
    poses: Any
    trajectory_sampling: Any = TrajectorySampling()


class _Abstract(torch.nn.Module, ABC):
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def get_sensor_config(self) -> SensorConfig: ...

    @abstractmethod
    def initialize(self) -> None: ...


class AbstractAgentV1(_Abstract):
    def __init__(self, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene


class AbstractAgentV2(_Abstract):
    def __init__(self, trajectory_sampling: Any, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene
        self._trajectory_sampling = trajectory_sampling


@dataclass(frozen=True)
class Devkit:
    """One of its versions."""

    version: int
    make: Callable[..., Any]  # an agent, as its configuration does
    sensors: Path  # sensor_blobs/mini

    def sampling(self, **other: Any) -> dict[str, Any]:
        """What its agents' YAML has of the trajectory."""
        return {"trajectory_sampling": TrajectorySampling(**other)} if self.version == 2 else {}

    def agent_input(self, record: SceneRecord, config: SensorConfig) -> AgentInput:
        """What it gives an agent of a scene, with the images that the agent has asked for."""
        now, poses = record.now, record.relative_poses(slice(record.now - 3, record.now + 1)).astype(np.float32)
        command = np.eye(4, dtype=int)[record.command]
        velocity, acceleration = record.velocity.astype(np.float32), record.acceleration.astype(np.float32)
        statuses = [EgoStatus(pose, velocity, acceleration, command) for pose in poses]
        frames = []
        for frame in range(now + 1):
            cameras = {name.lower(): Camera() for name in CAMERAS}
            for name in config.wanted(frame):
                path = record.cameras[name.upper()]
                image = np.array(Image.open(self.sensors / path))
                cameras[name] = Camera(image, **({"camera_path": path} if self.version == 2 else {}))
            frames.append(type("Cameras", (), cameras))
        return AgentInput(statuses, frames, [])

    def plan(self, agent: Any, record: SceneRecord) -> Any:
        """What one of its scripts gets of an agent."""
        return agent.compute_trajectory(self.agent_input(record, agent.get_sensor_config()))


@pytest.fixture(params=[1, 2], ids=["v1.1", "v2"])
def devkit(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Devkit]:
    """Both versions, one after the other."""
    abstract, dataclasses = ModuleType("navsim.agents.abstract_agent"), ModuleType("navsim.common.dataclasses")
    abstract.AbstractAgent = {1: AbstractAgentV1, 2: AbstractAgentV2}[request.param]  # type: ignore[attr-defined]
    dataclasses.__dict__.update(AgentInput=AgentInput, SensorConfig=SensorConfig, Trajectory=Trajectory)
    packages = {name: ModuleType(name) for name in ("navsim", "navsim.agents", "navsim.common")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**packages, abstract.__name__: abstract, dataclasses.__name__: dataclasses}.items():
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "dpvla_devkit.agent", raising=False)
        import dpvla_devkit

        yield Devkit(request.param, dpvla_devkit.Agent, checkpoint / "sensor_blobs/mini")
    sys.modules.pop("dpvla_devkit.agent", None)


@dataclass(frozen=True)
class Served:
    """A policy that is served, by a thread."""

    server: PolicyServer
    address: str
    agent: PolicyAgent  # the same policy, as tools/evaluate.py has it
    plans: NamedPlans


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def policy(checkpoint: Path) -> PolicyAgent:
    return PolicyAgent.from_checkpoint(checkpoint, checkpoint, seed=3, batch_size=1)


@pytest.fixture
def serve(policy: PolicyAgent, checkpoint: Path, tmp_path: Path) -> Serve:
    @contextmanager
    def start(records: list[SceneRecord] | None = None, batch_size: int = 1, seed: int = 3) -> Iterator[Served]:
        address, agent = tmp_path / "policy.sock", policy.with_seed(seed)
        plans = NamedPlans(agent, SceneNames(records or ()))
        with listening(Address.parse(str(address))) as listener:
            server = policy_server(agent, plans, str(checkpoint), listener, batch_size)
            thread = threading.Thread(target=server.run)
            thread.start()
            try:
                yield Served(server, str(address), agent, plans)
            finally:
                server.stop()
                thread.join(30)
                assert not thread.is_alive()

    return start


@pytest.fixture
def served(serve: Serve, world: World) -> Iterator[Served]:
    """With the scenes of the small world known."""
    with serve(world.records) as one:
        yield one
