"""What an agent is: who drives, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from dpvla.plan import Plan
from navsim_bridge.splits.scenes import SceneRecord

Decoder = Literal["cpu", "nvjpeg"]
"""What decodes a policy's JPEGs: threads of this machine, or its GPU."""


Plans = NDArray[Any] | Sequence[Plan]
"""A plan for each scene: (scene, 8, 3) x, y [m], heading [rad] in the ego rear-axle frame, every 0.5 s, the first at
0.5 s; or, where they are sampled otherwise, a `Plan` for each, which says how."""


class Agent(Protocol):
    """Gives a plan for each scene; a plain function will do.

    One that looks at images has an attribute ``cameras`` too: NAVSIM's names of them, such as ``("CAM_F0",)``. Scenes
    that lack one are then named before any work starts. One that has plans of some scenes alone has an attribute
    ``tokens``, the scenes'; those that it lacks are named likewise.
    """

    def __call__(self, records: Sequence[SceneRecord], /) -> Plans:
        """A plan for each scene."""


class Proposer(Agent, Protocol):
    """An agent that can also give several plans a scene."""

    def propose(self, records: Sequence[SceneRecord], /) -> NDArray[Any] | Sequence[Plans]:
        """(scene, candidate, 8, 3), or for each candidate its plans; those of all scenes come from the same sources."""

    def require_finite(self, plans: NDArray[Any], candidate: int, /) -> None:
        """Raise ValueError, which says why, when plans (scene, pose, 3) of a candidate are not finite."""


def cameras_of(agent: Agent) -> tuple[str, ...]:
    """Cameras that an agent looks at; none where it does not say."""
    return tuple(getattr(agent, "cameras", ()))
