"""`MetricScene`s from logs and maps, by the rules of the devkit's metric caching that a metric asks for.

Objects, route, centerline, drivable area and the plan of the reference planner (PDM-Closed) are the devkit's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dpvla.parallel import torch_threads
from navsim_bridge.ego import REAR_AXLE_TO_CENTER
from navsim_bridge.files.logs import Log, annotated, log_path, open_log
from navsim_bridge.files.maps import Polygon, VectorMap, flatten, open_map
from navsim_bridge.metrics.scene_rules import NAVSIM_V1, SceneRules
from navsim_bridge.pdm.metric_scene import ODD_THINGS, MetricScene
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.pdm_closed.forecast import forecast
from navsim_bridge.pdm_closed.inputs import PlannerScene, PresentObjects, ReferencePlan, red_lights_on_route
from navsim_bridge.pdm_closed.planner import plan_references
from navsim_bridge.pdm_closed.route import MAP_RADIUS, OfficialRoute, official_route
from navsim_bridge.splits.scene_filter import Split, require_future
from navsim_bridge.splits.scenes import SceneRecord, by_log
from navsim_bridge.traffic.log_replay import observe
from navsim_bridge.traffic.starts import traffic_inputs

WHOLE_ROUTE = "lanes of the corrected route to its end"
LONGEST = "longest chain of lanes of the corrected route"


def require_scorable(split: Split, rules: SceneRules) -> None:
    """Raise SplitError when the scenes of ``split`` are too short for metric scenes of ``rules``."""
    require_future(split, rules.key_frames - 1, "scoring")


class SceneBuilder:
    """Builds the metric scenes of one log."""

    def __init__(self, log: Log, maps: Mapping[str, VectorMap], rules: SceneRules = NAVSIM_V1) -> None:
        """``maps``: location -> map, for every location of the log."""
        self._log, self._maps, self._rules = log, maps, rules
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
        last of ``records``.

        Args:
            records: scenes of the log.
            before: earlier scenes, which are not built.
            failed: when given, a scene that cannot be built is left out and its error put here by token.

        Raises:
            ValueError: naming log, scene and what is missing: future or history frames, annotations, traffic lights,
                or a roadblock of the route.
        """
        drafts: list[tuple[SceneRecord, PlannerScene, OfficialRoute, tuple[str, ...]]] = []
        for record in sorted(records, key=lambda r: r.first_frame):
            try:
                drafts.append((record, *self._planner_scene(record)))
            except ValueError as error:
                self._fail(record, error, failed)
        with torch_threads(1):
            plans = plan_references(
                [scene for _, scene, _, _ in drafts], version=self._rules.planner, ignored=self._ignored_after(before)
            )
        scenes: dict[str, MetricScene] = {}
        if plans:
            self._last = [r.token for r in (*before, *records)], plans[-1].ignored
        for (record, planner_scene, route, odd), plan in zip(drafts, plans):
            try:
                scenes[record.token] = self._metric_scene(record, planner_scene, route, plan, odd)
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
                ignored.update(forecast(self._planner_scene(record)[0]).newly_ignored)
        return ignored

    @staticmethod
    def _fail(record: SceneRecord, error: ValueError, failed: dict[str, ValueError] | None) -> None:
        named = ValueError(f"scene {record.token} of log {record.log_name}: {error}")
        if failed is None:
            raise named from error
        failed[record.token] = named

    def _planner_scene(self, record: SceneRecord) -> tuple[PlannerScene, OfficialRoute, tuple[str, ...]]:
        """What the planner sees, its route, and what is odd in log and map (causes of `odd.ODD`)."""
        now = record.first_frame + record.now
        future = len(record.poses) - record.num_history
        if future < self._rules.key_frames - 1:
            raise ValueError(
                f"it has {future} future frames; scoring needs {self._rules.key_frames - 1}: use a split with "
                f"num_future_frames: {self._rules.key_frames - 1}"
            )
        ego_state = np.zeros(11)
        ego_state[:3] = record.pose
        ego_state = ego_state_as_read_back(ego_state[None])[0]
        ego_state[3:5], ego_state[5:7] = record.velocity, record.acceleration
        red = self._log.red_lights[now]
        if red is None:
            raise ValueError(
                f"{self._log.path}: frame {now} (token {self._log.tokens[now]}) has no 'traffic_lights', which the "
                "reference planner stops for"
            )
        vector_map = self._maps[record.location]
        route = official_route(vector_map, record.route, record.pose)
        x, y, heading = ego_state[:3]
        center = float(x + REAR_AXLE_TO_CENTER * np.cos(heading)), float(y + REAR_AXLE_TO_CENTER * np.sin(heading))
        polygons = vector_map.drivable(*center, MAP_RADIUS)
        ring_of_polygon, vertex_of_ring, vertices = flatten(polygons)
        boxes = annotated(self._log.annotations[now : now + 1], self._log, now)[0]
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
        self, record: SceneRecord, scene: PlannerScene, route: OfficialRoute, plan: ReferencePlan, odd: tuple[str, ...]
    ) -> MetricScene:
        now = record.first_frame + record.now
        frames = slice(now, now + self._rules.key_frames)
        states = np.zeros((self._rules.key_frames, 11))
        states[:, :3] = self._log.poses[frames]
        poses = ego_state_as_read_back(states)[:, :3]
        boxes = annotated(self._log.annotations[frames], self._log, now)
        observation, inputs = observe(boxes, poses), self._rules.inputs
        return scene.metric_scene(
            reference_states=plan.states,
            reference_times_us=plan.times_us,
            **vars(observation),
            provenance={
                "reference": self._rules.reference,
                "centerline": WHOLE_ROUTE if route.reaches_end else LONGEST,
                **({ODD_THINGS: " ".join(odd)} if odd else {}),
            },
            v2=inputs
            and dataclasses.replace(
                inputs(self._log, self._maps[record.location], record, route.given_lanes),
                traffic=traffic_inputs(
                    observation.track_tokens,
                    **vars(scene.present),
                    ego_pose=scene.ego_state[:3],
                    vector_map=self._maps[record.location],
                ),
            ),
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
    """The builder for scenes of one log."""
    first = of_log[0]
    log = open_log(log_path(data_root, first.data_split, first.log_name))
    return SceneBuilder(log, {r.location: open_map(maps_root, r.location) for r in of_log}, rules)
