"""Pictures by the painter's algorithm: project, clip at the near plane, fill polygons from far to near.

Works in the ego frame of one instant (meters, z up, ground at 0), so pixels follow from the same intrinsics and
extrinsics that the log states.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from navsim_bridge.demo_world.cameras import Camera
from navsim_bridge.demo_world.pictures.meshes import Mesh
from navsim_bridge.demo_world.pictures.scenery import Scenery

F32 = NDArray[np.float32]

NEAR = 0.35  # m
SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV
GROUND_SIGHT, FINE_SIGHT, THING_SIGHT = 170.0, 75.0, 150.0  # m
FAR_PIXEL = 100_000.0


@dataclass(frozen=True)
class Weather:
    """Light and air of a drive."""

    zenith: tuple[float, float, float]  # sky colors, BGR
    horizon: tuple[float, float, float]
    near_grass: tuple[float, float, float]
    far_grass: tuple[float, float, float]
    sun: tuple[float, float, float]  # direction to the sun in the world
    ambient: float
    visibility: float  # distance at which haze has taken two thirds [m]
    tint: tuple[float, float, float]  # factor on colors
    clouds: int


WEATHERS = (
    Weather(  # fair
        zenith=(206, 146, 84), horizon=(236, 220, 200), near_grass=(84, 146, 104), far_grass=(132, 168, 148),
        sun=(0.45, 0.35, 0.82), ambient=0.62, visibility=260.0, tint=(1.0, 1.0, 1.0), clouds=12,
    ),
    Weather(  # overcast
        zenith=(196, 176, 160), horizon=(222, 216, 210), near_grass=(92, 132, 104), far_grass=(146, 160, 152),
        sun=(0.1, 0.2, 0.97), ambient=0.74, visibility=170.0, tint=(0.97, 0.96, 0.95), clouds=0,
    ),
    Weather(  # late afternoon
        zenith=(190, 140, 106), horizon=(178, 208, 244), near_grass=(78, 134, 118), far_grass=(136, 170, 172),
        sun=(-0.75, 0.3, 0.58), ambient=0.58, visibility=230.0, tint=(0.92, 0.98, 1.05), clouds=7,
    ),
    Weather(  # clear
        zenith=(220, 164, 98), horizon=(240, 228, 212), near_grass=(88, 152, 110), far_grass=(140, 176, 152),
        sun=(-0.3, -0.55, 0.78), ambient=0.64, visibility=300.0, tint=(1.0, 1.0, 1.0), clouds=5,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A mesh standing somewhere, in the ego frame."""

    mesh: Mesh
    x: float
    y: float
    heading: float
    z: float = 0.0
    shadow: tuple[float, float] | None = None  # length and width of what darkens the ground


