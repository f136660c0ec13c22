"""Transitions on the device that trains, in one table: a batch of all seeds is one gather."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpvla.state_based.data.batch import Batch
from dpvla.state_based.data.transitions import Transitions
from dpvla.tensors import CheckpointError, load_tensors, require_same, save_tensors


class Replay:
    """Recorded rows that all seeds share, followed by rows that each seed collected itself; nothing is overwritten.

    Every row is drawn with the same chance, recorded or collected, as by the FQL code's default online.
    """

    def __init__(
        self,
        recorded: Transitions,
        seeds: Sequence[int],
        capacity: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """``capacity``: rows that each seed may add. Takes (2 observation + action + 3) · 4 bytes for each row."""
        if len(recorded) == 0 and capacity == 0:
            raise ValueError("the replay holds no rows and has room for none")
        self.seeds, self.capacity = tuple(seeds), capacity
        self.recorded, self.collected = len(recorded), 0
        o, a = recorded.observation_dim, recorded.action_dim
        self._widths = (o, a, o, 1, 1, 1)  # observation, action, next observation, reward, mask, next row follows on
        # One spare row, so that "the next row" exists for the last one.
        self.table = torch.zeros(self.recorded + len(seeds) * capacity + 1, sum(self._widths), device=device)
        follows_on = 1 - recorded.terminals
        follows_on[-1:] = 0
        columns = (
            recorded.observations,
            recorded.actions,
            recorded.next_observations,
            recorded.rewards[:, None],
            recorded.masks[:, None],
            follows_on[:, None],
        )
        for place, column in zip(self.table[: self.recorded].split(self._widths, 1), columns):
            place.copy_(column)
        self._continues = torch.zeros(len(seeds), device=device)  # whether a seed's next row goes on where it stopped
        # Where in the table each seed's own rows begin.
        self._own = self.recorded + capacity * torch.arange(len(seeds), device=device)

    def __len__(self) -> int:
        """Rows a seed can draw."""
        return self.recorded + self.collected

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.table.device

    def draw_rows(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        """Uniform table rows, (seed, count) int64, each seed's from its own generator (on the table's device)."""
        drawn = [torch.randint(len(self), (count,), generator=g, device=self.device) for g in generators]
        rows = torch.stack(drawn)
        if self.collected == 0:
            return rows
        return torch.where(rows < self.recorded, rows, rows - self.recorded + self._own[:, None])

    def gather(self, rows: Tensor, next_actions: bool = False) -> Batch:
        """The batch in table rows (seed, row); ``next_actions``: with those of the following rows."""
        observations, actions, following, rewards, masks, known = self._read(rows).split(self._widths, -1)
        behind = self._read(rows + 1).split(self._widths, -1)[1] if next_actions else None
        return Batch(
            observations,
            actions,
            rewards.squeeze(-1),
            following,
            masks.squeeze(-1),
            behind,
            known.squeeze(-1) if next_actions else None,
        )

    def add(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Tensor,
        masks: Tensor,
        terminals: Tensor,
    ) -> None:
        """Append one step of every seed: (seed, number) or (seed,), on any device."""
        if self.collected == self.capacity:
            raise ValueError(f"the replay has room for {self.capacity} collected rows per seed, and they are full")
        parts = (observations, actions, next_observations, rewards[:, None], masks[:, None], 0 * rewards[:, None])
        row = torch.cat([part.to(self.device, torch.float32) for part in parts], 1)
        if not torch.isfinite(row).all():
            raise ValueError("a collected transition holds NaN or infinity")
        here = self._own + self.collected
        self.table[here] = row
        if self.collected:  # the row before is continued by this one unless it ended an episode
            self.table[here - 1, -1] = self._continues
        self._continues = 1 - terminals.to(self.device, torch.float32)
        self.collected += 1

    def end_episodes(self) -> None:
        """The next row of every seed belongs to a new episode, whatever the last one was."""
        self._continues.zero_()

    def save(self, path: Path) -> None:
        """The collected rows; the recorded ones are data of the user's."""
        rows = torch.stack([self.table[start : start + self.collected] for start in self._own.tolist()])
        save_tensors(path, {"collected": rows, "continues": self._continues})

    def load(self, path: Path) -> None:
        """Take up the rows that ``save`` wrote."""
        tensors = load_tensors(path)
        seeds, found = len(self.seeds), tensors.get("collected")
        count = found.shape[1] if found is not None and found.dim() == 3 else 0
        if count > self.capacity:
            raise CheckpointError(f"{path} holds {count} collected rows of each seed; here is room for {self.capacity}")
        expected = {"collected": torch.empty(seeds, count, sum(self._widths)), "continues": torch.empty(seeds)}
        require_same(expected, tensors, path)
        rows = tensors["collected"]
        self.collected = rows.shape[1]
        for start, own in zip(self._own.tolist(), rows):
            self.table[start : start + self.collected] = own.to(self.device)
        self._continues = tensors["continues"].to(self.device)

    def _read(self, rows: Tensor) -> Tensor:
        return self.table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
