"""What plans of EPDMS meet on the road: the objects of the recording, or those that react to each plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.metric_scene import EPDMS_FRAMES
from navsim_bridge.pdm.objects import ObjectBatch
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.terms.areas import EgoAreas
from navsim_bridge.pdm.terms.collision import no_at_fault_collisions
from navsim_bridge.pdm.terms.lights import meets_false_light
from navsim_bridge.pdm.terms.ttc import LOOKAHEAD, time_to_collision

Traffic = Callable[[EPDMSBatch, Tensor], ObjectBatch]
"""From simulated states (scene, candidate, 41, 11) to the objects around each: entry ``scene * candidates + candidate``
holds 41 frames, in the columns of the scene's own objects."""


class Encounters(NamedTuple):
    """Of all but the reference: (scene, candidate + 1) each, the recorded driver last; float64 unless said otherwise.

    The recorded driver of a synthetic scene, where there is none, may have met anything.
    """

    collision: Tensor  # 0, 0.5 or 1
    collision_time_index: Tensor  # 0..40, inf if none
    false_light: Tensor  # bool, met an object that counts as a red light
    ttc: Tensor  # 0 or 1
    ttc_time_index: Tensor  # 0..31, inf if none
    dead_ends: Tensor  # int64, see `ObjectBatch`
    reference: Tensor  # (scene, candidate) what the reference's product gets of collision and false lights


def encounters(scenes: EPDMSBatch, states: Tensor, areas: EgoAreas, traffic: Traffic | None) -> Encounters:
    """Meet the objects.

    Args:
        states: (scene, 1 + candidate + 1, 41, 11) of reference, plans and recorded driver.
        areas: of ``states``.
        traffic: None for the objects of ``scenes``.
    """
    candidates = states.shape[1] - 2
    if traffic is None:
        found = _meet(scenes.scenes, scenes.object_is_light, states, areas)
        return found._replace(reference=found.reference.expand(-1, candidates))
    plans = _each_with_reference(scenes, states[:, :-1], EgoAreas(*(flag[:, :-1] for flag in areas)), traffic)
    # no one recorded a synthetic scene
    rows = scenes.has_human.nonzero().squeeze(-1)
    driver = Encounters(*(torch.ones_like(some[:, :1]) for some in plans))
    if len(rows):
        ends = torch.tensor([0, candidates + 1], device=states.device)
        pairs = EgoAreas(*(flag[rows][:, ends] for flag in areas))
        recorded = _each_with_reference(scenes.select(rows), states[rows][:, ends], pairs, traffic)
        for some, of_driver in zip(recorded, driver):
            of_driver[rows] = some
    return Encounters(*(torch.cat(both, dim=1) for both in zip(plans, driver)))._replace(reference=plans.reference)


def _each_with_reference(scenes: EPDMSBatch, states: Tensor, areas: EgoAreas, traffic: Traffic) -> Encounters:
    """(scene, candidate) each: every candidate beside the reference, index 0 of ``states``, in traffic of its own."""
    count = states.shape[1] - 1
    objects = traffic(scenes, states[:, 1:])

    def paired(values: Tensor) -> Tensor:
        both = torch.stack((values[:, :1].expand_as(values[:, 1:]), values[:, 1:]), dim=2)
        return both.flatten(0, 1)

    is_light = scenes.object_is_light.repeat_interleave(count, dim=0)
    found = _meet(objects, is_light, paired(states), EgoAreas(*map(paired, areas)))._replace(
        dead_ends=objects.dead_ends
    )
    return Encounters(*(some.view(-1, count) for some in found))


def _meet(objects: SceneBatch | ObjectBatch, is_light: Tensor, states: Tensor, areas: EgoAreas) -> Encounters:
    """Of all but index 0 of ``states`` (scene, 1 + more, 41, 11); the reference (scene, 1) is that."""
    collision = no_at_fault_collisions(objects, states, areas)
    false_light = meets_false_light(objects, is_light, states)
    seen = EPDMS_FRAMES - max(LOOKAHEAD)  # the farthest look-ahead must stay within the objects' frames
    threats = time_to_collision(objects, states[:, 1:, :seen], EgoAreas(*(flag[:, 1:, :seen] for flag in areas)))
    return Encounters(
        collision.score[:, 1:],
        collision.time_index[:, 1:],
        false_light[:, 1:],
        threats.score,
        threats.time_index,
        torch.zeros_like(false_light[:, 1:], dtype=torch.int64),
        collision.score[:, :1] * ~false_light[:, :1],
    )