class Painter:
    """Paints the pictures of one location in one weather."""

    def __init__(self, scenery: Scenery, weather: Weather) -> None:
        self.scenery, self.weather = scenery, weather
        self.haze = np.array(weather.horizon, np.float32)
        sun = np.array(weather.sun, np.float32)
        self.sun = sun / np.linalg.norm(sun)
        self.static_radii = np.array([m.radius for m in scenery.meshes])
        self.backdrops: dict[tuple[str, int, int], NDArray[np.uint8]] = {}
        angles = np.linspace(0, 2 * np.pi, 721)
        self.skyline_angles = angles
        wave = np.random.default_rng(7)
        self.hills = 0.030 + sum(0.011 / k * np.sin(k * angles * 2 + wave.uniform(0, 6)) for k in range(1, 6))
        blocks = np.repeat(wave.uniform(0.004, 0.05, 120), 6)
        self.roofs = np.concatenate([blocks, blocks[:1]])
        self.clouds = [
            (bearing + wave.normal(0, 0.05), height + wave.normal(0, 0.012), wave.uniform(0.04, 0.09))
            for bearing, height in zip(wave.uniform(0, 2 * np.pi, weather.clouds), wave.uniform(0.14, 0.34, 40))
            for _ in range(5)
        ]  # bearing, elevation and size as tangents

    def paint(self, camera: Camera, pose: tuple[float, float, float], things: list[Thing]) -> NDArray[np.uint8]:
        """The BGR picture of a camera of the car at ``pose`` (x, y, heading in local meters)."""
        image = self._backdrop(camera).copy()
        self._skyline(image, camera, pose[2])
        self._ground(image, camera, pose)
        self._shadows(image, camera, things)
        self._things(image, camera, pose, things)
        return image

    # ---- backdrop ----------------------------------------------------------------------------------------------

    def _backdrop(self, camera: Camera) -> NDArray[np.uint8]:
        key = (camera.name, camera.width, camera.height)
        if key not in self.backdrops:
            w = self.weather
            rows = (np.arange(camera.height) - camera.intrinsic[1, 2]) / camera.intrinsic[1, 1]
            up = np.clip(-rows / 0.36, 0, 1)[:, None] ** 0.8
            sky = np.array(w.horizon) * (1 - up) + np.array(w.zenith) * up
            distance = camera.translation[2] / np.maximum(rows, 1e-3)
            near = np.exp(-distance / 40.0)[:, None]
            grass = np.array(w.far_grass) * (1 - near) + np.array(w.near_grass) * near
            fog = np.exp(-distance / w.visibility)[:, None]
            grass = grass * fog + np.array(w.horizon) * (1 - fog)
            column = np.where(rows[:, None] < 0, sky, grass)
            image = np.repeat(column[:, None], camera.width, axis=1)
            self.backdrops[key] = np.clip(image, 0, 255).astype(np.uint8)
        return self.backdrops[key]

    def _skyline(self, image: NDArray[np.uint8], camera: Camera, heading: float) -> None:
        """Far hills and roofs as a function of bearing."""
        columns = np.linspace(-1, camera.width + 1, 64)
        bearing = np.arctan2(camera.rotation[1, 2], camera.rotation[0, 2]) + heading
        tangent = (columns - camera.intrinsic[0, 2]) / camera.intrinsic[0, 0]
        angle = np.mod(bearing - np.arctan(tangent), 2 * np.pi)
        stretch = camera.intrinsic[1, 1] * np.sqrt(1 + tangent**2)
        horizon = camera.intrinsic[1, 2]
        white = (0.55 * np.array(self.weather.horizon) + 0.45 * np.array([250.0, 250.0, 250.0])).tolist()
        fx, fy = camera.intrinsic[0, 0], camera.intrinsic[1, 1]
        for cloud, height, size in self.clouds:
            aside = float(np.angle(np.exp(1j * (bearing - cloud))))  # positive to the right
            if abs(aside) < 1.0:
                u, v = camera.intrinsic[0, 2] + fx * np.tan(aside), horizon - fy * height / np.cos(aside)
                center = (round(float(u) * 16), round(float(v) * 16))
                axes = (round(fx * size * 1.7 / np.cos(aside) * 16), round(fy * size * 0.32 * 16))
                cv2.ellipse(image, center, axes, 0, 0, 360, white, -1, cv2.LINE_AA, SUBPIXEL)
        for profile, share, fill in ((self.hills, 0.62, (142, 150, 128)), (self.roofs, 0.72, (150, 146, 142))):
            top = horizon - np.interp(angle, self.skyline_angles, profile) * stretch
            color = self.haze * share + np.array(fill, np.float32) * (1 - share)
            outline = np.concatenate(
                [np.stack([columns, top], -1), [[camera.width + 1, horizon + 1], [-1, horizon + 1]]]
            )
            cv2.fillPoly(image, [_fixed(outline)], color.tolist(), cv2.LINE_AA, SUBPIXEL)

    # ---- ground ------------------------------------------------------------------------------------------------

    def _ground(self, image: NDArray[np.uint8], camera: Camera, pose: tuple[float, float, float]) -> None:
        ready = []
        for ground in self.scenery.ground:
            center = _to_ego(ground.centers, pose)
            sight = np.where(ground.fine, FINE_SIGHT, GROUND_SIGHT)
            visible = np.nonzero(_in_view(center, ground.radii, camera, sight))[0]
            corners = _to_ego(ground.corners[visible].reshape(-1, 2), pose).reshape(
                len(visible), ground.corners.shape[1], 2
            )
            points = np.concatenate([corners, np.zeros((*corners.shape[:2], 1), np.float32)], axis=-1)
            pixels, kept = _project(points, camera)
            distance = np.hypot(center[visible, 0], center[visible, 1])
            colors = self._in_air(ground.colors[visible] * np.array(self.weather.tint, np.float32), distance)
            slot = np.full(len(ground.centers), -1)
            slot[visible[kept]] = np.nonzero(kept)[0]
            ready.append((slot, pixels, colors.tolist()))
        for g, first, last in self.scenery.order:
            slot, pixels, colors = ready[g]
            rows = slot[first:last]
            for k in rows[rows >= 0].tolist():
                if g == 0:
                    cv2.fillConvexPoly(image, pixels[k], colors[k], cv2.LINE_AA, SUBPIXEL)
                else:
                    cv2.fillPoly(image, [pixels[k]], colors[k], cv2.LINE_AA, SUBPIXEL)

    def _shadows(self, image: NDArray[np.uint8], camera: Camera, things: list[Thing]) -> None:
        cast = [t for t in things if t.shadow is not None and np.hypot(t.x, t.y) < 70.0]
        if not cast:
            return
        quads = np.zeros((len(cast), 4, 3), np.float32)
        for row, t in zip(quads, cast):
            assert t.shadow is not None
            half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (np.array(t.shadow) / 2 + 0.03)
            cos, sin = np.cos(t.heading), np.sin(t.heading)
            row[:, 0] = t.x + half[:, 0] * cos - half[:, 1] * sin
            row[:, 1] = t.y + half[:, 0] * sin + half[:, 1] * cos
        pixels, kept = _project(quads, camera)
        for k in np.nonzero(kept)[0].tolist():
            cv2.fillConvexPoly(image, pixels[k], (62, 58, 56), cv2.LINE_AA, SUBPIXEL)

    # ---- things that stand up ----------------------------------------------------------------------------------

    def _things(
        self, image: NDArray[np.uint8], camera: Camera, pose: tuple[float, float, float], things: list[Thing]
    ) -> None:
        scenery = self.scenery
        local = _to_ego(scenery.positions, pose)
        visible = np.nonzero(_in_view(local, self.static_radii, camera, np.full(len(local), THING_SIGHT)))[0]
        meshes = [scenery.meshes[i] for i in visible]
        x, y = list(local[visible, 0]), list(local[visible, 1])
        heading, z = list(scenery.headings[visible] - pose[2]), [0.0] * len(visible)
        half = list(scenery.half_sizes[visible])
        centers = np.array([[t.x, t.y] for t in things], float).reshape(-1, 2)
        radii = np.array([t.mesh.radius for t in things])
        for k in np.nonzero(_in_view(centers, radii, camera, np.full(len(things), THING_SIGHT)))[0].tolist():
            t = things[k]
            meshes.append(t.mesh)
            x.append(t.x)
            y.append(t.y)
            heading.append(t.heading)
            z.append(t.z)
            half.append(np.zeros(2))
        if not meshes:
            return
        place = np.stack([x, y, z], axis=-1)
        turn, sizes = np.array(heading), np.array(half)
        eye = camera.translation
        flat = np.array([m.billboard for m in meshes])
        turn[flat] = np.arctan2(place[flat, 1] - eye[1], place[flat, 0] - eye[0])
        order = _far_to_near(place[:, :2], turn, sizes, eye[:2])
        meshes = [meshes[i] for i in order]
        place, turn = place[order], turn[order]
        counts = np.array([len(m.colors) for m in meshes])
        owner = np.repeat(np.arange(len(meshes)), counts)
        corners = np.concatenate([m.corners for m in meshes])
        normals = np.concatenate([m.normals for m in meshes])
        colors = np.concatenate([m.colors for m in meshes])
        glow = np.concatenate([m.glow for m in meshes])
        cos, sin = np.cos(turn)[owner].astype(np.float32), np.sin(turn)[owner].astype(np.float32)
        distance = np.hypot(place[:, 0] - eye[0], place[:, 1] - eye[1])[owner]
        points = np.empty_like(corners)
        points[..., 0] = corners[..., 0] * cos[:, None] - corners[..., 1] * sin[:, None] + place[owner, 0, None]
        points[..., 1] = corners[..., 0] * sin[:, None] + corners[..., 1] * cos[:, None] + place[owner, 1, None]
        points[..., 2] = corners[..., 2] + place[owner, 2, None]
        facing = np.stack([normals[:, 0] * cos - normals[:, 1] * sin, normals[:, 0] * sin + normals[:, 1] * cos,
                           normals[:, 2]], axis=-1)  # fmt: skip
        both = np.all(facing == 0, axis=-1)
        towards = np.sum(facing * (eye.astype(np.float32) - points[:, 0]), axis=-1) > 0
        shown = np.nonzero(towards | both)[0]
        pixels, kept = _project(points[shown], camera)
        shade = self._shade(facing[shown], both[shown] | glow[shown], pose[2])
        color = np.clip(colors[shown] * shade[:, None] * np.array(self.weather.tint, np.float32), 0, 255)
        paint = self._in_air(color, distance[shown] * np.where(glow[shown], 0.3, 1.0)).tolist()
        extent = pixels.max(axis=1) - pixels.min(axis=1)
        kept &= extent.max(axis=-1) > (1 << SUBPIXEL) * 0.7
        fill = cv2.fillConvexPoly
        for k in np.nonzero(kept)[0].tolist():
            fill(image, pixels[k], paint[k], cv2.LINE_AA, SUBPIXEL)

    def _shade(self, normals: F32, flat: NDArray[np.bool_], heading: float) -> F32:
        cos, sin = np.cos(heading), np.sin(heading)
        sun = np.array([self.sun[0] * cos + self.sun[1] * sin, -self.sun[0] * sin + self.sun[1] * cos, self.sun[2]])
        light = self.weather.ambient + (1.12 - self.weather.ambient) * np.maximum(normals @ sun.astype(np.float32), 0.0)
        return np.where(flat, np.float32(1.0), light).astype(np.float32)

    def _in_air(self, colors: F32, distance: NDArray[np.floating]) -> F32:
        fog = np.exp(-distance / self.weather.visibility).astype(np.float32)[:, None]
        return colors * fog + self.haze * (1 - fog)


