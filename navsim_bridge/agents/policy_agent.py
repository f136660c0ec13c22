"""A trained DP-VLA as an agent: one sampled plan a scene."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpvla.plan import NUM_POSES
from navsim_bridge.agents.agent import Decoder
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names

if TYPE_CHECKING:
    from dpvla.models import DPVLA


def load_policy(checkpoint: Path | str, device: torch.device | str = "cpu") -> DPVLA:
    """The policy of a checkpoint (with its adapters when it has them), of a run (its newest checkpoint), or of a bare
    model directory (without adapters). It samples with the omega and the precision it was trained with, and is not
    to be trained: with bf16 its weights take half their memory.

    Raises FileNotFoundError or ValueError when it is none of these.
    """
    from dpvla.training.start import open_start

    policy = open_start(checkpoint).load(device).requires_grad_(False)
    policy.hold_frozen()
    return policy


def weights_path(checkpoint: Path | str) -> str:
    """Where the weights that `load_policy` finds lie: of a run its newest checkpoint, as of now; raises likewise."""
    from dpvla.training.start import open_start

    return str(open_start(checkpoint).path)


class PolicyAgent:
    """Samples plans with noise that depends on the seed and the scene alone, not on batches or their order."""

    def __init__(
        self,
        policy: DPVLA,
        data_root: Path | str,
        *,
        omega: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        image_cache: Path | str | None = None,
        workers: int = 4,
        decoder: Decoder = "cpu",
        weights: str = "the policy",
    ) -> None:
        """``omega``: greediness of the guided combination, None for the policy's own. ``weights``: for errors.

        ``image_cache``: folder for decoded images (see `NavsimDataset.cache_images`); None decodes as it goes, in
        ``workers`` threads or, with the ``decoder`` nvjpeg, on the policy's GPU, where no other stands in for it.
        """
        self.policy, self.data_root, self.omega, self.seed = policy, Path(data_root), omega, seed
        self.batch_size, self.image_cache, self.workers, self.decoder = batch_size, image_cache, workers, decoder
        self.weights = weights
        self.cameras = camera_names(policy.encoder.sensors.cameras)
        """NAVSIM's names of the cameras that it looks at."""

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Path | str, data_root: Path | str, device: torch.device | str = "cpu", **options: Any
    ) -> PolicyAgent:
        """The agent of a checkpoint or model directory; ``options`` as for the constructor."""
        return cls(load_policy(checkpoint, device), data_root, weights=str(checkpoint), **options)

    @property
    def guidance(self) -> float | None:
        """The omega that plans are sampled with; None where there is nothing to combine: no adapters, or one alone."""
        if not self.policy.sampling.is_guided:
            return None
        return self.policy.sampling.omega if self.omega is None else self.omega

    def refuse_idle_omega(self) -> None:
        """Raise ValueError when an omega was asked for and there are no adapters."""
        if self.omega is not None and self.guidance is None:
            raise ValueError(
                "--omega has nothing to combine: the checkpoint has no adapters to guide with (DIPOLE trains two)"
            )

    def with_seed(self, seed: int) -> PolicyAgent:
        """The same agent with another seed; the weights are shared."""
        agent = copy.copy(self)
        agent.seed = seed
        return agent

    def __call__(self, records: Sequence[SceneRecord]) -> NDArray[np.float32]:
        """(scene, 8, 3) one plan a scene. Raises ValueError, naming the weights, for one that is not finite."""
        dataset = NavsimDataset(records, self.data_root, self.policy.encoder.sensors, workers=self.workers)
        if self.image_cache is not None:
            dataset.cache_images(self.image_cache)
        plans = [self._plan(dataset, range(i, min(i + self.batch_size, len(dataset))))
                 for i in range(0, len(dataset), self.batch_size)]  # fmt: skip
        return np.concatenate(plans) if plans else np.zeros((0, NUM_POSES, 3), dtype=np.float32)

    @torch.no_grad()
    def _plan(self, dataset: NavsimDataset, rows: range) -> NDArray[np.float32]:
        device = next(self.policy.parameters()).device
        batch = (dataset.batch(rows, device) if self.decoder == "nvjpeg" else dataset.batch(rows)).to(device)
        noise = torch.stack([self._noise(token) for token in batch.tokens])
        context = self.policy.encode(batch)
        plans = self.policy.sample(context, 1, self.omega, noise=noise)
        found: NDArray[np.float32] = plans[:, 0].float().cpu().numpy()
        if not np.isfinite(found).all():
            guided = f", or omega {self.guidance:g} is too large" if self.guidance else ""
            raise ValueError(f"{self.weights} gives plans that are not finite: its weights are damaged{guided}")
        return found

    def _noise(self, token: str) -> torch.Tensor:
        """(1, 8, channel) noise of one scene."""
        digest = hashlib.sha256(f"{self.seed}/{token}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn((1, NUM_POSES, self.policy.plan_coding.num_channels), generator=generator)
