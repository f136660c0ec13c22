"""What one cycle of roll-outs leaves for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.algorithms.advantages import ZERO_SPREAD, group_advantages
from dpvla.plan import NUM_POSES
from dpvla.tensors import CheckpointError, load_tensors, save_tensors, shown

ROLL_OUTS, SCORES = "roll_outs.", "scores."


@dataclass(frozen=True)
class RolloutBuffer:
    """Scored roll-outs of one cycle, of all processes; scene axis first."""

    cycle: int
    indices: Tensor  # (scene,) int64, positions in the scene source
    roll_outs: Mapping[str, Tensor]  # (scene, candidate, ...) each; 'plans' (scene, candidate, 8, 3) in the ego frame
    scores: Mapping[str, Tensor]  # (scene, candidate) each; 'score' is the reward
    processes: int = 1  # that shared the scenes, where an earlier version wrote the file: it gave each an equal part

    def __len__(self) -> int:
        return len(self.indices)

    def gathered(self, accelerator: Accelerator, rows: Tensor) -> RolloutBuffer:
        """The buffers of all processes as one that each of them holds.

        ``rows``: int64, where in it those of this process's belong; together they are all rows once.
        """
        if accelerator.num_processes == 1:
            return self

        def gather(value: Tensor, filler: int = 0) -> Tensor:
            value = value.to(accelerator.device)
            padded = accelerator.pad_across_processes(value, pad_index=filler)
            return accelerator.gather(padded).cpu()

        places = gather(rows, filler=-1)
        order = places.argsort()[(places < 0).sum() :]

        def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: gather(value)[order] for name, value in tensors.items()}

        return RolloutBuffer(self.cycle, gather(self.indices)[order], whole(self.roll_outs), whole(self.scores))

    def statistics(self, spread_floor: float = ZERO_SPREAD) -> dict[str, float]:
        """Sub-score means, reward mean, mean spread inside a group, best of the group, shares of groups without spread.

        ``zero_spread_groups`` lie below ``spread_floor``, so that they prefer nothing; in ``equal_reward_groups`` all
        rewards are the same.
        """
        reward, plans = self.scores["score"], self.roll_outs["plans"]
        _, flat = group_advantages(reward, spread_floor)
        return {f"rollout/{name}": float(value.mean()) for name, value in self.scores.items()} | {
            "rollout/reward_spread": float(reward.std(-1, unbiased=False).mean()),
            "rollout/reward_best": float(reward.amax(-1).mean()),
            "rollout/zero_spread_groups": float(flat.double().mean()),
            "rollout/equal_reward_groups": float((reward.amax(-1) == reward.amin(-1)).double().mean()),
            "rollout/endpoint_spread_m": float(plans[:, :, -1, :2].std(1, unbiased=False).norm(dim=-1).mean()),
        }

    def save(self, path: Path) -> None:
        """Write as one safetensors file."""
        tensors = {SCORES + name: value for name, value in self.scores.items()}
        tensors |= {ROLL_OUTS + name: value for name, value in self.roll_outs.items()}
        tensors |= {"indices": self.indices, "cycle": torch.tensor(self.cycle)}
        save_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path) -> RolloutBuffer:
        """Read what ``save`` wrote, or what it wrote when plans were all that was kept.

        Raises CheckpointError for a file that holds no roll-outs of some scenes: absent, of other shapes, not finite.
        """
        tensors = load_tensors(path)
        if "plans" in tensors:
            tensors[ROLL_OUTS + "plans"] = tensors.pop("plans")

        def named(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        def number(name: str) -> int:
            value = tensors.pop(name)
            if value.numel() != 1 or value.is_floating_point():
                raise CheckpointError(f"{path}: {name} is {shown(value)}, not a whole number")
            return int(value)

        try:
            processes = number("processes") if "processes" in tensors else 1
            cycle, indices = number("cycle"), tensors.pop("indices")
            scores, roll_outs = named(SCORES), named(ROLL_OUTS)
            shape = scores["score"].shape
            plans = roll_outs["plans"]
        except KeyError as error:
            raise CheckpointError(f"{path} holds no roll-outs: {error} is missing") from None
        if indices.dtype != torch.int64 or indices.dim() != 1 or len(indices.unique()) < len(indices):
            raise CheckpointError(f"{path}: indices are {shown(indices)}, not whole numbers that differ")
        if len(shape) != 2 or shape[0] != len(indices) or plans.shape[2:] != (NUM_POSES, 3):
            raise CheckpointError(
                f"{path}: score is {shown(scores['score'])} and plans are {shown(plans)}, not (scene, candidate) and "
                f"(scene, candidate, {NUM_POSES}, 3) of {len(indices)} scenes"
            )
        for name, value in tensors.items():
            if not name.startswith((SCORES, ROLL_OUTS)):
                raise CheckpointError(f"{path} holds {name[:80]!r}, which is no part of roll-outs")
            exact = name.startswith(SCORES)
            if value.shape[:2] != shape or (exact and (value.dim() != 2 or not value.is_floating_point())):
                raise CheckpointError(f"{path}: {name[:80]} is {shown(value)}, the scores are of {tuple(shape)}")
        return cls(cycle, indices, roll_outs, scores, processes=processes)

    def refuse_other(self, path: Path, cycle: int, indices: Tensor, group_size: int) -> None:
        """Raise CheckpointError, which names ``path``, where it is not of this cycle, these scenes, groups this large.

        A file of an earlier version may have them in another order.
        """
        if self.cycle != cycle:
            raise CheckpointError(f"{path} is of cycle {self.cycle}, its checkpoint of cycle {cycle}: it is damaged")
        same = (
            torch.equal(self.indices, indices)
            if self.processes == 1
            else set(self.indices.tolist()) == set(indices.tolist())
        )
        if not same:
            raise CheckpointError(f"{path} is of other scenes than this cycle rolls out: it is another run's")
        if (found := self.scores["score"].shape[1]) != group_size:
            raise CheckpointError(
                f"{path} holds {found} plans of a scene, this run asks for {group_size}: it is another run's"
            )
