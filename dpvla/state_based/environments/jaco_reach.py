"""The four Jaco reaching tasks of URLB and ExORL on dm_control's manipulation models.

dm_control's own reach task draws its target anew each episode and shows it; here the target is one of four fixed
points and is not observed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpvla.state_based.environments.headless import load

TARGETS = {
    "reach-top-left": (-0.09, 0.09, 0.001),
    "reach-top-right": (0.09, 0.09, 0.001),
    "reach-bottom-left": (-0.09, -0.09, 0.001),
    "reach-bottom-right": (0.09, -0.09, 0.001),
}
"""Target in the world frame [m]."""

RADIUS = 0.05
"""Distance that earns the full reward, and the margin beyond it [m]."""

TIME_LIMIT = 10.0
"""[s]; with 0.04 s control steps an episode has 250."""

_START_LOWER, _START_UPPER = (-0.2, -0.2, 0.02), (0.2, 0.2, 0.4)
"""Box that the tool center starts in [m]."""


def make_jaco(task: str, seed: int) -> Any:
    """A ``composer.Environment`` for a key of `TARGETS`."""
    composer = load("dm_control.composer")
    return composer.Environment(
        _task(np.array(TARGETS[task])),
        time_limit=TIME_LIMIT,
        random_state=np.random.RandomState(seed),
        # Nothing in the model changes between episodes, so it need not be compiled again for each.
        recompile_mjcf_every_episode=False,
    )


def _task(target: np.ndarray) -> Any:
    reach = load("dm_control.manipulation.reach")
    shared = "dm_control.manipulation.shared"
    constants, observations, robots, workspaces = (
        load(f"{shared}.{name}") for name in ("constants", "observations", "robots", "workspaces")
    )
    tolerance = load("dm_control.utils.rewards").tolerance

    class FixedTargetReach(reach.Reach):  # type: ignore[misc, name-defined]
        """Reach for a fixed, unobserved point with the tool center."""

        def __init__(self) -> None:
            features = observations.PERFECT_FEATURES
            box = workspaces.BoundingBox(lower=_START_LOWER, upper=_START_UPPER)
            super().__init__(
                arena=load(f"{shared}.arenas").Standard(),
                arm=robots.make_arm(obs_settings=features),
                hand=robots.make_hand(obs_settings=features),
                prop=None,
                obs_settings=features,
                workspace=reach._ReachWorkspace(target_bbox=box, tcp_bbox=box, arm_offset=robots.ARM_OFFSET),
                control_timestep=constants.CONTROL_TIMESTEP,
            )
            del self._task_observables["target_position"]

        def initialize_episode(self, physics: Any, random_state: Any) -> None:
            self._hand.set_grasp(physics, close_factors=random_state.uniform())
            self._tcp_initializer(physics, random_state)
            physics.bind(self._target).pos = target

        def get_reward(self, physics: Any) -> float:
            tool_center = physics.bind(self._hand.tool_center_point).xpos
            return float(tolerance(np.linalg.norm(tool_center - target), bounds=(0, RADIUS), margin=RADIUS))

    return FixedTargetReach()
