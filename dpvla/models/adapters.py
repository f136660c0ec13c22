"""The head's policies: low-rank updates by name on one frozen head, see ``layers.adaptable``.

On disk the layout is PEFT's (``NAME/adapter_config.json``, ``NAME/adapter_model.safetensors``).
"""

from __future__ import annotations

import math
import shutil
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dpvla import files
from dpvla.layers.adaptable import BASE, Active, AdaptableLinear
from dpvla.tensors import load_tensors

ADAPTERS = ("positive", "negative")
"""The two dichotomous policies of DIPOLE, in the order of the stacked weights."""


PEFT_PREFIX = "base_model.model."


def adaptable_layers(head: nn.Module) -> dict[str, AdaptableLinear]:
    """Every adaptable layer of the head by its path, in module order."""
    return {name: module for name, module in head.named_modules() if isinstance(module, AdaptableLinear)}


def has_adapters(head: nn.Module) -> bool:
    """Whether the policies have been added to the head."""
    return any(layer.adapter_down is not None for layer in adaptable_layers(head).values())


def resolve(adapters: tuple[str | None, ...]) -> Active | None:
    """Names to indices; ``None`` names the base policy. ``None`` comes back when no adapter is involved."""
    unknown = [name for name in adapters if name is not None and name not in ADAPTERS]
    if unknown or not adapters:
        raise ValueError(f"unknown adapters {unknown}; expected a non-empty choice of {ADAPTERS} or None for the base")
    if adapters == (None,):
        return None
    return tuple(BASE if name is None else ADAPTERS.index(name) for name in adapters)


def add_adapters(head: nn.Module, rank: int, alpha: float) -> None:
    """Give every adaptable layer one zero-effect update per policy (paper: rank 16, alpha 16, dropout 0)."""
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank must be at least 1 and alpha positive, found {rank} and {alpha}")
    if has_adapters(head):
        raise RuntimeError("the head already has adapters")
    for layer in adaptable_layers(head).values():
        layer.add(len(ADAPTERS), rank, alpha)


def adapter_parameters(head: nn.Module) -> list[nn.Parameter]:
    """Stacked parameters of both policies, for one optimiser."""
    found = []
    for layer in adaptable_layers(head).values():
        found += [p for p in (layer.adapter_down, layer.adapter_up) if p is not None]
    return found


def merge_adapters(head: nn.Module, shares: tuple[float, ...]) -> None:
    """Add ``share * scale * B A`` of every policy to the base weights, then remove the policies.

    ``shares``: one for each policy, in the order of ``ADAPTERS``.
    """
    if not has_adapters(head):
        raise RuntimeError("nothing to merge: the head has no adapters")
    for layer in adaptable_layers(head).values():
        down, up = layer._stacked(tuple(range(len(ADAPTERS))))
        with torch.no_grad():
            updates = torch.bmm(up.double(), down.double()) * layer.adapter_scale
            for share, update in zip(shares, updates):
                layer.weight += (share * update).to(layer.weight.dtype)
        layer.adapter_down = layer.adapter_up = None


def adapter_size(head: nn.Module) -> tuple[int, float]:
    """Rank and alpha of the head's adapters."""
    layer = next(iter(adaptable_layers(head).values()))
    if layer.adapter_down is None:
        raise RuntimeError("the head has no adapters")
    rank = layer.adapter_down.shape[1]
    return rank, layer.adapter_scale * rank


def save_adapters(head: nn.Module, directory: Path | str) -> None:
    """Write both policies below ``directory`` in PEFT's format."""
    layers = adaptable_layers(head)
    if not has_adapters(head):
        raise RuntimeError(f"nothing to save in {directory}: the head has no adapters")
    for index, name in enumerate(ADAPTERS):
        tensors = {}
        for path, layer in layers.items():
            down, up = layer._stacked((index,))
            tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = down[0].detach().float().cpu().contiguous()
            tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = up[0].detach().float().cpu().contiguous()
        folder = Path(directory) / name
        content = BytesIO(safetensors.torch.save(tensors, metadata={"format": "pt"}))
        files.write_atomically(folder / "adapter_model.safetensors", partial(shutil.copyfileobj, content))
        files.write_json(folder / "adapter_config.json", _peft_config(head))


def load_adapters(head: nn.Module, directory: Path | str) -> None:
    """Read what ``save_adapters`` (or PEFT, for the same layers) wrote; adds the adapters when absent."""
    layers = adaptable_layers(head)
    loaded = {}
    for name in ADAPTERS:
        folder = Path(directory) / name
        for needed in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"{folder / needed} is missing: {directory} needs {' and '.join(ADAPTERS)}")
        config = files.read_json(folder / "adapter_config.json")
        tensors = load_tensors(folder / "adapter_model.safetensors")
        _check_adapter(folder, config, tensors, layers)
        loaded[name] = (config, tensors)
    scales = {(config["r"], config["lora_alpha"]) for config, _ in loaded.values()}
    if len(scales) > 1:
        raise ValueError(f"the two adapters in {directory} differ in (rank, alpha): {sorted(scales)}")
    rank, alpha = scales.pop()
    for path, layer in layers.items():
        if layer.adapter_down is None or layer.adapter_down.shape[1] != rank:
            layer.add(len(ADAPTERS), rank, alpha)
        assert layer.adapter_down is not None and layer.adapter_up is not None
        layer.adapter_scale = alpha / rank
        with torch.no_grad():
            for index, name in enumerate(ADAPTERS):
                layer.adapter_down[index].copy_(loaded[name][1][f"{PEFT_PREFIX}{path}.lora_A.weight"])
                layer.adapter_up[index].copy_(loaded[name][1][f"{PEFT_PREFIX}{path}.lora_B.weight"])


def _check_adapter(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], layers: dict[str, AdaptableLinear]
) -> None:
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise ValueError(f"{folder} is not a plain LoRA adapter (peft_type {config.get('peft_type')!r})")
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("bias", "none") != "none":
        raise ValueError(f"{folder} uses rank_pattern, alpha_pattern or bias, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{folder}/adapter_config.json: r must be a whole number of at least 1, found {rank!r:.80}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"{folder}/adapter_config.json: lora_alpha must be a number above 0, found {alpha!r:.80}")
    expected = {}
    for path, layer in layers.items():
        expected[f"{PEFT_PREFIX}{path}.lora_A.weight"] = (rank, layer.in_features)
        expected[f"{PEFT_PREFIX}{path}.lora_B.weight"] = (layer.out_features, rank)
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{folder} does not fit this head: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {extra[:3]} ({len(extra)})"
        )
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{folder}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}")


def _peft_config(head: nn.Module) -> dict[str, Any]:
    rank, alpha = adapter_size(head)
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(adaptable_layers(head)),
        "task_type": None,
    }
