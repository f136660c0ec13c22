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
    """All kept plans of the scenes of a source, in groups that were sampled together; scenes differ in how many."""

    names: tuple[str, ...]  # of the scores; the last is ``score``
    held_out: tuple[Group, ...]  # of the scenes that are held out, as they were rolled out
    plans: Tensor  # (plan, 8, 3) float32, by scene and group
    scores: Tensor  # (plan, score) float32
    begins: Tensor  # (group,) int64, by scene: where its plans begin
    sizes: Tensor  # (group,) int64: how many they are
    first: Tensor  # (scene + 1,) int64: the groups of scene i are those from first[i] to before first[i + 1]

    @classmethod
    def of(cls, runs: Sequence[KeptRollOuts], scenes: Sequence[str], held_out: Sequence[int] = ()) -> PlanPool:
        """What ``runs``, which share a rule, have kept of ``scenes``, of which ``held_out`` are not learned from.

        Raises as ``KeptRollOuts.cycles``.
        """
        names = (*(one.name for one in runs[0].rule.sub_scores), SCORE)
        rows, apart = {name: row for row, name in enumerate(scenes)}, torch.tensor([*held_out], dtype=torch.int64)
        found = [Group(torch.zeros(0).long(), torch.zeros(0, 1, NUM_POSES, 3), torch.zeros(0, 1, len(names)))]
        for run in runs:
            places = torch.tensor([rows.get(name, -1) for name in run.scenes])
            for buffer in run.cycles():
                scores = torch.stack([buffer.scores[name] for name in names], dim=-1)
                group = Group(places[buffer.indices], buffer.roll_outs["plans"].float(), scores.float())
                found.append(group.only(group.scenes >= 0))
        of = torch.cat([group.scenes for group in found])
        sizes = torch.cat([torch.full((len(group.scenes),), group.plans.shape[1]) for group in found])
        order = of.argsort(stable=True)
        of_plan = of.repeat_interleave(sizes).argsort(stable=True)
        return cls(
            names,
            tuple(part for group in found if len((part := group.only(torch.isin(group.scenes, apart))).scenes)),
            torch.cat([group.plans.flatten(0, 1) for group in found])[of_plan],
            torch.cat([group.scores.flatten(0, 1) for group in found])[of_plan],
            sizes[order].cumsum(0) - sizes[order],
            sizes[order],
            torch.cat([torch.zeros(1).long(), of.bincount(minlength=len(scenes)).cumsum(0)]),
        )

    @property
    def rows(self) -> Tensor:
        """(scene,) int64, the scenes that have plans."""
        return self.first.diff().nonzero().flatten()

    @property
    def held_out_rows(self) -> Tensor:
        """(scene,) int64, those of them that are held out."""
        rows = [group.scenes for group in self.held_out]
        return torch.cat(rows).unique() if rows else torch.zeros(0, dtype=torch.int64)

    @property
    def learned_scores(self) -> Tensor:
        """(plan, score) of the scenes that are not held out."""
        of = torch.arange(len(self.first) - 1).repeat_interleave(self.first.diff()).repeat_interleave(self.sizes)
        return self.scores[~torch.isin(of, self.held_out_rows)]

    def draw(self, rows: Tensor, count: int, random: RandomRows) -> tuple[Tensor, Tensor]:
        """Some plans of one group of each scene with their scores, (scene, count, 8, 3) and (scene, count, score).

        All different while the group has so many; else some come several times.

        Args:
            rows: (scene,) int64, of scenes that have plans. random: of these scenes.
        """
        many = self.first.diff()[rows]
        group = self.first[rows] + (random.uniform(1)[:, 0].double() * many).long()
        sizes = self.sizes[group, None]
        keys = random.uniform(int(self.sizes.max()))
        keys[torch.arange(keys.shape[1]) >= sizes] = torch.inf
        chosen = self.begins[group, None] + keys.argsort(dim=-1).gather(1, torch.arange(count) % sizes)
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
