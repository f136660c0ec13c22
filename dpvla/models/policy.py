"""DP-VLA: images, command and ego state to sampled plans, with or without the two DIPOLE adapters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import Florence2Config

from dpvla import __version__, files
from dpvla.batch import NUM_POSES, DrivingBatch
from dpvla.config import ConfigError, NotNegative, from_dict, to_dict
from dpvla.diffusion import DPMSolver, clip_x0, combine
from dpvla.encoders.florence import FlorenceEncoder
from dpvla.encoders.florence_checkpoint import pretrained_florence, tiny_florence
from dpvla.encoders.timm import TimmEncoder
from dpvla.models import adapters as adapter_bank
from dpvla.models.config import DPVLAConfig, EncoderConfig
from dpvla.models.head import DiTHead
from dpvla.models.plan_coding import PlanCoding
from dpvla.models.scene_context import SceneContext
from dpvla.tensors import load_tensors, require_same

Precision = Literal["no", "bf16"]
FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, SAMPLING_FILE = "config.json", "model.safetensors", "sampling.json"
ADAPTER_WEIGHTS = ("adapter_down", "adapter_up")
BASE_POLICY: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class Sampling:
    """What sampling must know of adapters: kept beside them, obeyed unless a caller says otherwise."""

    omega: NotNegative  # greediness w of the roll-outs they were trained on
    precision: Precision  # autocast they were trained under


class DPVLA(nn.Module):
    """Driving policy: scene encoder, diffusion head, plan coding.

    Call it through its methods. What is trained under DistributedDataParallel is a small module around it whose
    ``forward`` is the loss (``training.imitation``, ``rl.finetune``), so that gradients are synchronised.
    """

    omega: float
    """Greediness w of the guided combination where ``sample`` is not told another."""
    precision: Precision
    """What ``encode`` and ``sample`` autocast to, as training did; saved and restored with the weights."""

    def __init__(self, config: DPVLAConfig, encoder: FlorenceEncoder | TimmEncoder) -> None:
        super().__init__()
        self.config = config
        self.schedule = config.diffusion.schedule()
        self.solver = DPMSolver(self.schedule, config.diffusion.num_steps)
        self.encoder = encoder
        self.plan_coding = PlanCoding(config.plan)
        self.head = DiTHead(config.head, self.plan_coding.num_channels, encoder.token_width)
        self.base_frozen = False
        self.omega = config.diffusion.omega
        self.precision = "no"

    # ------------------------------------------------------------------ building, saving, loading

    @classmethod
    def from_config(cls, config: DPVLAConfig) -> DPVLA:
        """A policy before training; the encoder starts from released weights where the config says so."""
        return cls(config, _build_encoder(config.encoder))

    def save_pretrained(self, directory: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors``: weights and plan statistics, no adapters; atomic."""
        directory = Path(directory)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self._base_state().items()}
        content = safetensors.torch.save(tensors, metadata={"format": "pt"})
        files.write_atomically(directory / WEIGHTS_FILE, lambda file: file.write(content))
        description = {
            "format_version": FORMAT_VERSION,
            "dpvla_version": __version__,
            "model": self.config.to_dict(),
            "encoder_architecture": self.encoder.architecture(),
            "precision": self.precision,
        }
        files.write_json(directory / CONFIG_FILE, description)

    @classmethod
    def from_pretrained(
        cls, directory: Path | str, device: torch.device | str = "cpu", config: DPVLAConfig | None = None
    ) -> DPVLA:
        """Read what ``save_pretrained`` wrote, in eval mode. Needs no network, even for a Florence encoder.

        Args:
            config: what the policy shall be instead of what was saved; only loss and sampler may differ.

        Raises:
            FileNotFoundError, ValueError: files are missing, damaged, not finite or do not fit each other.
        """
        directory = Path(directory)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory / name} is missing: {directory} is not a saved DP-VLA")
        path = directory / CONFIG_FILE
        description = files.read_json(path)
        if description.get("format_version") != FORMAT_VERSION:
            found = description.get("format_version")
            raise ValueError(f"{path}: format_version {found}, this code reads {FORMAT_VERSION}")
        if not isinstance(description.get("model"), dict) or "encoder_architecture" not in description:
            raise ValueError(f"{path}: expected the keys model and encoder_architecture; it is no saved DP-VLA")
        saved = from_dict(DPVLAConfig, description["model"], str(path))
        if config is not None:
            _refuse_other_architecture(config, saved, path)
        config = saved if config is None else config
        try:
            policy = cls(config, _rebuild_encoder(saved.encoder, description["encoder_architecture"]))
        except (TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(f"{path} describes no model that can be built: {type(error).__name__}: {error}") from None
        tensors = load_tensors(directory / WEIGHTS_FILE)
        require_same(policy._base_state(), tensors, directory / WEIGHTS_FILE)
        policy.load_state_dict(tensors)
        precision = description.get("precision", "no")  # version 0.1.0 did not keep it
        if precision not in ("no", "bf16"):
            raise ValueError(f"{path}: precision must be no or bf16, found {precision!r:.80}")
        policy.precision = precision
        return policy.to(device).eval()

    def _base_state(self) -> dict[str, Tensor]:
        return {key: t for key, t in self.state_dict().items() if not key.endswith(ADAPTER_WEIGHTS)}

    # ------------------------------------------------------------------ adapters

    @property
    def has_adapters(self) -> bool:
        """Whether the positive and the negative policy exist."""
        return adapter_bank.has_adapters(self.head)

    def add_adapters(self, rank: int = 16, alpha: float = 16.0) -> None:
        """Create the positive and the negative adapter; both equal the base policy at first."""
        adapter_bank.add_adapters(self.head, rank, alpha)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters of both adapters, stacked by layer, for one optimiser."""
        return adapter_bank.adapter_parameters(self.head)

    def save_adapters(self, directory: Path | str) -> None:
        """Write ``positive/`` and ``negative/`` in PEFT's format (readable by PEFT on the bare ``policy.head``).

        ``sampling.json`` beside them holds what sampling must know: omega and precision.
        """
        adapter_bank.save_adapters(self.head, directory)
        files.write_json(Path(directory) / SAMPLING_FILE, to_dict(Sampling(self.omega, self.precision)))

    def load_adapters(self, directory: Path | str) -> None:
        """Read adapters written by ``save_adapters``, creating them when absent; omega and precision come with them."""
        adapter_bank.load_adapters(self.head, directory)
        if self.knows_sampling(directory):
            path = Path(directory) / SAMPLING_FILE
            sampling = from_dict(Sampling, files.read_json(path), str(path))
            self.omega, self.precision = sampling.omega, sampling.precision

    @staticmethod
    def knows_sampling(directory: Path | str) -> bool:
        """Whether adapters say how to sample with them; those of version 0.1.0 did not."""
        return (Path(directory) / SAMPLING_FILE).is_file()

    def merge_adapters(self, omega: float | None = None) -> None:
        """Fold both adapters into the base weights and remove them: ``W + (1 + w) dW+ - w dW-``.

        The guided combination is taken over to first order in the updates: exactly for one linear layer, closely where
        the updates are small. ``omega`` defaults to the policy's own.
        """
        w = self.omega if omega is None else omega
        adapter_bank.merge_adapters(self.head, (1 + w, -w))

    def snapshot_head(self) -> DiTHead:
        """The head as it is now, without gradients: adapters are copied, base weights shared."""
        own = {id(parameter) for parameter in self.adapter_parameters()}
        shared = {id(parameter): parameter for parameter in self.head.parameters() if id(parameter) not in own}
        copied = deepcopy(self.head, shared)
        for parameter in adapter_bank.adapter_parameters(copied):
            parameter.requires_grad_(False)
        return copied

    def freeze_base(self) -> None:
        """Keep only the adapters trainable; the encoder stays in eval mode from now on (cached tokens are exact)."""
        trainable = {id(parameter) for parameter in self.adapter_parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
        self.base_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> DPVLA:
        """Training mode, except for a frozen encoder."""
        super().train(mode)
        if self.base_frozen:
            self.encoder.eval()
        return self

    # ------------------------------------------------------------------ training

    def autocast(self) -> AbstractContextManager[None]:
        """The autocast of ``precision`` on the policy's device."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.plan_coding.mean.device.type, torch.bfloat16)

    def encode(self, batch: DrivingBatch) -> SceneContext:
        """Run the encoder once a scene. Without gradients when the base is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.base_frozen), self.autocast():
            tokens, mask = self.encoder(batch.images, batch.command)
        return SceneContext(tokens, mask, batch.command, batch.ego_status.float(), batch.history.float())

    def draw(self, scenes: int, draws: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Training times (scene, draw) and noise (scene, draw, 8, channel) on the policy's device."""
        device = self.plan_coding.mean.device
        source = generator.device if generator is not None else device
        t = self.schedule.draw_times((scenes, draws), generator, device)
        shape = (scenes, draws, NUM_POSES, self.plan_coding.num_channels)
        return t.to(device), torch.randn(shape, generator=generator, device=source).to(device)

    def denoise_plans(
        self,
        context: SceneContext,
        plans: Tensor,
        t: Tensor,
        noise: Tensor,
        adapters: tuple[str | None, ...] = BASE_POLICY,
        head: DiTHead | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the network outputs for noised plans, and what it should: both in its own parametrisation, float32.

        Args:
            plans: (scene, candidate, 8, 3). t: (scene, candidate). noise: (scene, candidate, 8, channel).
            adapters: policies to run, in one pass; ``None`` is the base policy.
            head: what runs instead of the policy's own head, from ``snapshot_head``.

        Returns:
            output (len(adapters), scene, candidate, 8, channel) and target (scene, candidate, 8, channel).
        """
        head = self.head if head is None else head
        x0 = self.plan_coding.encode(plans.float(), context.ego_status)
        x_t = self.schedule.add_noise(x0, noise, t)
        prepared = head.prepare(context.tokens, context.mask, context.condition, adapters)
        output = head.denoise(x_t, t, prepared).float()
        return output, self.schedule.target(self.config.diffusion.output, x0, noise, t)

    def loss_factor(self, t: Tensor, loss_weighting: str | None = None, alpha_floor: float | None = None) -> Tensor:
        """What turns a squared error of the network's own output into the loss: one factor per noise level.

        With ``loss_weighting="eps"`` the product is the ``|eps - eps(a_t, s, t)|^2`` of the paper's eq. 9; ``"v"`` and
        ``"x0"`` measure those errors instead. Defaults are the policy's configuration. Forming eps first and dividing
        by a small alpha later would lose digits.
        """
        settings = self.config.diffusion
        weighting = settings.loss_weighting if loss_weighting is None else loss_weighting
        floor = settings.alpha_floor if alpha_floor is None else alpha_floor
        if weighting == settings.output and floor == 0:
            return torch.ones_like(t)
        factor = self.schedule.squared_eps_factor(settings.output, t)
        return factor * self.schedule.squared_output_factor(weighting, t, floor)

    def denoising_errors(
        self,
        context: SceneContext,
        plans: Tensor,
        t: Tensor,
        noise: Tensor,
        adapters: tuple[str | None, ...] = BASE_POLICY,
        loss_weighting: str | None = None,
        alpha_floor: float | None = None,
    ) -> Tensor:
        """Weighted squared error of each policy, a mean over poses and channels: ``(len(adapters), scene, candidate)``.

        Arguments as in ``denoise_plans`` and ``loss_factor``; one backward reaches all ``adapters``.
        """
        output, target = self.denoise_plans(context, plans, t, noise, adapters)
        return (output - target).square().mean(dim=(-2, -1)) * self.loss_factor(t, loss_weighting, alpha_floor)

    def imitation_loss(
        self,
        batch: DrivingBatch,
        draws: int = 1,
        generator: torch.Generator | None = None,
        loss_weighting: str | None = None,
        alpha_floor: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoising loss of the base policy on the recorded plans; one encoder pass, ``draws`` noise draws a scene."""
        if batch.plan is None:
            raise ValueError(f"imitation needs recorded plans; scene {batch.tokens[0]} and its batch have none")
        context = self.encode(batch)
        t, noise = self.draw(len(batch), draws, generator)
        plans = batch.plan[:, None].expand(-1, draws, -1, -1)
        errors = self.denoising_errors(context, plans, t, noise, loss_weighting=loss_weighting, alpha_floor=alpha_floor)
        loss = errors.mean()
        return loss, {"imitation/loss": loss.detach()}

    # ------------------------------------------------------------------ sampling

    def sample(
        self,
        context: SceneContext,
        num_candidates: int,
        omega: float | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        use_adapters: bool = True,
    ) -> Tensor:
        """Plans ``(scene, num_candidates, 8, 3)``; see ``sample_with_info``."""
        return self.sample_with_info(context, num_candidates, omega, generator, noise, use_adapters)[0]

    @torch.no_grad()
    def sample_with_info(
        self,
        context: SceneContext,
        num_candidates: int,
        omega: float | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        use_adapters: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample plans from the guided combination (paper Alg. 2), or from the base policy without adapters.

        ``omega`` defaults to the policy's own. ``noise`` (scene, num_candidates, 8, channel) replaces the generator's.
        Combination and solver run in float32.
        ``info`` holds ``sample/clipped``, the share of x0 values the wide static clip changed, when it is on.
        """
        scenes = len(context)
        shape = (scenes, num_candidates, NUM_POSES, self.plan_coding.num_channels)
        if noise is None:
            source = generator.device if generator is not None else context.device
            noise = torch.randn(shape, generator=generator, device=source)
        elif tuple(noise.shape) != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {shape}")
        noise = noise.to(context.device, torch.float32)
        omega = self.omega if omega is None else omega
        guided = use_adapters and self.has_adapters
        policies: tuple[str | None, ...] = BASE_POLICY
        if guided:
            policies = ("positive",) if omega == 0 else ("positive", "negative")
        with self.autocast():
            prepared = self.head.prepare(context.tokens, context.mask, context.condition, policies)
        ratio = self.config.diffusion.clip_ratio
        clips = guided and omega != 0 and ratio is not None
        bound = self.plan_coding.largest * ratio if clips and ratio is not None else None
        shares: list[Tensor] = []

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with self.autocast():
                output = self.head.denoise(x_t, t, prepared).float()
            mixed = combine(output[0], output[1], omega) if len(output) == 2 else output[0]
            x0 = self.schedule.convert(mixed, x_t, t, self.config.diffusion.output, "x0")
            x0, share = clip_x0(x0, bound)
            if share is not None:
                shares.append(share)
            return x0

        values = self.solver.sample(denoise, noise)
        info = {"sample/clipped": torch.stack(shares).mean()} if shares else {}
        return self.plan_coding.decode(values, context.ego_status), info


def _build_encoder(config: EncoderConfig) -> FlorenceEncoder | TimmEncoder:
    size = (config.image_width, config.image_height)
    if config.name.startswith("timm:"):
        return TimmEncoder(
            config.name.removeprefix("timm:"),
            pretrained=config.pretrained,
            image_size=size,
            num_cameras=config.num_cameras,
            stride=config.stride,
            token_width=config.width,
            summary_width=config.summary_width,
            mixer_blocks=config.mixer_blocks,
            mixer_heads=config.mixer_heads,
            options=config.timm_options,
        )
    if config.name == "florence:tiny":
        if config.pretrained:
            raise ValueError("florence:tiny has no released weights: set encoder.pretrained to false")
        return tiny_florence(size, config.num_cameras, config.views_in_text_encoder)
    return pretrained_florence(
        config.name,
        config.revision,
        image_size=size,
        num_cameras=config.num_cameras,
        views_in_text_encoder=config.views_in_text_encoder,
    )


def _rebuild_encoder(config: EncoderConfig, architecture: dict[str, Any] | None) -> FlorenceEncoder | TimmEncoder:
    """The encoder of a saved policy, without fetching released weights."""
    if architecture is None:
        return _build_encoder(replace(config, pretrained=False))
    return FlorenceEncoder(
        Florence2Config.from_dict(architecture["florence"]),
        image_size=(config.image_width, config.image_height),
        num_cameras=config.num_cameras,
        views_in_text_encoder=config.views_in_text_encoder,
        command_length=architecture["command_length"],
    )


NETWORK_KEYS = ("output", "beta_min", "beta_max")
"""Diffusion options that say what a network's output means; the others concern loss and sampler."""


def _refuse_other_architecture(wanted: DPVLAConfig, saved: DPVLAConfig, path: Path) -> None:
    """ConfigError where weights would mean something else under ``wanted`` than under ``saved``."""
    florence = not any(config.encoder.name.startswith("timm:") for config in (wanted, saved))
    free = {  # where an encoder's first weights came from, and what the network does not know of
        "encoder": {"revision", "pretrained", *(["name"] if florence else [])},
        "diffusion": to_dict(saved.diffusion).keys() - set(NETWORK_KEYS),
    }
    for group in ("encoder", "head", "plan", "diffusion"):
        ours, theirs = to_dict(getattr(wanted, group)), to_dict(getattr(saved, group))
        for key in ours:
            if ours[key] != theirs[key] and key not in free.get(group, ()):
                raise ConfigError(
                    f"model.{group}.{key} is {ours[key]!r}, but the weights of {path.parent} are of a model with "
                    f"{theirs[key]!r}: give the same model options, or start without these weights"
                )
