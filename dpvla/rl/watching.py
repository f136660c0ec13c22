"""Looking at the roll-outs of a cycle: further metrics, the distance to the pretrained policy, alarms.

The pretrained policy is the head without adapters. It and the policy of the cycle plan in some scenes from the same
noise, as later sampling does: what the pretrained one does there, too, such as waiting at a red light, is no alarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.batch import RewardFunction, Scores
from dpvla.device import to_device
from dpvla.models import DPVLA, SceneContext
from dpvla.models.sampling import Sampling
from dpvla.plan import NUM_POSES
from dpvla.random_rows import RandomRows, mix
from dpvla.rl.config import WatchConfig
from dpvla.rl.means import Means
from dpvla.rl.measures import displacement, pairwise_distance, reverses, stands_still

PLANS = 4
"""Of each policy, from the same noise, in every scene in which they are compared."""
APART = "pairwise_distance_m"
DOES = {"reversing": "drive backwards at their end", "standing": "stand still"}
"""What plans of a share do, in words."""
_NOISE = 0x57415443  # apart from the noise of roll-outs


@dataclass(frozen=True)
class Watched:
    """What scores the roll-outs beside the reward."""

    metrics: Mapping[str, RewardFunction] = field(default_factory=dict)  # by name
    guarded: tuple[str, ...] = ()  # sub-scores of any of them, or of the reward, whose loss is an alarm


class Watch:
    """Looks at one cycle after another; each alarm is said once."""

    def __init__(self, config: WatchConfig, watched: Watched, accelerator: Accelerator, seed: int) -> None:
        self.config, self.watched, self.accelerator = config, watched, accelerator
        self._seed = mix(seed, _NOISE)
        self._said: set[str] = set()
        self._left = 0
        self._means = self._own = self._base = Means()

    def begin(self) -> None:
        """A cycle begins."""
        self._left = -(-self.config.scenes // self.accelerator.num_processes)
        self._means, self._own, self._base = Means(), Means(), Means()

    def look(
        self,
        policy: DPVLA,
        context: SceneContext,
        scenes: Sequence[int],
        names: Sequence[str],
        plans: Tensor,
        scores: Scores,
        reward: RewardFunction,
    ) -> None:
        """Take in some scenes of the cycle.

        Args:
            scenes: their numbers in the source. names: how the metrics call them.
            plans: (scene, candidate, 8, 3) that were rolled out, on the CPU. scores: what ``reward`` gave for them.
        """
        self._add_measures(self._means, "rollout/", plans)
        metrics, found = {"": reward}, {"": scores}
        for name, metric in self.watched.metrics.items():
            metrics[f"{name}/"], found[f"{name}/"] = metric, metric(names, plans)
            for column, value in found[f"{name}/"].items():
                self._means.add(f"rollout/{name}/{column}", value.cpu())
        count = min(self._left, len(scenes))
        if not count or not policy.has_adapters:
            return
        self._left -= count
        compared = context.select(to_device(torch.arange(count), context.device))
        own, base = self._plans(policy, compared, scenes[:count])
        self._means.add("rollout/from_pretrained_m", displacement(own, base))
        for means, made in ((self._own, own), (self._base, base)):
            self._add_measures(means, "", made)
            for prefix, metric in metrics.items():
                guarded = [column for column in self.watched.guarded if column in found[prefix]]
                made_scores = metric(names[:count], made) if guarded else {}
                for column in guarded:
                    means.add(prefix + column, made_scores[column].cpu())

    def values(self, cycle: int) -> dict[str, float]:
        """What the cycle comes to, over all processes; says new alarms."""
        values = self._means.over_processes(self.accelerator)
        owns, bases = (means.over_processes(self.accelerator) for means in (self._own, self._base))
        for what, own in owns.items():
            base, than = bases[what], "in the same scenes"
            if what == APART:
                alarm, raised = "alike", own < self.config.alike * base
                text = f"plans of a scene are {own:.3g} m from each other, the pretrained policy's {base:.3g} m {than}"
            elif what in DOES:
                alarm, raised = what, own - base > self.config.rise
                text = f"{own:.0%} of the plans {DOES[what]}, {base:.0%} of the pretrained policy's {than}"
                values[f"rollout/{what}_rise"] = own - base
            else:
                alarm, raised = f"{what}_lost", base - own > self.config.fall
                text = f"{what} is {own:.3f}, for the pretrained policy's plans {base:.3f} {than}"
                values[f"rollout/{what}_fall"] = base - own
            values[f"alarm/{alarm}"] = float(raised)
            if raised and alarm not in self._said:
                self._said.add(alarm)
                self.accelerator.print(f"ALARM {alarm} in cycle {cycle + 1}: {text} (docs/watching.md)")
        return values

    def _add_measures(self, means: Means, prefix: str, plans: Tensor) -> None:
        means.add(f"{prefix}reversing", reverses(plans, self.config.reverse_mps))
        means.add(f"{prefix}standing", stands_still(plans, self.config.still_m))
        means.add(f"{prefix}{APART}", pairwise_distance(plans))

    def _plans(self, policy: DPVLA, context: SceneContext, scenes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the policy as it is sampled, and of the pretrained one, from the same noise: (scene, PLANS, 8, 3)."""
        noise = RandomRows.of(scenes, self._seed).normal(PLANS, NUM_POSES, policy.plan_coding.num_channels)
        pretrained = Sampling(num_steps=policy.sampling.num_steps)
        own, base = (policy.sample(context, PLANS, noise=noise, sampling=s) for s in (policy.sampling, pretrained))
        return own.cpu(), base.cpu()
