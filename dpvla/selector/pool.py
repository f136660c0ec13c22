"""Kept roll-outs as what a selector learns from: by scene, with what every plan scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpvla.config import ConfigError
from dpvla.plan import NUM_POSES
from dpvla.random_rows import RandomRows
from dpvla.rl.kept import KeptRollOuts
from dpvla.sub_scores import SCORE, ScoringRule


@dataclass(frozen=True)
class Group:
    """Plans that one policy sampled together, of several scenes."""

    scenes: Tensor  # (scene,) int64, as the source counts them
    plans: Tensor  # (scene, candidate, 8, 3) float32
    scores: Tensor  # (scene, candidate, score) float32, as ``PlanPool.names``

    def only(self, chosen: Tensor) -> Group:
        """The scenes at ``chosen`` (int64 or bool)."""
        return Group(self.scenes[chosen], self.plans[chosen], self.scores[chosen])


@dataclass(frozen=True)
class PlanPool:
    """All kept plans of the scenes of a source, which differ in how many they have."""

    names: tuple[str, ...]  # of the scores; the last is ``score``
    held_out: tuple[Group, ...]  # of the scenes that are held out, as they were rolled out
    plans: Tensor  # (plan, 8, 3) float32, by scene
    scores: Tensor  # (plan, score) float32
    first: Tensor  # (scene + 1,) int64: the plans of scene i are those from first[i] to before first[i + 1]

    @classmethod
    def of(cls, runs: Sequence[KeptRollOuts], scenes: Sequence[str], held_out: Sequence[int] = ()) -> PlanPool:
        """What ``runs``, which share a rule, have kept of ``scenes``, of which ``held_out`` are not learned from.

        Raises as ``KeptRollOuts.cycles``.
        """
        apart = torch.tensor([*held_out], dtype=torch.int64)
        names = (*(one.name for one in runs[0].rule.sub_scores), SCORE)
        rows = {name: row for row, name in enumerate(scenes)}
        groups = [Group(torch.zeros(0).long(), torch.zeros(0, 1, NUM_POSES, 3), torch.zeros(0, 1, len(names)))]
        for run in runs:
            places = torch.tensor([rows.get(name, -1) for name in run.scenes])
            for buffer in run.cycles():
                chosen = places[buffer.indices] >= 0
                scores = torch.stack([buffer.scores[name] for name in names], dim=-1)[chosen]
                plans = buffer.roll_outs["plans"][chosen]
                groups.append(Group(places[buffer.indices[chosen]], plans.float(), scores.float()))
        of = torch.cat([group.scenes.repeat_interleave(group.plans.shape[1]) for group in groups])
        order = of.argsort(stable=True)
        return cls(
            names,
            tuple(part for group in groups if len((part := group.only(torch.isin(group.scenes, apart))).scenes)),
            torch.cat([group.plans.flatten(0, 1) for group in groups])[order],
            torch.cat([group.scores.flatten(0, 1) for group in groups])[order],
            torch.cat([torch.zeros(1).long(), of.bincount(minlength=len(scenes)).cumsum(0)]),
        )

    @property
    def rows(self) -> Tensor:
        """(scene,) int64, the scenes that have plans."""
        return self.first.diff().nonzero().flatten()

    @property
    def learned_scores(self) -> Tensor:
        """(plan, score) of the scenes that are not held out."""
        return self.scores[~torch.isin(self.rows, self.held_out_rows).repeat_interleave(self.first.diff()[self.rows])]

    @property
    def held_out_rows(self) -> Tensor:
        """(scene,) int64, those of them that are held out."""
        rows = [group.scenes for group in self.held_out]
        return torch.cat(rows).unique() if rows else torch.zeros(0, dtype=torch.int64)

    def draw(self, rows: Tensor, count: int, random: RandomRows) -> tuple[Tensor, Tensor]:
        """Some plans of each scene with their scores, (scene, count, 8, 3) and (scene, count, score).

        All different while the scene has so many; else some come several times.

        Args:
            rows: (scene,) int64, of scenes that have plans. random: of these scenes.
        """
        many = self.first.diff()
        keys = random.uniform(int(many.max()))
        keys[torch.arange(keys.shape[1]) >= many[rows, None]] = torch.inf
        order = keys.argsort(dim=-1)
        chosen = self.first[rows, None] + order.gather(1, torch.arange(count) % many[rows, None])
        return self.plans[chosen], self.scores[chosen]


def same_rule(runs: Mapping[str, KeptRollOuts]) -> ScoringRule:
    """The rule that all runs' plans were scored by; ConfigError names two runs where they differ."""
    (first, rule), *others = ((path, kept.rule) for path, kept in runs.items())
    for path, other in others:
        if other.as_dict() != rule.as_dict():
            raise ConfigError(
                f"the roll-outs of {path} were scored by another metric than those of {first}: give runs of one metric"
            )
    return rule
