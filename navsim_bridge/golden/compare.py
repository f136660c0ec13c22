"""How two metric scenes of one token differ, part by part: ours against the devkit's, builder against builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from navsim_bridge.pdm.metric_scene import MetricScene

FIELDS: dict[str, tuple[str, ...]] = {
    "ego state": ("ego_state", "ego_time_us"),
    "observation": ("frame_offsets", "object_track", "object_boxes", "track_tokens", "track_types",
                    "track_first_speed"),
    "route lanes": ("route_lane_ids",),
    "drivable polygons": ("polygon_tokens", "polygon_types", "polygon_ring_offsets", "ring_offsets", "vertices"),
    "centerline": ("centerline",),
    "reference plan": ("reference_states", "reference_times_us"),
}  # fmt: skip
"""Parts of a scene and the fields of `MetricScene` that make them up."""
PARTS = tuple(FIELDS)

Difference = tuple[float, str]
"""Largest difference [m or rad], infinite where things cannot be matched, and what it is."""


def differences(ours: MetricScene, theirs: MetricScene) -> dict[str, Difference]:
    """Difference of every part of `PARTS`. The order of objects, polygons and lanes does not count."""
    return {
        "ego state": _ego(ours, theirs),
        "observation": _observation(ours, theirs),
        "route lanes": _route(ours, theirs),
        "drivable polygons": _polygons(ours, theirs),
        "centerline": _line("point", ours.centerline, theirs.centerline),
        "reference plan": _reference(ours, theirs),
    }


def with_part_of(scene: MetricScene, other: MetricScene, parts: Sequence[str]) -> MetricScene:
    """``scene`` with ``parts`` taken from ``other``."""
    return dataclasses.replace(scene, **{name: getattr(other, name) for part in parts for name in FIELDS[part]})


def _ego(ours: MetricScene, theirs: MetricScene) -> Difference:
    if ours.ego_time_us != theirs.ego_time_us:
        return np.inf, f"time stamps {ours.ego_time_us} and {theirs.ego_time_us}"
    gap = np.abs(np.asarray(ours.ego_state) - np.asarray(theirs.ego_state))
    gap[2] = _turn(ours.ego_state[2], theirs.ego_state[2])
    return float(gap.max()), f"column {int(gap.argmax())} of the state differs most"


def _observation(ours: MetricScene, theirs: MetricScene) -> Difference:
    mine, other = _boxes(ours), _boxes(theirs)
    if mine.keys() != other.keys():
        extra, lost = sorted(mine.keys() - other.keys()), sorted(other.keys() - mine.keys())
        return np.inf, f"{len(extra)} boxes only in the first, {len(lost)} only in the second, {(extra + lost)[:2]}"
    types = dict(zip(theirs.track_tokens, theirs.track_types))
    speeds = dict(zip(theirs.track_tokens, np.asarray(theirs.track_first_speed).tolist()))
    worst, what = 0.0, ""
    for token, kind, speed in zip(ours.track_tokens, ours.track_types, np.asarray(ours.track_first_speed).tolist()):
        if types[token] != kind:
            return np.inf, f"object {token} is a {kind} and a {types[token]}"
        if abs(speeds[token] - speed) > worst:
            worst, what = abs(speeds[token] - speed), f"first speed of object {token}"
    for key, box in mine.items():
        gap = np.abs(box - other[key])
        gap[2] = _turn(box[2], other[key][2])
        if gap.max() > worst:
            worst, what = float(gap.max()), f"object {key[1]} in frame {key[0]}"
    return worst, what


def _boxes(scene: MetricScene) -> dict[tuple[int, str, int], NDArray[np.float64]]:
    """Box by frame, token and how often the token came before in that frame."""
    boxes: dict[tuple[int, str, int], NDArray[np.float64]] = {}
    frames = np.repeat(np.arange(len(scene.frame_offsets) - 1), np.diff(scene.frame_offsets))
    for frame, track, box in zip(frames.tolist(), np.asarray(scene.object_track).tolist(), scene.object_boxes):
        token, again = scene.track_tokens[track], 0
        while (frame, token, again) in boxes:
            again += 1
        boxes[frame, token, again] = np.asarray(box, dtype=np.float64)
    return boxes


def _route(ours: MetricScene, theirs: MetricScene) -> Difference:
    extra = sorted(set(ours.route_lane_ids) - set(theirs.route_lane_ids))
    lost = sorted(set(theirs.route_lane_ids) - set(ours.route_lane_ids))
    return (np.inf if extra or lost else 0.0), f"lanes only in the first: {extra}; only in the second: {lost}"


def _polygons(ours: MetricScene, theirs: MetricScene) -> Difference:
    mine, other = _rings(ours), _rings(theirs)
    if mine.keys() != other.keys():
        extra, lost = sorted(mine.keys() - other.keys()), sorted(other.keys() - mine.keys())
        return np.inf, f"polygons only in the first: {extra[:3]}; only in the second: {lost[:3]}"
    worst, what = 0.0, ""
    for key, (sizes, points) in mine.items():
        if sizes != other[key][0]:
            return np.inf, f"polygon {key[:2]} has rings of {sizes} and of {other[key][0]} points"
        gap = float(np.abs(points - other[key][1]).max())
        if gap > worst:
            worst, what = gap, f"polygon {key[:2]}"
    return worst, what


def _rings(scene: MetricScene) -> dict[tuple[str, str, int], tuple[list[int], NDArray[np.float64]]]:
    """Ring sizes and points by layer, token and how often the two came before."""
    rings: dict[tuple[str, str, int], tuple[list[int], NDArray[np.float64]]] = {}
    of_polygon, of_ring = np.asarray(scene.polygon_ring_offsets).tolist(), np.asarray(scene.ring_offsets).tolist()
    for i, (token, layer) in enumerate(zip(scene.polygon_tokens, scene.polygon_types)):
        bounds, again = of_ring[of_polygon[i] : of_polygon[i + 1] + 1], 0
        while (layer, token, again) in rings:
            again += 1
        rings[layer, token, again] = np.diff(bounds).tolist(), scene.vertices[bounds[0] : bounds[-1]]
    return rings


def _reference(ours: MetricScene, theirs: MetricScene) -> Difference:
    size, detail = _line("knot", ours.reference_states, theirs.reference_states)
    if np.isfinite(size) and not np.array_equal(ours.reference_times_us, theirs.reference_times_us):
        apart = np.abs(np.asarray(ours.reference_times_us) - np.asarray(theirs.reference_times_us)).max()
        return np.inf, f"the knots' time stamps differ by up to {apart} us"
    return size, detail


def _line(unit: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Difference:
    """Of two lines (point, 3)."""
    if len(ours) != len(theirs):
        apart = shapely.hausdorff_distance(shapely.LineString(ours[:, :2]), shapely.LineString(theirs[:, :2]))
        return np.inf, f"{len(ours)} and {len(theirs)} {unit}s, up to {apart:.3g} m apart"
    gap = np.abs(ours - theirs)
    gap[:, 2] = _turn(ours[:, 2], theirs[:, 2])
    worst = gap.max(axis=1)
    first = int(np.argmax(worst > 1e-6))
    return float(worst.max()), f"differ from {unit} {first} on, by up to {gap[:, :2].max():.3g} m"


def _turn(one: NDArray[np.float64] | float, two: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Angle between two headings."""
    return np.abs(np.mod(np.subtract(one, two) + np.pi, 2 * np.pi) - np.pi)
