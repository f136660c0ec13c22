"""A trained policy as an agent: one plan a scene, or several sampled ones from one look at it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpvla.plan import NUM_POSES
from dpvla.random_rows import scene_noise
from navsim_bridge.agents.agent import Decoder
from navsim_bridge.data.dataset import NavsimDataset
from navsim_bridge.splits.scenes import SceneRecord
from navsim_bridge.splits.sensors import camera_names

if TYPE_CHECKING:
    from dpvla.batch import DrivingBatch
    from dpvla.models import DrivingPolicy, SceneContext
    from dpvla.models.sampling import Sampling


def load_policy(checkpoint: Path | str, device: torch.device | str = "cpu") -> DrivingPolicy:
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


@dataclass(frozen=True)
class Source:
    """What a proposed plan is sampled with."""

    sampling: Sampling  # which policies, and the omega that combines them
    sample: int = 0  # which of a scene's noises: the same for all policies and every omega


class PolicyAgent:
    """Samples plans with noise that depends on the seed and the scene alone, not on batches or their order.

    Called it gives one plan a scene; `propose` gives one from each of ``sources``, and looks at a scene once for all.
    """

    def __init__(
        self,
        policy: DrivingPolicy,
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
        self._sources: tuple[Source, ...] = ()
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
        """Raise ValueError when an omega was asked for and there are no two policies that it could combine."""
        if self.omega is not None and self.guidance is None:
            found = "is sampled from one policy alone" if self.policy.has_adapters else "has no adapters to guide with"
            raise ValueError(f"--omega has nothing to combine: the checkpoint {found} (DIPOLE trains two)")

    def require_draws(self, option: str) -> None:
        """Raise ValueError when an option asks for several plans of a policy that has one for each scene."""
        if not self.policy.noise_channels:
            head = self.policy.config.head.name
            raise ValueError(f"{option}: {self.weights} has the head {head}, of one plan a scene: leave it out")

    @property
    def sampling(self) -> Sampling:
        """What its one plan a scene is sampled with: the policy's own, with the omega that was asked for."""
        own = self.policy.sampling
        return own if self.guidance is None else replace(own, omega=self.guidance)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What plans are proposed from; its one plan, where `proposing` has not said otherwise."""
        return self._sources or (Source(self.sampling),)

    @property
    def about_selection(self) -> dict[str, Any] | None:
        """What a result must say of how its one plan is chosen; None where it is drawn."""
        return None

    def with_seed(self, seed: int) -> PolicyAgent:
        """The same agent with another seed; the weights are shared."""
        agent = copy.copy(self)
        agent.seed = seed
        return agent

    def proposing(self, sources: Sequence[Source]) -> PolicyAgent:
        """The same agent that proposes plans from ``sources``; the weights are shared."""
        agent = copy.copy(self)
        agent._sources = tuple(sources)
        return agent

    def proposing_each(self, omegas: Sequence[float], samples: int = 1) -> PolicyAgent:
        """The same agent that proposes, for each omega (none: its own), so many samples: candidate by candidate."""
        if samples > 1:
            self.require_draws(f"--samples {samples}")
        samplings = [replace(self.sampling, omega=omega) for omega in omegas] or [self.sampling]
        return self.proposing([Source(sampling, sample) for sampling in samplings for sample in range(samples)])

    def __call__(self, records: Sequence[SceneRecord]) -> NDArray[np.float32]:
        """(scene, 8, 3) one plan a scene. Raises ValueError, naming the weights, for one that is not finite."""
        return self._driven(self._sampled(records, self._driving))

    def plan(self, batch: DrivingBatch) -> NDArray[np.float32]:
        """(scene, 8, 3) the plans of scenes that are read already, named by the batch's tokens; raises likewise."""
        return self._driven(self._sample(batch, self._driving))

    @property
    def _driving(self) -> Sequence[Source]:
        """What its one plan comes from."""
        return [Source(self.sampling)]

    def _driven(self, plans: NDArray[np.float32]) -> NDArray[np.float32]:
        """The one plan a scene, of what was offered (scene, candidate, 8, 3)."""
        self._require_finite(plans[:, 0], self._driving[0])
        return plans[:, 0]

    def propose(self, records: Sequence[SceneRecord]) -> NDArray[np.float32]:
        """(scene, candidate, 8, 3) a plan from each of ``sources``, to the bit the one that it would give alone.

        What is not finite is not refused here: the other candidates may be of use. `require_finite` does.
        """
        return self._sampled(records, self.sources)

    def require_finite(self, plans: NDArray[Any], candidate: int) -> None:
        """Raise ValueError, naming the weights, when proposed plans (scene, 8, 3) of a candidate are not finite."""
        self._require_finite(plans, self.sources[candidate])

    def _require_finite(self, plans: NDArray[Any], source: Source) -> None:
        if not np.isfinite(plans).all():
            omega = source.sampling.omega if source.sampling.is_guided else 0
            guided = f", or omega {omega:g} is too large" if omega else ""
            raise ValueError(f"{self.weights} gives plans that are not finite: its weights are damaged{guided}")

    def _sampled(self, records: Sequence[SceneRecord], sources: Sequence[Source]) -> NDArray[np.float32]:
        """(scene, source, 8, 3)"""
        dataset = NavsimDataset(records, self.data_root, self.policy.encoder.sensors, workers=self.workers)
        if self.image_cache is not None and self.cameras:
            dataset.cache_images(self.image_cache)
        device = next(self.policy.parameters()).device if self.decoder == "nvjpeg" else None
        parts = [self._sample(dataset.batch(range(i, min(i + self.batch_size, len(dataset))), device), sources)
                 for i in range(0, len(dataset), self.batch_size)]  # fmt: skip
        return np.concatenate(parts) if parts else np.zeros((0, len(sources), NUM_POSES, 3), dtype=np.float32)

    @torch.no_grad()
    def _sample(self, batch: DrivingBatch, sources: Sequence[Source]) -> NDArray[np.float32]:
        device = next(self.policy.parameters()).device
        batch = batch.to(device)
        context = self.policy.encode(batch)
        numbers = {source.sample for source in sources}
        noise = {k: torch.stack([self._noise(token, k) for token in batch.tokens]).to(device) for k in numbers}
        draws = [(source.sampling, noise[source.sample]) for source in sources]
        plans = torch.cat([*self.policy.sample_each(context, draws)], dim=1).float()
        found: NDArray[np.float32] = self._offered(context, plans).cpu().numpy()
        return found

    def _offered(self, context: SceneContext, plans: Tensor) -> Tensor:
        """What is given of sampled plans (scene, source, 8, 3): (scene, candidate, 8, 3)."""
        return plans

    def _noise(self, token: str, sample: int = 0) -> torch.Tensor:
        """(1, 8, channel) noise of one scene."""
        name = f"{token}/{sample}" if sample else token
        return scene_noise(self.seed, name, (1, NUM_POSES, self.policy.noise_channels))
