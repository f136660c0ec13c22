"""dpvla's policy as an agent of the official devkit, v1.1 and v2: a thin one, which asks the process that holds it."""

from __future__ import annotations

import inspect
import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
from navsim.agents.abstract_agent import AbstractAgent
from navsim.common.dataclasses import AgentInput, SensorConfig, Trajectory

from dpvla_devkit import address as addresses
from dpvla_devkit.protocol import HISTORY, INTERVAL, MOST_IMAGE, POSES, STATUS
from dpvla_devkit.served_policy import ServedPolicy, ServedPolicyError


class Agent(AbstractAgent):
    """Plans of the policy that `tools/serve_policy.py` serves on this machine.

    Making one is cheap and needs no server. Which cameras are read is asked of the server when the devkit asks for
    them, and whoever finds no server then says so at once, before any scene.
    """

    def __init__(
        self,
        trajectory_sampling: Any = None,
        address: str = addresses.DEFAULT,
        timeout: float = 120.0,
        patience: float = 60.0,
        sensor_paths: Sequence[str | None] = (),
    ) -> None:
        """
        Args:
            trajectory_sampling: the devkit's; v1.1 has none. 8 poses, 0.5 s apart, is all that a policy plans.
            address: where the policy is served: a socket file, or 127.0.0.1:PORT.
            timeout: seconds for a plan.
            patience: seconds for a server that is not there yet.
            sensor_paths: folders that v2's camera paths lie in (others are skipped): then the policy sees the files as
                in dpvla's own evaluation. None: it sees the images as the devkit has decoded them.

        Raises ValueError for values that cannot be.
        """
        takes_sampling = "trajectory_sampling" in inspect.signature(AbstractAgent.__init__).parameters
        super().__init__(**({"trajectory_sampling": trajectory_sampling} if takes_sampling else {}))
        _require_plan(trajectory_sampling)
        self._sampling = trajectory_sampling
        self._policy = ServedPolicy(address, timeout, patience)
        self._sensor_paths = [os.path.expanduser(path) for path in sensor_paths if path is not None]

    def name(self) -> str:
        """As in tables."""
        return "dpvla"

    def initialize(self) -> None:
        """Connect. Raises ServedPolicyError where there is no server."""
        self._policy.welcome()

    def get_sensor_config(self) -> SensorConfig:
        """The policy's cameras, now alone. Raises ServedPolicyError where there is no server to ask."""
        config = SensorConfig.build_no_sensors()
        for camera in self._policy.welcome().cameras:
            setattr(config, camera.lower(), [HISTORY - 1])
        return config

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """The plan of a scene.

        Raises ServedPolicyError: the scene has not what the policy needs, there is no server, it does not answer in
        time, or says why there is no plan.
        """
        plan = self._policy.plan({**_status(agent_input.ego_statuses), **self._images(agent_input)})
        return Trajectory(plan) if self._sampling is None else Trajectory(plan, self._sampling)

    def _images(self, agent_input: AgentInput) -> dict[str, np.ndarray]:
        cameras = self._policy.welcome().cameras
        if not cameras:
            return {}
        if not agent_input.cameras:
            raise ServedPolicyError(f"the scene has no images; the policy needs {', '.join(cameras)}")
        now = agent_input.cameras[-1]
        return {camera: self._image(getattr(now, camera.lower(), None), camera) for camera in cameras}

    def _image(self, camera: Any, name: str) -> np.ndarray:
        image = getattr(camera, "image", None)
        if image is None:
            raise ServedPolicyError(
                f"the scene has no image of {name}, which the policy needs: use a split whose sensor data are there"
            )
        path = getattr(camera, "camera_path", None)
        if path is not None and self._sensor_paths:
            return self._file(str(path), name)
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ServedPolicyError(
                f"the image of {name} has {image.dtype} {image.shape}, not uint8 (height, width, 3)"
            )
        return _bounded(image, name)

    def _file(self, path: str, name: str) -> np.ndarray:
        if os.path.isabs(path) or ".." in path.split("/"):
            raise ServedPolicyError(f"the image of {name} has a path that leads out of its folder: {path!r:.300}")
        for folder in self._sensor_paths:
            whole = os.path.join(folder, path)
            try:
                if stat.S_ISREG(os.stat(whole).st_mode):
                    return _bounded(np.fromfile(whole, dtype=np.uint8, count=MOST_IMAGE + 1), name)
            except OSError:
                continue
        raise ServedPolicyError(
            f"the image of {name}, {path:.300}, is no file below "
            f"{', '.join(self._sensor_paths):.500} (agent.sensor_paths): name the folder that it lies in, or none to "
            "send the pixels that the devkit has decoded"
        )


def _bounded(image: np.ndarray, name: str) -> np.ndarray:
    if not 0 < image.nbytes <= MOST_IMAGE:
        raise ServedPolicyError(f"the image of {name} has {image.nbytes} bytes; 1 to {MOST_IMAGE} are taken")
    return image


def _status(statuses: Sequence[Any]) -> dict[str, np.ndarray]:
    """What every request says of the car."""
    if len(statuses) < HISTORY:
        raise ServedPolicyError(
            f"the scene has {len(statuses)} history frames, the policy needs {HISTORY}: use a split with "
            f"num_history_frames: {HISTORY}"
        )
    now = statuses[-1]
    found = {
        "poses": [status.ego_pose for status in statuses[-HISTORY:]],
        "velocity": now.ego_velocity,
        "acceleration": now.ego_acceleration,
        "command": now.driving_command,
    }
    arrays = {}
    for name, shape in STATUS.items():
        try:
            arrays[name] = np.array(found[name], dtype=np.float64)
        except (TypeError, ValueError):
            raise ServedPolicyError(f"the scene's {name} are no numbers") from None
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ServedPolicyError(f"the scene's {name} are not finite numbers of shape {shape}")
    return arrays


def _require_plan(sampling: Any) -> None:
    if sampling is None:
        return
    poses, interval = getattr(sampling, "num_poses", None), getattr(sampling, "interval_length", None)
    if poses != POSES or not isinstance(interval, (int, float)) or abs(interval - INTERVAL) > 1e-6:
        raise ValueError(
            f"agent.trajectory_sampling asks for {poses} poses, {interval} s apart; the policy plans {POSES} poses, "
            f"{INTERVAL} s apart: leave time_horizon at {POSES * INTERVAL:g} and interval_length at {INTERVAL}"
        )
