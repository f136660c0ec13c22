"""DP-VLA: images, command and ego state to sampled plans, with or without the two DIPOLE adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpvla.batch import DrivingBatch
from dpvla.checkpoint_layout import SAMPLING_FILE
from dpvla.diffusion import DPMSolver, clip_x0, combine
from dpvla.diffusion.samplers.dpm import Denoiser
from dpvla.diffusion.samplers.sde import Chain, SDESolver
from dpvla.encoders.encoder import Encoder, width_of
from dpvla.manifest import check_manifest, write_manifest
from dpvla.models import adapter_files
from dpvla.models import adapters as adapter_bank
from dpvla.models.config import DPVLAConfig
from dpvla.models.driving_policy import DrivingPolicy, recorded_plans
from dpvla.models.head import BASE_POLICY, DiTHead, Policies, PreparedContext
from dpvla.models.head_configs import HeadConfig
from dpvla.models.plan_coding import PlanCoding
from dpvla.models.sampling import FORMER_ADAPTERS, Sampling, read_sampling, write_sampling
from dpvla.models.scene_context import SceneContext
from dpvla.plan import NUM_POSES
from dpvla.random_rows import normal


class DPVLA(DrivingPolicy):
    """Driving policy: scene encoder, diffusion head, plan coding."""

    Config = HeadConfig
    head: DiTHead
    beside: nn.Module | None
    """What an algorithm trains beside the head (``Algorithm.networks``); no part of what is saved as the policy."""
    runs_equals_once: bool
    """Whether ``sample`` may take the two policies it combines for one; see ``knowing_equals``."""

    def __init__(self, config: DPVLAConfig, encoder: Encoder[Any]) -> None:
        super().__init__(config, encoder)
        assert isinstance(config.head, HeadConfig)
        self.schedule = config.diffusion.schedule()
        self.solver = DPMSolver(self.schedule, config.diffusion.num_steps)
        self.plan_coding = PlanCoding(config.plan)
        self.noise_channels = self.plan_coding.num_channels
        self.head = DiTHead(config.head, self.noise_channels, width_of(encoder))
        self.beside: nn.Module | None = None
        self.runs_equals_once = False

    def head_layers(self) -> list[nn.Module]:
        """The blocks of the head."""
        return [*self.head.blocks]

    def fit(self, plans: Tensor, ego_status: Tensor) -> None:
        """Plan statistics."""
        self.plan_coding.fit(plans, ego_status)

    def assume_fitted(self) -> None:
        """Take the plan statistics as they are."""
        self.plan_coding.assume_fitted()

    # ------------------------------------------------------------------ adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of those that the head carries."""
        return self.head.adapters

    def add_adapters(self, names: Sequence[str], rank: int = 16, alpha: float = 16.0) -> None:
        """Create adapters; each equals the base policy at first.

        Until ``sampling`` is set otherwise, plans are sampled from the first one, guided away from the second if there
        is one, with the config's omega.
        """
        adapter_bank.add_adapters(self.head, names, rank, alpha)
        self.sampling = Sampling(tuple(names[:2]), self.config.diffusion.omega if names[1:] else 0.0)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of all adapters, stacked by layer, for one optimizer."""
        return adapter_bank.adapter_parameters(self.head)

    def save_adapters(self, directory: Path | str) -> None:
        """Write a folder an adapter in PEFT's format (readable by PEFT on the bare ``policy.head``).

        ``sampling.json`` beside them holds what sampling must know.
        """
        adapter_files.save_adapters(self.head, directory)
        write_sampling(Path(directory), self.sampling, self.head.adapters, self.precision)
        write_manifest(directory, names=[SAMPLING_FILE, *adapter_files.names(self.head.adapters)])

    def load_adapters(self, directory: Path | str) -> bool:
        """Read adapters written by ``save_adapters``, creating them when absent; how to sample comes with them.

        Returns False where the directory does not say how to sample with them; ``sampling`` is then as
        ``add_adapters`` leaves it.
        """
        found = read_sampling(Path(directory))
        names = FORMER_ADAPTERS if found is None else found.adapters
        check_manifest(directory, adapter_files.names(names))
        adapter_files.load_adapters(self.head, names, directory)
        if found is None:
            self.sampling = Sampling(names, self.config.diffusion.omega)
            return False
        self.sampling = found.sampling
        self.precision = found.precision
        return True

    def merge_adapters(self, omega: float | None = None) -> None:
        """Fold the adapters into the base weights as sampling combines them, and remove them.

        With two policies ``W + (1 + w) dW+ - w dW-``: the guided combination is taken over to first order in the
        updates, exactly for one linear layer, closely where the updates are small. ``omega`` defaults to the policy's
        own.
        """
        sampling = self.sampling if omega is None else replace(self.sampling, omega=omega)
        adapter_bank.merge_adapters(self.head, sampling.shares())
        self.sampling = Sampling()

    def snapshot_head(self, shared: bool = True) -> DiTHead:
        """The head as it is now, without gradients: what is trained is copied, the rest shared.

        ``shared`` False copies the rest, too: where the whole weights are freed again.
        """
        return adapter_bank.snapshot(self.head, shared)

    def freeze_encoder(self) -> None:
        """Train the head alone: its adapters where it has any, else all of it; and what is ``beside`` it.

        The encoder stays in eval mode from now on, so that cached tokens are exact.
        """
        trained = self.adapter_parameters() if self.has_adapters else [*self.head.parameters()]
        trained += [] if self.beside is None else self.beside.parameters()
        trainable = {id(parameter) for parameter in trained}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
        self.encoder_frozen = True
        self.train(self.training)

    # ------------------------------------------------------------------ training

    def draw(self, scenes: int, draws: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Training times (scene, draw) and noise (scene, draw, 8, channel) on the policy's device.

        With the ``random`` of a training batch a scene's are the same in whatever process it is learned.
        """
        device = self.plan_coding.mean.device
        t = self.schedule.draw_times((scenes, draws), generator, device)
        return t, normal((scenes, draws, NUM_POSES, self.plan_coding.num_channels), generator, device)

    def denoise_plans(
        self,
        context: SceneContext,
        plans: Tensor,
        t: Tensor,
        noise: Tensor,
        policies: Policies = BASE_POLICY,
        head: DiTHead | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the network outputs for noised plans, and what it should: both in its own parametrization, float32.

        Args:
            plans: (scene, candidate, 8, 3). t: (scene, candidate). noise: (scene, candidate, 8, channel).
            policies: which to run, in one pass.
            head: what runs instead of the policy's own head, from ``snapshot_head``.

        Returns:
            output (policy, scene, candidate, 8, channel) and target (scene, candidate, 8, channel).
        """
        head = self.head if head is None else head
        x0 = self.plan_coding.encode(plans.float(), context.ego_status)
        x_t = self.schedule.add_noise(x0, noise, t)
        prepared = head.prepare(context.tokens, context.mask, context.condition, policies)
        output = head.denoise(x_t, t, prepared).float()
        return output, self.schedule.target(self.config.diffusion.output, x0, noise, t)

    def predict_x0(self, context: SceneContext, x_t: Tensor, t: Tensor, policies: Policies = BASE_POLICY) -> Tensor:
        """The x0 that policies see in noised values: ``(policy, scene, candidate, 8, channel)``, normalized, float32.

        Args:
            x_t: (scene, candidate, 8, channel), normalized. t: (scene, candidate).
        """
        prepared = self.head.prepare(context.tokens, context.mask, context.condition, policies)
        output = self.head.denoise(x_t, t, prepared).float()
        return self.schedule.convert(output, x_t, t, self.config.diffusion.output, "x0")

    def loss_factor(self, t: Tensor) -> Tensor:
        """Factor per noise level from a squared error of the network's own output to the loss.

        With ``loss_weighting="eps"`` the product is the ``|eps - eps(a_t, s, t)|^2`` of the paper's eq. 9; ``"v"`` and
        ``"x0"`` measure those errors instead. Forming eps first and dividing by a small alpha later would lose digits.
        """
        settings = self.config.diffusion
        if settings.loss_weighting == settings.output and settings.alpha_floor == 0:
            return torch.ones_like(t)
        factor = self.schedule.squared_eps_factor(settings.output, t)
        return factor * self.schedule.squared_output_factor(settings.loss_weighting, t, settings.alpha_floor)

    def denoising_errors(
        self, context: SceneContext, plans: Tensor, t: Tensor, noise: Tensor, policies: Policies = BASE_POLICY
    ) -> Tensor:
        """Weighted squared error of each policy, a mean over poses and channels: ``(policy, scene, candidate)``.

        Arguments as in ``denoise_plans``; one backward reaches all ``policies``.
        """
        output, target = self.denoise_plans(context, plans, t, noise, policies)
        return (output - target).square().mean(dim=(-2, -1)) * self.loss_factor(t)

    def imitation_loss(
        self, batch: DrivingBatch, draws: int = 1, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoising loss of the base policy, at ``draws`` noise levels a scene."""
        recorded = recorded_plans(batch)
        context = self.encode(batch)
        t, noise = self.draw(len(batch), draws, batch.random if generator is None else generator)
        plans = recorded[:, None].expand(-1, draws, -1, -1)
        loss = self.denoising_errors(context, plans, t, noise).mean()
        return loss, {"imitation/loss": loss.detach()}

    # ------------------------------------------------------------------ sampling

    @contextmanager
    def knowing_equals(self) -> Iterator[bool]:
        """Inside, ``sample`` runs policies that are equal to the bit once: ``(1 + w) e - w e = e``.

        Gives whether the two of ``sampling`` are, as before the first update. The weights must not change inside.
        """
        sampling = self.sampling
        self.runs_equals_once = sampling.is_guided and adapter_bank.are_equal(self.head, *sampling.policies)
        try:
            yield self.runs_equals_once
        finally:
            self.runs_equals_once = False

    @torch.no_grad()
    def sample_each(self, context: SceneContext, draws: Iterable[tuple[Sampling, Tensor]]) -> Iterator[Tensor]:
        """What ``sample`` gives for each sampling and its noise (scene, candidate, 8, channel), to the bit.

        What depends on scenes and policies alone is computed once for draws of the same policies that follow each
        other. It takes the memory of one ``sample``.
        """
        ready: tuple[Policies, PreparedContext] | None = None
        for sampling, noise in draws:
            policies = self._running(sampling)
            if ready is None or ready[0] != policies:
                ready = policies, self._prepared(context, policies)
            denoise = self._denoiser(sampling, ready[1])
            values = self._solver(sampling.num_steps).sample(denoise, noise.to(context.device, torch.float32))
            yield self.plan_coding.decode(values, context.ego_status)

    @torch.no_grad()
    def sample_chain(
        self,
        context: SceneContext,
        num_candidates: int,
        solver: SDESolver,
        generator: torch.Generator | None = None,
        sampling: Sampling | None = None,
    ) -> tuple[Tensor, Chain]:
        """Plans as ``sample`` gives them, by a stochastic ``solver``, and their chains, which are normalized.

        The states of a chain are (scene, num_candidates, step + 1, 8, channel), its log-probabilities
        (scene, num_candidates, step).
        """
        shape = (len(context), num_candidates, solver.num_steps + 1, NUM_POSES, self.plan_coding.num_channels)
        sampling = self.sampling if sampling is None else sampling
        prepared = self._prepared(context, self._running(sampling))
        chain = solver.sample(self._denoiser(sampling, prepared), normal(shape, generator, context.device))
        return self.plan_coding.decode(chain.states[:, :, -1], context.ego_status), chain

    def _prepared(self, context: SceneContext, policies: Policies) -> PreparedContext:
        with self.autocast():
            return self.head.prepare(context.tokens, context.mask, context.condition, policies)

    def _running(self, sampling: Sampling) -> Policies:
        """The policies that have to run: one where the second has no weight, or is equal to the first."""
        once = self.runs_equals_once and sampling.policies == self.sampling.policies
        return sampling.policies if sampling.is_guided and sampling.omega != 0 and not once else sampling.policies[:1]

    def _denoiser(self, sampling: Sampling, prepared: PreparedContext) -> Denoiser:
        """What a solver asks for x0: of the combination of policies, or of one."""
        guided = sampling.is_guided and sampling.omega != 0
        ratio = self.config.diffusion.clip_ratio
        bound = self.plan_coding.largest * ratio if guided and ratio is not None else None

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                output = self.head.denoise(x_t, t, prepared).float()
            mixed = combine(output[0], output[1], sampling.omega) if len(output) > 1 else output[0]
            x0 = self.schedule.convert(mixed, x_t, t, self.config.diffusion.output, "x0")
            return x0 if bound is None else clip_x0(x0, bound)

        return denoise

    def _solver(self, num_steps: int | None) -> DPMSolver:
        """The solver of so many steps, by default the config's; it is kept until another is asked for."""
        steps = num_steps or self.config.diffusion.num_steps
        if steps != self.solver.num_steps:
            self.solver = DPMSolver(self.schedule, steps)
        return self.solver
