"""What one cycle of roll-outs leaves for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.algorithms.advantages import group_advantages
from dpvla.tensors import load_tensors, save_tensors

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

    def statistics(self) -> dict[str, float]:
        """Sub-score means, reward mean, mean spread inside a group, best of the group, share of flat groups."""
        reward, plans = self.scores["score"], self.roll_outs["plans"]
        _, flat = group_advantages(reward)
        return {f"rollout/{name}": float(value.mean()) for name, value in self.scores.items()} | {
            "rollout/reward_spread": float(reward.std(-1, unbiased=False).mean()),
            "rollout/reward_best": float(reward.amax(-1).mean()),
            "rollout/zero_spread_groups": float(flat.double().mean()),
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
        """Read what ``save`` wrote, or what it wrote when plans were all that was kept."""
        tensors = load_tensors(path)
        if "plans" in tensors:
            tensors[ROLL_OUTS + "plans"] = tensors["plans"]

        def named(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        processes = int(tensors.get("processes", 1))
        return cls(int(tensors["cycle"]), tensors["indices"], named(ROLL_OUTS), named(SCORES), processes=processes)
