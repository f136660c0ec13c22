"""What moves the vehicles around the ego: to add a policy, write one file with a subclass and name it in `TRAFFIC`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.objects import ObjectBatch


class TrafficPolicy(ABC):
    """Traffic during a plan, as the devkit's ``traffic_agents_policy`` of the same name."""

    reacts: ClassVar[bool]
    """Whether traffic depends on what the ego does."""

    @abstractmethod
    def simulate(self, scenes: EPDMSBatch, states: Tensor) -> ObjectBatch:
        """The objects during each of many plans.

        Plans see different traffic, so that what is given back has an entry for every plan: entry
        ``scene * candidates + candidate`` holds the 41 frames of that plan of that scene, in the columns that the
        scene's objects have in ``scenes``. A term that looks at objects is then asked about ``scene * candidates``
        scenes of one candidate (or of two: the reference is scored in the traffic of each plan)::

            objects = policy.simulate(scenes, states)                                 # states (scene, candidate, 41, 11)
            collision = no_at_fault_collisions(objects, states.flatten(0, 1)[:, None], areas of the same shape)

        Args:
            scenes: of metric scenes with `EPDMSInputs.traffic`, on any device.
            states: (scene, candidate, 41, 11) simulated ego states in the scene frame (global axes, origin at the ego
                rear axle at t = 0), columns as in `MetricScene`.

        Raises:
            ValueError: a scene without `EPDMSInputs.traffic`; names it, and says what to do.
        """
