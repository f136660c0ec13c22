"""What RL fine-tuning costs a scene: floating-point operations of encoding, roll-outs and updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dpvla.algorithms.algorithm import Algorithm, RolloutBatch
from dpvla.models import DPVLA
from dpvla.models.flops import count_flops, encode_flops, on_meta
from dpvla.random_rows import RandomRows


@dataclass(frozen=True)
class SceneFlops:
    """Of one scene with its group of candidates."""

    encode: int  # images and command to tokens, once
    roll_out: int  # its group of plans, sampled once
    update: int  # its share of one update: forward and backward on its group

    def cycle(self, epochs: int, encodings: float = 1.0) -> float:
        """Of a cycle: so many encodings, one roll-out, ``epochs`` updates.

        ``encodings``: 1 where tokens are kept in memory, 0 where they lie on disk already, ``1 + epochs`` where every
        batch is encoded afresh.
        """
        return encodings * self.encode + self.roll_out + epochs * self.update


def scene_flops(
    policy: DPVLA, algorithm: Algorithm, group_size: int, scores: Sequence[str] = ("score",), equals_once: bool = False
) -> SceneFlops:
    """Of ``algorithm`` with ``policy``, which carries its adapters and whose encoder is frozen; from shapes alone.

    Args:
        policy: of any device, the meta device included; it is left as it is.
        scores: sub-scores that the algorithm's targets may look at.
        equals_once: whether two policies are sampled as one, as in the first cycle of a fresh start.

    Raises RuntimeError or NotImplementedError where the algorithm looks at values, which are not there.
    """
    policy = on_meta(policy).eval()
    policy.sampling, policy.runs_equals_once = algorithm.sampling(), equals_once
    encode, context = encode_flops(policy)
    made: list[RolloutBatch] = []

    @torch.no_grad()
    def roll_out() -> None:
        roll_outs = algorithm.roll_out(policy, context, group_size, RandomRows([0]))
        values = {name: torch.rand(1, group_size, dtype=torch.float64) for name in scores}
        targets = algorithm.targets(values, {name: torch.zeros_like(t, device="cpu") for name, t in roll_outs.items()})
        behavior = policy.snapshot_head() if algorithm.needs_behavior else None
        on_device = {name: target.to("meta") for name, target in targets.items()}
        made.append(RolloutBatch(context, roll_outs, on_device, behavior, RandomRows([0])))

    sampling = count_flops(roll_out)
    update = count_flops(lambda: algorithm.loss(policy.train(), made[0])[0].backward())
    return SceneFlops(encode, sampling, update)