def _to_ego(points: NDArray[np.floating], pose: tuple[float, float, float]) -> F32:
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y = points[:, 0] - pose[0], points[:, 1] - pose[1]
    return np.stack([x * cos + y * sin, -x * sin + y * cos], axis=-1).astype(np.float32)


def _in_view(
    centers: NDArray[np.floating], radii: NDArray[np.floating], camera: Camera, sight: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Circles that reach into the camera's wedge and range."""
    forward, right = camera.rotation[:2, 2], camera.rotation[:2, 0]
    offset = centers - camera.translation[:2]
    depth, aside = offset @ forward, offset @ right
    fx, cx = camera.intrinsic[0, 0], camera.intrinsic[0, 2]
    out = (depth + radii > NEAR) & (depth - radii < sight)
    for tangent, sign in (((camera.width - cx) / fx, 1.0), (cx / fx, -1.0)):
        out &= (sign * aside - depth * tangent) / np.hypot(1.0, tangent) < radii
    return out


def _far_to_near(
    centers: NDArray[np.float64], headings: NDArray[np.float64], half_sizes: NDArray[np.float64],
    eye: NDArray[np.float64],
) -> NDArray[np.int64]:  # fmt: skip
    """Drawing order: by distance, but whatever stands on the camera's side of a house wall comes after the house."""
    distance = np.hypot(*(centers - eye).T)
    houses = np.nonzero(half_sizes[:, 0] > 0)[0]
    houses = houses[np.argsort(-distance[houses])]
    others = np.nonzero(half_sizes[:, 0] == 0)[0]
    if not len(houses) or not len(others):
        return np.argsort(-distance)
    cos, sin = np.cos(headings[houses]), np.sin(headings[houses])

    def outside(points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(wall, house, point) whether a point lies before each of the four walls."""
        d = points[None] - centers[houses][:, None]
        u = d[..., 0] * cos[:, None] + d[..., 1] * sin[:, None]
        v = -d[..., 0] * sin[:, None] + d[..., 1] * cos[:, None]
        a, b = half_sizes[houses, 0][:, None], half_sizes[houses, 1][:, None]
        return np.stack([u > a, u < -a, v > b, v < -b])

    behind = ~(outside(eye[None]) & outside(centers[others])).any(axis=0)  # (house, other)
    first = np.where(behind.any(axis=0), behind.argmax(axis=0), len(houses))  # draw before this house
    slot = np.concatenate([np.arange(len(houses)) + 0.5, first.astype(float)])
    items = np.concatenate([houses, others])
    return items[np.lexsort((-distance[items], slot))]


def _project(points: NDArray[np.floating], camera: Camera) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Fixed-point pixels ``(face, corner, 2)`` of faces in the ego frame, cut at the near plane; which are in front."""
    offset = points - camera.translation.astype(np.float32)
    r = camera.rotation.astype(np.float32)
    # spelled out instead of a matrix product, whose rounding may depend on the number of BLAS threads
    local = offset[..., 0:1] * r[0] + offset[..., 1:2] * r[1] + offset[..., 2:3] * r[2]
    inside = local[..., 2] > NEAR
    any_inside = inside.any(axis=1)
    cut = np.nonzero(any_inside & ~inside.all(axis=1))[0]
    for k in cut:
        local[k] = _clip(local[k], local.shape[1])
    depth = np.maximum(local[..., 2:3], NEAR * 0.5)
    focal = np.array([camera.intrinsic[0, 0], camera.intrinsic[1, 1]], np.float32)
    pixels = local[..., :2] / depth * focal + camera.intrinsic[:2, 2].astype(np.float32)
    pixels = np.clip(pixels, -FAR_PIXEL, FAR_PIXEL)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    on_screen = (high[:, 0] > 0) & (low[:, 0] < camera.width) & (high[:, 1] > 0) & (low[:, 1] < camera.height)
    return _fixed(pixels), any_inside & on_screen


def _clip(face: F32, size: int) -> F32:
    """Cut one polygon at the near plane, keeping its padded length (a convex face gains at most one corner)."""
    following = np.roll(face, -1, axis=0)
    out = []
    for a, b in zip(face, following):
        if a[2] > NEAR:
            out.append(a)
        if (a[2] > NEAR) != (b[2] > NEAR):
            t = (NEAR - a[2]) / (b[2] - a[2])
            out.append(a + t * (b - a))
    if len(out) > size:  # a quadrilateral that became a pentagon: merge its two closest corners
        points = np.array(out)
        gaps = np.abs(np.roll(points, -1, axis=0) - points).sum(axis=1)
        while len(points) > size:
            points = np.delete(points, int(gaps.argmin()), axis=0)
            gaps = np.abs(np.roll(points, -1, axis=0) - points).sum(axis=1)
        return points.astype(np.float32)
    return np.array(out + [out[-1]] * (size - len(out)), np.float32)


def _fixed(pixels: NDArray[np.floating]) -> NDArray[np.int32]:
    # OpenCV puts pixel centers at whole numbers; the pinhole model puts image corners there
    return np.round((pixels - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
