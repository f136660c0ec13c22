"""Polygons, boxes, polylines and filters against shapely and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.signal
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry.polygon import Polygon

from navsim_bridge.pdm.geometry import boxes_intersect, points_in_polygons, project_on_polyline
from navsim_bridge.pdm.terms.comfort import savgol_matrix

CHAIN = 4


def star(
    rng: np.random.Generator, center: NDArray[np.float64], radius: float, corners: int, snap: bool
) -> NDArray[np.float64]:
    """A simple polygon: corners at random distances, in order of angle."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    lengths = radius * rng.uniform(0.5, 1.0, corners)
    ring = center + np.stack((np.cos(angles), np.sin(angles)), axis=-1) * lengths[:, None]
    return np.round(ring) if snap else ring


def chains_of(polygons: list[list[NDArray[np.float64]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded chains of one scene from lists of rings."""
    pieces, owners = [], []
    for index, rings in enumerate(polygons):
        for ring in rings:
            closed = np.concatenate((ring, ring[:1]))
            for first in range(0, len(ring), CHAIN):
                piece = closed[first : first + CHAIN + 1]
                pieces.append(np.concatenate((piece, np.repeat(piece[-1:], CHAIN + 1 - len(piece), axis=0))))
                owners.append(index)
    return torch.from_numpy(np.stack(pieces))[None], torch.tensor(owners)[None]


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_point_in_polygon_equals_shapely_with_holes_and_edge_points(seed: int, snap: bool) -> None:
    rng = np.random.default_rng(seed)
    polygons: list[Any] = []
    shapes: list[Any] = []
    while len(shapes) < 12:
        center = rng.uniform(-30, 30, 2)
        rings = [star(rng, center, rng.uniform(4, 25), int(rng.integers(3, 40)), snap)]
        hole = star(rng, center, 2.0, int(rng.integers(3, 8)), snap)
        if shapely.Polygon(hole).is_valid and shapely.Polygon(rings[0]).contains(shapely.Polygon(hole)):
            rings.append(hole)
        shape = shapely.Polygon(rings[0], rings[1:])
        if shape.is_valid and shape.area > 0:
            polygons.append(rings)
            shapes.append(shape)
    vertices = np.concatenate([ring for rings in polygons for ring in rings])
    middles = (vertices[:-1] + vertices[1:]) / 2
    points = np.concatenate((rng.uniform(-50, 50, (400, 2)), rng.integers(-40, 40, (400, 2)), vertices, middles))
    if not snap:  # a rounded midpoint of a slanted edge has no exact side
        points = points[: -len(middles)]
    ours = points_in_polygons(torch.from_numpy(points)[None], *chains_of(polygons), len(shapes))[0].numpy()
    theirs = shapely.contains(np.array(shapes), shapely.points(points)[:, None])
    np.testing.assert_array_equal(ours, theirs)
    assert 0.02 < theirs.mean() < 0.9


def test_scenes_of_a_batch_do_not_see_each_others_polygons() -> None:
    square = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    chain, owner = chains_of([[square]])
    far, _ = chains_of([[square + 10.0]])
    points = torch.tensor([[[1.0, 1.0], [11.0, 11.0], [1.0, 2.0], [1e9, -1e9]]], dtype=torch.float64)
    inside = points_in_polygons(points.expand(2, -1, -1), torch.cat((chain, far)), owner.expand(2, -1), 1)
    assert inside[..., 0].tolist() == [[True, False, False, False], [False, True, False, False]]


box = st.tuples(
    st.floats(-6, 6), st.floats(-6, 6), st.floats(-4, 4), st.floats(0.1, 5), st.floats(0.1, 3)
)  # x, y, heading, half length, half width


def shapely_box(x: float, y: float, heading: float, length: float, width: float) -> Polygon:
    along = np.array([math.cos(heading), math.sin(heading)])
    across = np.array([-along[1], along[0]])
    corners = [
        np.array([x, y]) + lon * along + lat * across
        for lon, lat in ((length, width), (-length, width), (-length, -width), (length, -width))
    ]
    return shapely.Polygon(corners)


@settings(max_examples=200, deadline=None)
@given(box, box)
def test_boxes_intersect_as_in_shapely(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = shapely_box(*first), shapely_box(*second)
    touching = a.distance(b) < 1e-9 and (a.intersection(b).area < 1e-9)
    one, two = (torch.tensor([value], dtype=torch.float64) for value in (first, second))
    ours = boxes_intersect(one[:, :2], one[:, 2], (first[3], first[4]), two[:, :2], two[:, 2], two[:, 3:]).item()
    assert touching or ours == a.intersects(b)


def test_touching_boxes_and_segments_count_as_hits() -> None:
    def hit(x: float, half: tuple[float, float]) -> bool:
        center = torch.tensor([[x, 0.0]], dtype=torch.float64)
        zero, unit = torch.zeros(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
        return boxes_intersect(torch.zeros_like(center), zero, half, center, zero, unit).item() == 1

    assert hit(3.0, (2.0, 1.0)) and not hit(3.0 + 1e-12, (2.0, 1.0))
    assert hit(1.0, (0.0, 1.0)) and not hit(1.0 + 1e-12, (0.0, 1.0))


@pytest.mark.parametrize("seed", range(5))
def test_projection_equals_shapely_also_on_folded_and_repeated_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = np.cumsum(rng.normal(size=(30, 2)) * 3, axis=0)
    line = np.concatenate((line, line[-1:], line[-6:-2][::-1], line[:1]))
    padded = torch.zeros((1, len(line) + 7, 2), dtype=torch.float64)
    padded[0, : len(line)] = torch.from_numpy(line)
    mask = torch.arange(padded.shape[1])[None] < len(line)
    points = rng.normal(size=(300, 2)) * 20
    ours = project_on_polyline(torch.from_numpy(points)[None], padded, mask)[0].numpy()
    theirs = shapely.line_locate_point(shapely.LineString(line), shapely.points(points))
    # on the retraced part two places are equally near and rounding picks one
    where = shapely.line_interpolate_point(shapely.LineString(line), ours)
    np.testing.assert_allclose(
        shapely.distance(where, shapely.points(points)),
        shapely.distance(shapely.LineString(line), shapely.points(points)),
        atol=1e-9,
    )
    assert (np.abs(ours - theirs) < 1e-9).mean() > 0.9


def test_line_of_length_zero_gives_no_progress() -> None:
    line = torch.ones((1, 2, 2), dtype=torch.float64)
    at = project_on_polyline(torch.randn((1, 5, 2), dtype=torch.float64), line, torch.ones((1, 2), dtype=torch.bool))
    assert (at == 0).all()


@pytest.mark.parametrize(
    "window, order, derivative", [(41, 2, 0), (41, 2, 1), (8, 2, 0), (15, 2, 1), (5, 2, 1), (5, 3, 2), (7, 3, 0)]
)
def test_savgol_matrix_equals_scipy(window: int, order: int, derivative: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, 41))
    ours = values @ savgol_matrix(41, window, order, derivative, 0.1).T
    theirs = scipy.signal.savgol_filter(values, window, order, deriv=derivative, delta=0.1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_edges_on_a_diagonal_through_round_coordinates_keep_points_apart() -> None:
    """Cells' centers once lay on the line y = x - 3: rounding then put all points of a cell on its wrong side."""
    ring = [(-6, -2), (4, 0), (-5, -4), (-3, 0), (-6, -6), (4, -1), (-3, -6), (3, 0), (-6, 1), (4, 4), (-6, -2)]
    points = torch.tensor([[[3.0, 0.5], [3.5, 0.0], [2.5, 0.5], [2.5, 0.0], [3.5, 3.5]]], dtype=torch.float64)
    chains = torch.tensor([[ring]], dtype=torch.float64)
    inside = points_in_polygons(points, chains, torch.zeros((1, 1), dtype=torch.int64), 1)
    assert inside.flatten().tolist() == [False, False, False, True, False]
