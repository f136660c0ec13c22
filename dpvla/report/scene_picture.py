"""One scene as a picture: the front camera and a bird's-eye view, with plans drawn into both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from dpvla.plan import NUM_POSES, PLAN_SECONDS, POSE_INTERVAL

Array = NDArray[np.floating]

matplotlib.use("Agg")

GROUND = "#eef1ec"
OTHER_OBJECT = "#7f8c8d"
SMOOTH_POINTS = 33
PLAN_COLORS = ("#1a9850", "#d7301f", "#2b6cff", "#7b3294")


@dataclass(frozen=True)
class Photo:
    """An image and the pinhole camera that took it, in the ego frame (rear axle, z = 0 on the ground)."""

    image: NDArray[np.uint8]  # (height, width, 3)
    intrinsic: Array  # (3, 3) of that image
    rotation: Array  # (3, 3) camera axes (x right, y down, z forward) to ego axes
    translation: Array  # (3,) camera position [m]

    def project(self, points: Array) -> Array:
        """Ego-frame points (n, 3) to pixels (n, 2); NaN for points less than 0.5 m in front."""
        seen = (points - self.translation) @ self.rotation
        pixels = seen @ self.intrinsic.T
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = pixels[:, :2] / pixels[:, 2:]
        flat[seen[:, 2] < 0.5] = np.nan
        return flat


@dataclass(frozen=True)
class Palette:
    """Colors by name of what a bird's-eye view shows; names beside them are not drawn (areas) or gray (objects)."""

    areas: Mapping[str, tuple[str, str]]  # name -> (face, edge), 'none' for neither; later ones on top
    objects: Mapping[str, str]


@dataclass(frozen=True)
class Car:
    """The ego vehicle as a rectangle [m]."""

    length: float
    width: float
    axle_to_center: float  # how far its center lies ahead of the rear axle, whose pose plans give


@dataclass(frozen=True)
class BirdsEyeScene:
    """Map and objects at t = 0 in the ego frame (x forward, y left) [m, rad]."""

    areas: Sequence[tuple[str, list[Array]]]  # (name as in the palette, rings (n, 2); the first is the outline)
    boxes: Array  # (object, 5) x, y, heading, length, width
    box_types: Sequence[str]  # (object,) names as in the palette
    centerline: Array  # (point, 2)
    car: Car
    palette: Palette


@dataclass(frozen=True)
class DrawnPlan:
    """A plan with what to write beside it."""

    label: str
    poses: Array  # (8, 3) ego frame
    note: str = ""


def view(plans: Sequence[DrawnPlan]) -> tuple[float, float]:
    """How far the bird's-eye view reaches ahead of the ego and to each side [m], so that all plans are in it."""
    reach = np.concatenate([plan.poses[:, :2] for plan in plans])
    return max(32.0, float(reach[:, 0].max()) + 10), max(20.0, float(np.abs(reach[:, 1]).max()) + 8)


def draw_scene(photo: Photo, scene: BirdsEyeScene, plans: Sequence[DrawnPlan], title: str) -> Figure:
    """Front camera (left) and bird's-eye view (right), plans in the same colors in both."""
    figure = Figure(figsize=(13.2, 5.2), dpi=110, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(1.72, 1))
    front, above = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    _draw_front(front, photo, plans)
    _draw_above(above, scene, plans)
    front.set_title(title, loc="left", fontsize=11, fontweight="bold")
    above.set_title(f"bird's-eye view, {PLAN_SECONDS:g} s of plan", loc="left", fontsize=10)
    return figure


def _draw_front(axes: Axes, photo: Photo, plans: Sequence[DrawnPlan]) -> None:
    height, width = photo.image.shape[:2]
    axes.imshow(photo.image, extent=(0, width, height, 0), interpolation="bilinear")
    for color, plan in zip(PLAN_COLORS, plans):
        path = photo.project(np.column_stack([_smooth(plan.poses), np.zeros(SMOOTH_POINTS)]))
        dots = photo.project(np.column_stack([plan.poses[:, :2], np.zeros(len(plan.poses))]))
        axes.plot(*path.T, color="white", linewidth=4.5, alpha=0.55, solid_capstyle="round")
        axes.plot(*path.T, color=color, linewidth=2.6, solid_capstyle="round")
        axes.plot(*dots.T, "o", color=color, markersize=5, markeredgecolor="white", markeredgewidth=0.8)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _draw_above(axes: Axes, scene: BirdsEyeScene, plans: Sequence[DrawnPlan]) -> None:
    axes.set_facecolor(GROUND)
    for name, (face, edge) in scene.palette.areas.items():
        for area, rings in scene.areas:
            if area == name:
                axes.add_patch(PathPatch(_outline(rings), facecolor=face, edgecolor=edge, linewidth=0.9))
    if len(scene.centerline):
        axes.plot(-scene.centerline[:, 1], scene.centerline[:, 0], ":", color="#8a9099", linewidth=1.0)
    for box, kind in zip(scene.boxes, scene.box_types):
        color = scene.palette.objects.get(kind, OTHER_OBJECT)
        axes.add_patch(Polygon(_corners(*box), facecolor=color, edgecolor="white", linewidth=0.5))
    now = _corners_of(scene.car, 0, 0, 0)
    axes.add_patch(Polygon(now, facecolor="#111827", edgecolor="white", linewidth=0.6, zorder=4))
    for order, (color, plan) in enumerate(zip(PLAN_COLORS, plans)):
        path = _smooth(plan.poses)
        end = _corners_of(scene.car, *plan.poses[-1])
        axes.add_patch(Polygon(end, facecolor=color, alpha=0.22, edgecolor=color, zorder=5 + order))
        label = f"{plan.label}: {plan.note}" if plan.note else plan.label
        axes.plot(-path[:, 1], path[:, 0], color=color, linewidth=2.2, zorder=6 + order, label=label)
        axes.plot(-plan.poses[:, 1], plan.poses[:, 0], "o", color=color, markersize=3.2, zorder=6 + order)
    ahead, side = view(plans)
    axes.set(xlim=(-side, side), ylim=(-9, ahead), aspect="equal", xticks=[], yticks=[])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.24), fontsize=8.5, frameon=False)


def _smooth(poses: Array) -> Array:
    """(33, 2) points from the rear axle along the plan, straight between poses."""
    times = np.linspace(0, PLAN_SECONDS, SMOOTH_POINTS)
    knots = np.arange(NUM_POSES + 1) * POSE_INTERVAL
    with_start = np.vstack([np.zeros(2), poses[:, :2]])
    return np.column_stack([np.interp(times, knots, with_start[:, i]) for i in range(2)])


def _outline(rings: list[Array]) -> Outline:
    closed = [np.vstack([ring, ring[:1]])[:, ::-1] * (-1, 1) for ring in rings]
    codes = [[Outline.MOVETO] + [Outline.LINETO] * (len(r) - 2) + [Outline.CLOSEPOLY] for r in closed]
    return Outline(np.vstack(closed), np.concatenate(codes))


def _corners(x: float, y: float, heading: float, length: float, width: float) -> Array:
    along = np.array([np.cos(heading), np.sin(heading)]) * length / 2
    across = np.array([-np.sin(heading), np.cos(heading)]) * width / 2
    points = np.array([x, y]) + np.array([along + across, -along + across, -along - across, along - across])
    return np.column_stack([-points[:, 1], points[:, 0]])


def _corners_of(car: Car, x: float, y: float, heading: float) -> Array:
    ahead = np.array([np.cos(heading), np.sin(heading)]) * car.axle_to_center
    return _corners(x + ahead[0], y + ahead[1], heading, car.length, car.width)
