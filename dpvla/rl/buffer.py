"""What one cycle of roll-outs leaves for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla.algorithms.dipole import group_advantages
from dpvla.tensors import load_tensors, save_tensors


@dataclass(frozen=True)
class RolloutBuffer:
    """Scored plans of one cycle; scene axis first."""

    cycle: int
    indices: Tensor  # (scene,) int64, positions in the scene source
    plans: Tensor  # (scene, candidate, 8, 3) ego frame
    scores: Mapping[str, Tensor]  # (scene, candidate) each; 'score' is the reward
    processes: int = 1  # that rolled out and train on equal parts of it, one part after the other

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, process: int) -> slice:
        """Rows that a process trains on."""
        size = len(self) // self.processes
        return slice(process * size, (process + 1) * size)

    def gathered(self, accelerator: Accelerator) -> RolloutBuffer:
        """The equally long buffers of all processes as one that each of them holds."""

        def gather(value: Tensor) -> Tensor:
            return accelerator.gather(value.to(accelerator.device)).cpu()

        if accelerator.num_processes == 1:
            return self
        scores = {name: gather(value) for name, value in self.scores.items()}
        return RolloutBuffer(
            self.cycle, gather(self.indices), gather(self.plans), scores, processes=accelerator.num_processes
        )

    def advantages(self) -> Tensor:
        """Group-normalised advantages (scene, candidate), Eq. 17."""
        return group_advantages(self.scores["score"])[0].float()

    def statistics(self) -> dict[str, float]:
        """Sub-score means, reward mean, mean spread inside a group, best of the group, share of flat groups."""
        reward = self.scores["score"]
        _, flat = group_advantages(reward)
        return {f"rollout/{name}": float(value.mean()) for name, value in self.scores.items()} | {
            "rollout/reward_spread": float(reward.std(-1, unbiased=False).mean()),
            "rollout/reward_best": float(reward.amax(-1).mean()),
            "rollout/zero_spread_groups": float(flat.double().mean()),
            "rollout/endpoint_spread_m": float(self.plans[:, :, -1, :2].std(1, unbiased=False).norm(dim=-1).mean()),
        }

    def save(self, path: Path) -> None:
        """Write as one safetensors file."""
        tensors = {f"scores.{name}": value for name, value in self.scores.items()}
        tensors |= {"indices": self.indices, "plans": self.plans}
        tensors |= {"cycle": torch.tensor(self.cycle), "processes": torch.tensor(self.processes)}
        save_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path) -> RolloutBuffer:
        """Read what ``save`` wrote."""
        tensors = load_tensors(path)
        scores = {k.removeprefix("scores."): v for k, v in tensors.items() if k.startswith("scores.")}
        return cls(
            int(tensors["cycle"]), tensors["indices"], tensors["plans"], scores, processes=int(tensors["processes"])
        )
