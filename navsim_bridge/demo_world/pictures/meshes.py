"""Shapes of everything that stands up, as lists of colored flat faces around the object's foot point.

Axes: x forward, y left, z up from the ground, meters; colors BGR. Faces are convex and listed in an order that
paints right when faces turned away from the camera are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CORNERS = 8
Color = tuple[float, float, float]
Points = list[tuple[float, float, float]]

GLASS, TIRE, HUB = (88, 70, 56), (34, 34, 36), (150, 150, 152)
TAIL_LIGHT, BRAKE_LIGHT, HEAD_LIGHT = (40, 38, 150), (60, 60, 255), (225, 245, 250)
CAR_PAINTS: tuple[Color, ...] = (
    (235, 235, 235), (60, 58, 58), (170, 172, 174), (52, 48, 176), (158, 92, 42), (120, 112, 106), (96, 128, 60),
    (205, 210, 214), (70, 130, 190), (48, 70, 140), (140, 140, 60), (40, 42, 46),
)  # fmt: skip
CLOTHES: tuple[Color, ...] = (
    (60, 60, 200), (190, 110, 50), (70, 160, 80), (50, 170, 230), (150, 60, 150), (210, 210, 215), (80, 80, 86),
)  # fmt: skip


@dataclass(frozen=True)
class Mesh:
    """Faces of one shape."""

    corners: NDArray[np.float32]  # (face, CORNERS, 3), padded by repeating the last corner
    normals: NDArray[np.float32]  # (face, 3); zero for faces that are painted from both sides
    colors: NDArray[np.float32]  # (face, 3) BGR
    glow: NDArray[np.bool_]  # (face,) lamps: not shaded
    billboard: bool  # turned towards the camera about the vertical
    radius: float


class _Faces:
    def __init__(self) -> None:
        self.corners: list[NDArray[np.float64]] = []
        self.normals: list[NDArray[np.float64]] = []
        self.colors: list[Color] = []
        self.glow: list[bool] = []

    def add(
        self, points: Points | NDArray[np.float64], color: Color, glow: bool = False, both: bool = False,
        inside: tuple[float, float, float] = (0.0, 0.0, 1.0),
    ) -> None:  # fmt: skip
        """A convex face; its outer side is the one away from ``inside``."""
        corners = np.asarray(points, float)
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[1])
        length = float(np.linalg.norm(normal))
        if both or length == 0:
            normal = np.zeros(3)
        else:
            normal = normal / length * np.sign(normal @ (corners.mean(axis=0) - inside))
        self.normals.append(normal)
        self.corners.append(np.concatenate([corners, np.repeat(corners[-1:], CORNERS - len(corners), axis=0)]))
        self.colors.append(color)
        self.glow.append(glow)

    def block(
        self, x0: float, x1: float, half: float, z0: float, z1: float, color: Color, top_half: float | None = None,
        top_x: tuple[float, float] | None = None, y: float = 0.0,
    ) -> None:  # fmt: skip
        """A box, or with ``top_half``/``top_x`` a truncated wedge, without its bottom."""
        t, (a, b) = half if top_half is None else top_half, top_x or (x0, x1)
        low = [(x1, y + half, z0), (x0, y + half, z0), (x0, y - half, z0), (x1, y - half, z0)]
        high = [(b, y + t, z1), (a, y + t, z1), (a, y - t, z1), (b, y - t, z1)]
        inside = (0.5 * (x0 + x1), y, 0.5 * (z0 + z1))
        for i in range(4):
            j = (i + 1) % 4
            self.add([low[j], low[i], high[i], high[j]], color, inside=inside)
        self.add(high, color, inside=inside)

    def disc(self, x: float, y: float, z: float, radius: float, color: Color, side: float) -> None:
        """Octagon in a plane of constant y, facing ``side``."""
        angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        points = [(x + radius * np.cos(a), y, z + radius * np.sin(a)) for a in angles]
        self.add(points, color, inside=(x, y - side, z))

    def board(self, points: list[tuple[float, float]], color: Color, glow: bool = False) -> None:
        """A face of a billboard from (aside, up) pairs; painted from both sides."""
        self.add([(0.0, y, z) for y, z in points], color, glow, both=True)

    def round_board(self, y: float, z: float, ry: float, rz: float, color: Color) -> None:
        angles = np.linspace(0, 2 * np.pi, 8, endpoint=False) + 0.39
        self.board([(y + ry * float(np.cos(a)), z + rz * float(np.sin(a))) for a in angles], color)

    def mesh(self, billboard: bool = False) -> Mesh:
        corners = np.stack(self.corners).astype(np.float32)
        return Mesh(
            corners, np.stack(self.normals).astype(np.float32), np.array(self.colors, np.float32),
            np.array(self.glow), billboard, float(np.abs(corners[..., :2]).max() * 1.42),
        )  # fmt: skip


@lru_cache(maxsize=512)
def car(length: float, width: float, height: float, paint: int, braking: bool) -> Mesh:
    """A saloon, estate or van, by its proportions; a truck if it is long."""
    if length > 7.0:
        return _truck(length, width, height, paint, braking)
    f = _Faces()
    color = CAR_PAINTS[paint % len(CAR_PAINTS)]
    low, belt, half = 0.18 * height, (0.60 if height < 2.0 else 0.5) * height, width / 2
    rear, front = -length / 2, length / 2
    tall = height > 1.55
    back, roof_back = (
        (rear + 0.02 * length, rear + 0.07 * length) if tall else (rear + 0.12 * length, rear + 0.25 * length)
    )
    hood = front - (0.24 if height < 2.0 else 0.14) * length
    roof_front = hood - 0.16 * length
    for x in (rear + 0.19 * length, front - 0.19 * length):
        for y in (half - 0.12, 0.12 - half):
            f.block(x - 0.3, x + 0.3, 0.11, 0.0, 0.5, TIRE, y=y)
    f.block(rear + 0.1, front - 0.1, half * 0.8, 0.16, 0.4, (46, 46, 48))
    f.block(rear, front, half, low, belt, color, half * 0.96, (rear + 0.01 * length, front - 0.04 * length))
    for x in (rear + 0.19 * length, front - 0.19 * length):
        for side in (1.0, -1.0):
            f.disc(x, side * (half + 0.01), 0.34, 0.345, TIRE, side)
            f.disc(x, side * (half + 0.02), 0.34, 0.19, HUB, side)
    light = BRAKE_LIGHT if braking else TAIL_LIGHT
    for side in (1.0, -1.0):
        y0, y1 = sorted((side * half * 0.94, side * half * 0.56))
        z0, z1, x = low + 0.55 * (belt - low), low + 0.92 * (belt - low), rear - 0.01
        f.add([(x, y1, z0), (x, y1, z1), (x, y0, z1), (x, y0, z0)], light, glow=braking)
        x = front + 0.01
        z0, z1 = z0 - 0.05, z1 - 0.1
        f.add([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], HEAD_LIGHT, glow=True)
    x = rear - 0.01
    f.add([(x, -0.26, low + 0.1), (x, -0.26, low + 0.24), (x, 0.26, low + 0.24), (x, 0.26, low + 0.1)], (225, 228, 228))
    x = front + 0.01
    f.add([(x, -0.5, low + 0.08), (x, 0.5, low + 0.08), (x, 0.5, low + 0.3), (x, -0.5, low + 0.3)], (42, 42, 44))
    _cabin(f, back, hood, roof_back, roof_front, half, belt, height, color)
    return f.mesh()


def _cabin(
    f: _Faces, back: float, hood: float, roof_back: float, roof_front: float, half: float, belt: float, top: float,
    color: Color,
) -> None:  # fmt: skip
    low_half, high_half = half * 0.95, half * 0.78
    f.block(back, hood, low_half, belt, top, color, high_half, (roof_back, roof_front))

    def mix(a: float, b: float, t: float) -> float:
        return a + (b - a) * t

    def pane(points: list[tuple[float, float, float]]) -> None:
        f.add(points, GLASS)

    rise = top - belt
    z0, z1 = belt + 0.12 * rise, belt + 0.86 * rise
    h0, h1 = mix(low_half, high_half, 0.12) + 0.006, mix(low_half, high_half, 0.86) + 0.006
    x0, x1 = mix(hood, roof_front, 0.12) + 0.006, mix(hood, roof_front, 0.86) + 0.006
    pane([(x0, -h0 * 0.9, z0), (x0, h0 * 0.9, z0), (x1, h1 * 0.9, z1), (x1, -h1 * 0.9, z1)])
    r0, r1 = mix(back, roof_back, 0.12) - 0.006, mix(back, roof_back, 0.86) - 0.006
    pane([(r0, h0 * 0.9, z0), (r0, -h0 * 0.9, z0), (r1, -h1 * 0.9, z1), (r1, h1 * 0.9, z1)])
    middle = 0.5 * (back + hood)
    for side in (1.0, -1.0):
        for a0, b0, a1, b1 in (
            (r0 + 0.22, middle - 0.05, r1 + 0.16, middle - 0.05), (middle + 0.05, x0 - 0.22, middle + 0.05, x1 - 0.16)
        ):  # fmt: skip
            points = [(b0, side * h0, z0), (a0, side * h0, z0), (a1, side * h1, z1), (b1, side * h1, z1)]
            f.add(points, GLASS, inside=(0.5 * (a0 + b0), 0.0, z0))


def _truck(length: float, width: float, height: float, paint: int, braking: bool) -> Mesh:
    f = _Faces()
    half, split = width / 2, length / 2 - 2.2
    box = ((214, 216, 218), (196, 170, 120), (130, 160, 190))[paint % 3]
    cab = CAR_PAINTS[paint % len(CAR_PAINTS)]
    axles = (-length / 2 + 1.1, -length / 2 + 2.3, length / 2 - 1.2)
    for x in axles:
        for y in (half * 0.92 - 0.2, 0.2 - half * 0.92):
            f.block(x - 0.42, x + 0.42, 0.2, 0.0, 0.8, TIRE, y=y)
    f.block(-length / 2, length / 2, half * 0.92, 0.45, 0.95, (70, 70, 72))
    for x in axles:
        for side in (1.0, -1.0):
            f.disc(x, side * (half * 0.92 + 0.02), 0.48, 0.48, TIRE, side)
            f.disc(x, side * (half * 0.92 + 0.03), 0.48, 0.24, HUB, side)
    cab_top, hood = height * 0.82, length / 2
    f.block(split, hood, half * 0.95, 0.9, cab_top, cab, half * 0.9, (split, hood - 0.25))
    x = hood - 0.12
    f.add([(x + 0.02, -half * 0.8, 1.65), (x + 0.02, half * 0.8, 1.65), (x - 0.1, half * 0.78, cab_top - 0.25),
           (x - 0.1, -half * 0.78, cab_top - 0.25)], GLASS)  # fmt: skip
    f.block(-length / 2, split - 0.1, half, 0.95, height, box)
    for side in (1.0, -1.0):
        y0, y1 = sorted((side * half * 0.9, side * half * 0.62))
        x = -length / 2 - 0.01
        f.add(
            [(x, y0, 0.6), (x, y0, 0.85), (x, y1, 0.85), (x, y1, 0.6)], BRAKE_LIGHT if braking else TAIL_LIGHT, braking
        )
    x = -length / 2 - 0.01
    f.add([(x, -half * 0.9, 1.05), (x, -half * 0.9, height - 0.1), (x, -0.03, height - 0.1), (x, -0.03, 1.05)],
          tuple(0.9 * b for b in box))  # type: ignore[arg-type]  # fmt: skip
    return f.mesh()


@lru_cache(maxsize=64)
def pedestrian(paint: int, stride: int) -> Mesh:
    """A walker, as a billboard; ``stride`` in -1, 0, 1 spreads the legs."""
    f = _Faces()
    coat, trousers = CLOTHES[paint % len(CLOTHES)], ((90, 70, 50), (60, 60, 62), (110, 90, 80))[paint % 3]
    step = 0.16 * abs(stride)
    for side in (1.0, -1.0):
        foot = side * (0.07 + step)
        f.board(
            [(foot - 0.075, 0.0), (foot + 0.075, 0.0), (side * 0.08 + 0.09, 0.86), (side * 0.08 - 0.09, 0.86)], trousers
        )
    f.board([(-0.19, 0.8), (0.19, 0.8), (0.25, 1.38), (0.14, 1.5), (-0.14, 1.5), (-0.25, 1.38)], coat)
    for side in (1.0, -1.0):
        hand = side * (0.3 + 0.08 * stride)
        f.board([(hand - 0.06, 0.82), (hand + 0.06, 0.82), (side * 0.27, 1.4), (side * 0.16, 1.42)],
                tuple(0.8 * c for c in coat))  # type: ignore[arg-type]  # fmt: skip
    f.round_board(0.0, 1.63, 0.125, 0.15, (130, 165, 205))
    f.board(
        [(-0.13, 1.65), (0.13, 1.65), (0.1, 1.79), (-0.1, 1.79)],
        ((40, 50, 70), (30, 30, 34), (70, 110, 150))[paint % 3],
    )
    return f.mesh(billboard=True)


@lru_cache(maxsize=32)
def bicycle(paint: int) -> Mesh:
    """A bicycle with its rider."""
    f = _Faces()
    coat = CLOTHES[(paint + 2) % len(CLOTHES)]
    for x in (-0.55, 0.55):
        f.add(
            [(x - 0.34, -0.03, 0.0), (x + 0.34, -0.03, 0.0), (x + 0.34, 0.03, 0.66), (x - 0.34, 0.03, 0.66)],
            TIRE,
            both=True,
        )
        for side in (1.0, -1.0):
            f.disc(x, side * 0.035, 0.34, 0.34, TIRE, side)
            f.disc(x, side * 0.04, 0.34, 0.27, (150, 150, 150), side)
    f.block(-0.5, 0.5, 0.04, 0.5, 0.6, (50, 60, 190))
    f.block(-0.25, 0.1, 0.16, 0.35, 0.95, (80, 66, 58))
    f.block(-0.3, 0.12, 0.21, 0.9, 1.45, coat, 0.18, (-0.15, 0.2))
    f.block(-0.06, 0.18, 0.11, 1.47, 1.74, (130, 165, 205))
    f.block(-0.08, 0.2, 0.12, 1.64, 1.78, (60, 200, 240))
    return f.mesh()


@lru_cache(maxsize=1)
def cone() -> Mesh:
    f = _Faces()
    orange, white = (30, 110, 250), (240, 240, 240)
    f.board([(-0.24, 0.0), (0.24, 0.0), (0.22, 0.06), (-0.22, 0.06)], (24, 60, 150))
    f.board([(-0.17, 0.06), (0.17, 0.06), (0.11, 0.34), (-0.11, 0.34)], orange)
    f.board([(-0.11, 0.34), (0.11, 0.34), (0.075, 0.54), (-0.075, 0.54)], white)
    f.board([(-0.075, 0.54), (0.075, 0.54), (0.03, 0.78), (-0.03, 0.78)], orange)
    return f.mesh(billboard=True)


@lru_cache(maxsize=8)
def barrier(width: float) -> Mesh:
    """A road-works barrier across the lane with red and white stripes on both faces."""
    f = _Faces()
    half = width / 2
    for y in (-half * 0.75, half * 0.75):
        f.block(-0.2, 0.2, 0.05, 0.0, 0.5, (90, 92, 94), y=y)
    f.block(-0.06, 0.06, half, 0.45, 1.1, (236, 236, 238))
    stripes = 5
    for x in (0.07, -0.07):
        for k in range(stripes):
            a = -half + width * (k + 0.1) / stripes
            b = a + width * 0.5 / stripes
            points = [(x, a, 0.47), (x, b, 0.47), (x, min(b + 0.16, half), 1.08), (x, min(a + 0.16, half), 1.08)]
            f.add(points, (48, 48, 214), inside=(0.0, 0.5 * (a + b), 0.8))
    return f.mesh()


@lru_cache(maxsize=1)
def road_works_sign() -> Mesh:
    f = _Faces()
    f.board([(-0.04, 0.0), (0.04, 0.0), (0.04, 1.1), (-0.04, 1.1)], (90, 90, 92))
    f.board([(0.0, 0.72), (0.62, 1.34), (0.0, 1.96), (-0.62, 1.34)], (30, 34, 40))
    f.board([(0.0, 0.8), (0.54, 1.34), (0.0, 1.88), (-0.54, 1.34)], (22, 128, 250))
    f.board([(-0.22, 1.12), (0.22, 1.12), (0.05, 1.5), (-0.05, 1.5)], (30, 34, 40))
    return f.mesh(billboard=True)


@lru_cache(maxsize=1)
def digger() -> Mesh:
    f = _Faces()
    yellow = (40, 176, 240)
    for y in (-0.75, 0.75):
        f.block(-1.7, 1.7, 0.25, 0.0, 0.75, (50, 50, 52), y=y)
    f.block(-1.8, 1.2, 0.95, 0.7, 1.5, yellow)
    f.block(-0.4, 0.9, 0.55, 1.5, 2.5, yellow, 0.5, (-0.3, 0.8), y=0.3)
    f.add([(0.92, -0.2, 1.6), (0.92, 0.8, 1.6), (0.83, 0.75, 2.35), (0.83, -0.15, 2.35)], GLASS)
    f.block(0.9, 2.3, 0.16, 1.2, 1.6, yellow, 0.12, (1.7, 2.3), y=-0.4)
    return f.mesh()


def house(front: float, depth: float, stories: int, color: Color, variant: int) -> Mesh:
    """A block with rows of windows and a darker ground floor."""
    f = _Faces()
    height = 3.2 * stories + 0.8
    f.block(-front / 2, front / 2, depth / 2, 0.0, height, color)
    dark = tuple(0.72 * c for c in color)
    glass = ((120, 104, 92), (146, 126, 104), (104, 96, 92))[variant % 3]
    walls = (  # outward direction, along the wall, half width, distance
        ((0.0, 1.0), (-1.0, 0.0), front / 2, depth / 2), ((0.0, -1.0), (1.0, 0.0), front / 2, depth / 2),
        ((1.0, 0.0), (0.0, 1.0), depth / 2, front / 2), ((-1.0, 0.0), (0.0, -1.0), depth / 2, front / 2),
    )  # fmt: skip
    for out, along, half, distance in walls:

        def pane(
            a: float, b: float, z0: float, z1: float, paint: Color,
            out: tuple[float, float] = out, along: tuple[float, float] = along, distance: float = distance,
        ) -> None:  # fmt: skip
            x, y = out[0] * (distance + 0.03), out[1] * (distance + 0.03)
            f.add([(x + along[0] * t, y + along[1] * t, z) for t, z in ((a, z0), (b, z0), (b, z1), (a, z1))], paint)

        pane(-half, half, 0.0, 3.0, dark)  # type: ignore[arg-type]
        pane(-half * 0.8, -half * 0.1, 0.5, 2.5, glass)
        pane(half * 0.15, half * 0.75, 0.3, 2.5, glass)
        columns = 2 + (variant + int(half)) % 3
        for story in range(1, stories):
            z = 3.2 * story + 0.9
            if variant % 4 == 0:
                pane(-half * 0.88, half * 0.88, z, z + 1.5, glass)
                continue
            for k in range(columns):
                middle = -half + 2 * half * (k + 0.5) / columns
                pane(middle - half * 0.55 / columns, middle + half * 0.55 / columns, z, z + 1.6, glass)
        pane(-half, half, height - 0.5, height + 0.05, dark)  # type: ignore[arg-type]
    return f.mesh()


def tree(rng: np.random.Generator) -> Mesh:
    f = _Faces()
    scale = rng.uniform(0.8, 1.35)
    base = np.array([62.0, 122.0, 74.0]) * rng.uniform(0.82, 1.15) + rng.uniform(-8, 8, 3)
    trunk = 2.0 * scale
    f.board(
        [(-0.16 * scale, 0.0), (0.16 * scale, 0.0), (0.11 * scale, trunk + 0.6), (-0.11 * scale, trunk + 0.6)],
        (58, 78, 98),
    )

    def puff(y: float, z: float, radius: float, shade: float) -> None:
        b, g, r = base * shade
        f.round_board(y * scale, z * scale, radius * scale, radius * 0.92 * scale, (float(b), float(g), float(r)))

    puff(0.0, 2.0 + 1.4, 1.75, 0.78)
    puff(-0.85, 2.0 + 1.0, 1.1, 0.82)
    puff(0.9, 2.0 + 1.1, 1.05, 0.86)
    puff(-0.35, 2.0 + 2.0, 1.25, 1.0)
    puff(0.4, 2.0 + 1.8, 0.95, 1.1)
    puff(-0.45, 2.0 + 2.35, 0.7, 1.22)
    return f.mesh(billboard=True)


@lru_cache(maxsize=1)
def lamp() -> Mesh:
    f = _Faces()
    f.block(-0.07, 0.07, 0.07, 0.0, 6.2, (110, 108, 106))
    f.block(-0.06, 0.06, 0.7, 6.1, 6.22, (110, 108, 106), y=0.65)
    f.block(-0.12, 0.12, 0.3, 5.98, 6.12, (206, 214, 220), y=1.2)
    return f.mesh()


def mast(reach: NDArray[np.float64], height: float) -> Mesh:
    """A post with an arm to ``reach`` (x, y) at ``height``."""
    f = _Faces()
    f.block(-0.12, 0.12, 0.12, 0.0, height, (74, 76, 74))
    x, y = reach
    f.add([(0.0, 0.0, height - 0.1), (x, y, height - 0.1), (x, y, height + 0.06), (0.0, 0.0, height + 0.12)],
          (74, 76, 74), both=True)  # fmt: skip
    return f.mesh()


@lru_cache(maxsize=4)
def signal_head(state: int) -> Mesh:
    """A signal head for traffic driving towards +x: black case, three lenses, the lit one bright (0 green, 1 yellow,
    2 red)."""
    f = _Faces()
    f.block(-0.15, 0.15, 0.36, -0.85, 0.85, (40, 42, 44))
    lit = ((90, 250, 60), (40, 200, 255), (40, 40, 255))
    dim = ((44, 62, 40), (36, 58, 70), (40, 40, 78))
    for k, z in enumerate((-0.55, 0.0, 0.55)):  # green at the bottom
        on = k == state
        radius = 0.29 if on else 0.22
        angles = np.linspace(0, 2 * np.pi, 8, endpoint=False) + 0.39
        f.add([(-0.16, radius * np.cos(a), z + radius * np.sin(a)) for a in angles], lit[k] if on else dim[k], glow=on,
              inside=(0.0, 0.0, z))  # fmt: skip
    return f.mesh()
