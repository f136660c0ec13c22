"""`MetricScene`s from logs and maps, by the rules of the devkit's metric caching that a metric asks for.

Objects, route, centerline, drivable area and the plan of the reference planner (PDM-Closed) are the devkit's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from dpvla.parallel import torch_threads
from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.files.logs import Log, annotated
from navsim_bridge.files.maps import Polygon, VectorMap, flatten, open_map
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.pdm.metric_scene import ODD_THINGS, MetricScene
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.pdm_closed.forecast import forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, PresentObjects, ReferencePlan, red_lights_on_route
from navsim_bridge.pdm_closed.planner import plan_references
from navsim_bridge.pdm_closed.route import MAP_RADIUS, OfficialRoute, official_route
from navsim_bridge.splits.scene_filter import Split, SplitError, require_future
from navsim_bridge.splits.scenes import SceneRecord, by_log, scene_log
from navsim_bridge.traffic.log_replay import observe
from navsim_bridge.traffic.starts import traffic_inputs

WHOLE_ROUTE = "lanes of the corrected route to its end"
LONGEST = "longest chain of lanes of the corrected route"


def require_scorable(split: Split, rules: SceneRules) -> None:
    """Raise SplitError when the scenes of ``split`` are private, or too short for metric scenes of ``rules``."""
    if split.two_stage is not None and split.two_stage.is_private:
        raise SplitError(
            f"split {split.name}: the server keeps what it is scored by: plans can be exported, not scored "
            "(tools/export_submission.py)"
        )
    require_future(split, rules.key_frames - 1, "scoring")


class SceneBuilder:
    """Builds the metric scenes of one log, and the synthetic ones that follow them."""

    def __init__(
        self, log_of: Callable[[SceneRecord], Log], maps: Mapping[str, VectorMap], rules: SceneRules = NAVSIM_V1
    ) -> None:
        """``log_of``: gives the log that a record's frames are counted in; ``maps``: location -> map."""
        self._log_of, self._maps, self._rules = log_of, maps, rules
        self._last: tuple[list[str], frozenset[str]] | None = None  # all scenes planned so far, what is ignored then

    def build(
        self,
        records: Sequence[SceneRecord],
        before: Sequence[SceneRecord] = (),
        failed: dict[str, ValueError] | None = None,
    ) -> list[MetricScene]:
        """The metric scenes of ``records``, in their order.

        The devkit's planner ignores what has touched the ego at t = 0 of an earlier scene, so a scene depends on those
        before it: ``records`` and ``before`` together should be all scenes of a split that lie in this log, up to the
        last of ``records``; synthetic ones come last.

        Args:
            records: scenes of the log.
            before: earlier scenes, which are not built.
            failed: when given, a scene that cannot be built is left out and its error put here by token.

        Raises:
            ValueError: naming log, scene and what is missing: future or history frames, annotations, traffic lights,
                or a roadblock of the route.
        """
        drafts: list[tuple[SceneRecord, Log, PlannerScene, OfficialRoute, tuple[str, ...]]] = []
        for record in sorted(records, key=lambda r: (r.synthetic is not None, r.first_frame)):
            try:
                log = self._log_of(record)
                drafts.append((record, log, *self._planner_scene(record, log)))
            except ValueError as error:
                self._fail(record, error, failed)
        with torch_threads(1):
            plans = plan_references(
                [scene for _, _, scene, _, _ in drafts],
                version=self._rules.planner,
                ignored=self._ignored_after(before),
            )
        scenes: dict[str, MetricScene] = {}
        if plans:
            self._last = [r.token for r in (*before, *records)], plans[-1].ignored
        for (record, log, planner_scene, route, odd), plan in zip(drafts, plans):
            try:
                scenes[record.token] = self._metric_scene(record, log, planner_scene, route, plan, odd)
            except ValueError as error:
                self._fail(record, error, failed)
        return [scenes[r.token] for r in records if r.token in scenes]

    def _ignored_after(self, records: Sequence[SceneRecord]) -> Collection[str]:
        """Tokens of what the planner ignores after these scenes; those that it cannot plan add nothing."""
        if self._last is not None and self._last[0] == [r.token for r in records]:
            return self._last[1]  # the next part of a log
        ignored: set[str] = set()
        for record in records:
            with suppress(ValueError):
                ignored.update(forecast(self._planner_scene(record, self._log_of(record))[0]).newly_ignored)
        return ignored

    @staticmethod
    def _fail(record: SceneRecord, error: ValueError, failed: dict[str, ValueError] | None) -> None:
        what = "synthetic scene" if record.synthetic else "scene"
        named = ValueError(f"{what} {record.token} of log {record.log_name}: {error}")
        if failed is None:
            raise named from error
        failed[record.token] = named

    def _planner_scene(self, record: SceneRecord, log: Log) -> tuple[PlannerScene, OfficialRoute, tuple[str, ...]]:
        """What the planner sees, its route, and what is odd in log and map (causes of `odd.ODD`)."""
        now, needed = record.first_frame + record.now, self._rules.key_frames - 1
        if record.synthetic is not None and (future := len(log) - now - 1) < needed:
            raise ValueError(f"{log.path} tells of {future} frames after t = 0; scoring needs {needed}: get it again")
        if record.synthetic is None and (future := len(record.poses) - record.num_history) < needed:
            raise ValueError(
                f"it has {future} future frames; scoring needs {needed}: use a split with num_future_frames: {needed}"
            )
        ego_state = np.zeros(11)
        ego_state[:3] = record.pose
        ego_state = ego_state_as_read_back(ego_state[None])[0]
        ego_state[3:5], ego_state[5:7] = record.velocity, record.acceleration
        red = log.red_lights[now]
        if red is None:
            raise ValueError(
                f"{log.path}: frame {now} (token {log.tokens[now]}) has no 'traffic_lights', which the "
                "reference planner stops for"
            )
        vector_map = self._maps[record.location]
        route = official_route(vector_map, record.route, record.pose)
        x, y, heading = ego_state[:3]
        center = float(x + REAR_AXLE_TO_CENTER * np.cos(heading)), float(y + REAR_AXLE_TO_CENTER * np.sin(heading))
        polygons = vector_map.drivable(*center, MAP_RADIUS)
        ring_of_polygon, vertex_of_ring, vertices = flatten(polygons)
        boxes = annotated(log.annotations[now : now + 1], log, now)[0]
        scene = PlannerScene(
            token=record.token,
            log_name=record.log_name,
            ego_state=ego_state,
            ego_time_us=int(record.times_us[record.now]),
            centerline=route.centerline,
            speed_limit=route.speed_limit,
            route_lane_ids=route.lanes,
            polygon_tokens=tuple(p.token for p in polygons),
            polygon_types=tuple(p.layer for p in polygons),
            polygon_ring_offsets=ring_of_polygon,
            ring_offsets=vertex_of_ring,
            vertices=vertices,
            present=PresentObjects.from_annotations(boxes, ego_state[:3]),
            red_lights=red_lights_on_route(red, route.lanes, self._polygons(vector_map, red)),
        )
        return scene, route, (*record.odd, *vector_map.odd_around(polygons, *center, MAP_RADIUS))

    @staticmethod
    def _polygons(vector_map: VectorMap, connectors: Sequence[str]) -> dict[str, Polygon]:
        found = {token: vector_map.polygons_of("LANE_CONNECTOR", token) for token in connectors}
        return {token: polygons[-1] for token, polygons in found.items() if polygons}

    def _metric_scene(
        self,
        record: SceneRecord,
        log: Log,
        scene: PlannerScene,
        route: OfficialRoute,
        plan: ReferencePlan,
        odd: tuple[str, ...],
    ) -> MetricScene:
        now = record.first_frame + record.now
        frames = slice(now, now + self._rules.key_frames)
        states = np.zeros((self._rules.key_frames, 11))
        states[:, :3] = log.poses[frames]
        poses = ego_state_as_read_back(states)[:, :3]
        boxes = annotated(log.annotations[frames], log, now)
        observation, vector_map = observe(boxes, poses), self._maps[record.location]
        v2 = self._rules.inputs and self._rules.inputs(log, vector_map, record, route.given_lanes)
        if v2 is not None:
            traffic = traffic_inputs(
                observation.track_tokens, **vars(scene.present), ego_pose=scene.ego_state[:3], vector_map=vector_map
            )
            v2 = dataclasses.replace(v2, traffic=traffic)
        return scene.metric_scene(
            reference_states=plan.states,
            reference_times_us=plan.times_us,
            **vars(observation),
            provenance={
                "reference": self._rules.reference,
                "centerline": WHOLE_ROUTE if route.reaches_end else LONGEST,
                **({ODD_THINGS: " ".join(odd)} if odd else {}),
            },
            v2=v2,
        )


def build_scenes(
    records: Sequence[SceneRecord],
    data_root: Path | str,
    maps_root: Path | str,
    rules: SceneRules = NAVSIM_V1,
    before: Sequence[SceneRecord] = (),
) -> Iterator[MetricScene]:
    """Metric scenes of ``records``, log by log in order of first appearance, in this process.

    Scenes depend on the ones before them in their log: pass all of a split together, or those that are not wanted as
    ``before``, see `SceneBuilder.build`.
    """
    earlier = by_log(before)
    for key, of_log in by_log(records).items():
        yield from scene_builder(of_log, data_root, maps_root, rules).build(of_log, earlier.get(key, ()))


def scene_builder(
    of_log: Sequence[SceneRecord], data_root: Path | str, maps_root: Path | str, rules: SceneRules = NAVSIM_V1
) -> SceneBuilder:
    """The builder for scenes of one log, and of synthetic ones that follow them."""
    maps = {location: open_map(maps_root, location) for location in {r.location for r in of_log}}
    return SceneBuilder(partial(scene_log, data_root=data_root), maps, rules)
