"""``SceneBatch``: many metric scenes packed into padded, ego-centered tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.packing import SceneSizes, pack_scenes

_PADDED_AXES: dict[str, tuple[tuple[int, str], ...]] = {
    "reference_poses": ((1, "knots"),),
    "reference_times_us": ((1, "knots"),),
    "chain_vertices": ((1, "chains"),),
    "chain_polygon": ((1, "chains"),),
    "polygon_drivable": ((1, "polygons"),),
    "polygon_lane": ((1, "polygons"),),
    "polygon_on_route": ((1, "polygons"),),
    "polygon_intersection": ((1, "polygons"),),
    "centerline": ((1, "line_points"),),
    "centerline_mask": ((1, "line_points"),),
    "object_boxes": ((2, "objects"),),
    "object_mask": ((2, "objects"),),
    "object_track": ((1, "objects"),),
    "track_is_agent": ((1, "objects"),),
    "track_stopped": ((1, "objects"),),
    "track_skipped": ((1, "objects"),),
}

PADDING: dict[str, float] = {"chain_vertices": float("inf"), "reference_times_us": np.iinfo(np.int64).max}
"""Of axes longer than a scene needs, where it is not zero."""


class SceneNames(NamedTuple):
    """What a scene's columns and polygons are called; the score does not need it, explanations do."""

    track_tokens: tuple[str, ...]  # by object column; repeats point to their track through ``object_track``
    track_types: tuple[str, ...]
    polygon_tokens: tuple[str, ...]
    polygon_types: tuple[str, ...]


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as the score needs them: float64 tensors and masks, scene axis first.

    Coordinates are global axes moved to the ego rear axle at t = 0 (``origin``). The subtraction is exact in
    float64 for map coordinates, and unlike a rotation it rounds nothing. Objects live in columns: the first
    ones are the tracks in ``track_tokens`` order; further ones hold second occurrences of a token in a frame.
    Per-track values are stored at the track's own column.
    """

    tokens: tuple[str, ...]
    sizes: NDArray[np.int64]  # (scene, 5) columns of SceneSizes, kept on the CPU to avoid device syncs

    origin: Tensor  # (scene, 2) global position of the ego rear axle at t = 0 [m]
    ego_state: Tensor  # (scene, 11) as in ``MetricScene``, x = y = 0
    ego_time_us: Tensor  # (scene,) int64

    reference_poses: Tensor  # (scene, knot, 3) global heading, position relative to origin
    reference_times_us: Tensor  # (scene, knot) int64
    reference_count: Tensor  # (scene,) int64 valid knots

    chain_vertices: Tensor  # (scene, chain, CHAIN_EDGES + 1, 2) pieces of polygon rings, +inf as padding
    chain_polygon: Tensor  # (scene, chain) int64
    polygon_drivable: Tensor  # (scene, polygon) bool
    polygon_lane: Tensor  # (scene, polygon) bool, lane or lane connector
    polygon_on_route: Tensor  # (scene, polygon) bool, lane or lane connector on the route
    polygon_intersection: Tensor  # (scene, polygon) bool

    centerline: Tensor  # (scene, point, 2)
    centerline_mask: Tensor  # (scene, point) bool

    object_boxes: Tensor  # (scene, 51, object, 5) center x, center y, heading, half length, half width
    object_mask: Tensor  # (scene, 51, object) bool
    object_track: Tensor  # (scene, object) int64 column of the object's track (itself, except for repeats)
    track_is_agent: Tensor  # (scene, object) bool, moving kind of object at first sight
    track_stopped: Tensor  # (scene, object) bool, not an agent or standing at first sight
    track_skipped: Tensor  # (scene, object) bool, red-light tokens

    names: Sequence[SceneNames] | None = None  # one per scene, on the CPU; ``explain`` needs them

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_polygons(self) -> int:
        """Size of the padded polygon axis."""
        return self.polygon_drivable.shape[1]

    @property
    def object_counts(self) -> NDArray[np.int64]:
        """(scene,) columns that hold objects."""
        return np.ascontiguousarray(self.sizes[:, 4])

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.origin.device

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same scenes on another device."""
        return self._map(lambda name, tensor: tensor.to(device))

    def select(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> SceneBatch:
        """The scenes at ``index`` (may repeat), with padding cut to what they need."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        rows = np.asarray(index, dtype=np.int64).reshape(-1)
        sizes = self.sizes[rows]
        limit = SceneSizes(*(int(size) for size in sizes.max(axis=0))) if len(rows) else SceneSizes(*[0] * 5)
        row_tensor = torch.from_numpy(rows).to(self.device)

        def pick(name: str, tensor: Tensor) -> Tensor:
            for axis, kind in _PADDED_AXES.get(name, ()):
                tensor = tensor.narrow(axis, 0, min(tensor.shape[axis], getattr(limit, kind)))
            # a view where it can be one: rewards ask for many single scenes
            return tensor.narrow(0, int(rows[0]), 1) if len(rows) == 1 else tensor.index_select(0, row_tensor)

        return dataclasses.replace(
            self._map(pick),
            tokens=tuple(self.tokens[row] for row in rows.tolist()),
            sizes=sizes,
            names=None if self.names is None else tuple(self.names[row] for row in rows.tolist()),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SceneBatch]) -> SceneBatch:
        """The scenes of all parts, on one device, in order; padded to the largest of them."""
        tensors: dict[str, Any] = {
            field.name: concatenate_padded([getattr(part, field.name) for part in parts], PADDING.get(field.name, 0))
            for field in dataclasses.fields(cls)
            if isinstance(getattr(parts[0], field.name), Tensor)
        }
        names = [part.names for part in parts]
        return cls(
            tokens=tuple(token for part in parts for token in part.tokens),
            sizes=np.concatenate([part.sizes for part in parts]),
            names=None if None in names else tuple(name for some in names if some is not None for name in some),
            **tensors,
        )

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> SceneBatch:
        tensors: dict[str, Any] = {
            field.name: function(field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    @classmethod
    def from_scenes(cls, scenes: Sequence[MetricScene]) -> SceneBatch:
        """Pack scenes. Cost per scene is a few array appends; everything per row is vectorized.

        Raises:
            ValueError: no scenes, or a scene with NaN, missing or inconsistent arrays; names its token.
        """
        if len(scenes) == 0:
            raise ValueError("cannot build a SceneBatch from an empty list of scenes")
        arrays, sizes = pack_scenes(scenes)
        return cls(
            tokens=tuple(scene.token for scene in scenes),
            sizes=sizes,
            names=tuple(
                SceneNames(scene.track_tokens, scene.track_types, scene.polygon_tokens, scene.polygon_types)
                for scene in scenes
            ),
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
        )


def concatenate_padded(tensors: Sequence[Tensor], padding: float) -> Tensor:
    """Tensors one after another on the first axis; on the others they are padded to the largest."""
    shapes = np.array([tensor.shape for tensor in tensors])
    joined = tensors[0].new_full((int(shapes[:, 0].sum()), *shapes[:, 1:].max(axis=0).tolist()), padding)
    on_cpu = joined.device.type == "cpu"
    target: Any = joined.numpy() if on_cpu else joined  # numpy copies small pieces in a third of torch's time
    row = 0
    for tensor in tensors:
        end = row + len(tensor)
        target[(slice(row, end), *map(slice, tensor.shape[1:]))] = tensor.numpy() if on_cpu else tensor
        row = end
    return joined
