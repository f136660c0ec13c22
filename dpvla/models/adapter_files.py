"""Adapters on disk, in PEFT's layout: ``NAME/adapter_config.json``, ``NAME/adapter_model.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpvla import files
from dpvla.layers.adaptable import AdaptableLinear
from dpvla.models.adapters import adaptable_layers, adapter_size, add_adapters, require_adapters
from dpvla.models.head import DiTHead
from dpvla.tensors import load_tensors, save_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def save_adapters(head: DiTHead, directory: Path | str) -> None:
    """Write every adapter below ``directory`` in PEFT's format, each in the folder of its name."""
    layers = adaptable_layers(head)
    require_adapters(head)
    for index, name in enumerate(head.adapters):
        tensors = {}
        for path, layer in layers.items():
            down, up = layer.stacked((index,))
            tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = down[0].detach().float()
            tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = up[0].detach().float()
        folder = Path(directory) / name
        save_tensors(folder / ADAPTER_WEIGHTS, tensors)
        files.write_json(folder / ADAPTER_CONFIG, _peft_config(head))


def load_adapters(head: DiTHead, names: Sequence[str], directory: Path | str) -> None:
    """Read what ``save_adapters`` (or PEFT, for the same layers) wrote; adds the adapters when absent.

    Raises:
        FileNotFoundError: an adapter is not there.
        ValueError: one does not fit the head, or they differ in rank or alpha.
    """
    layers = adaptable_layers(head)
    loaded = {}
    for name in names:
        folder = Path(directory) / name
        for needed in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"{folder / needed} is missing: {directory} needs {' and '.join(names)}")
        config = files.read_json(folder / ADAPTER_CONFIG)
        tensors = load_tensors(folder / ADAPTER_WEIGHTS)
        _check_adapter(folder, config, tensors, layers)
        loaded[name] = (config, tensors)
    scales = {(config["r"], config["lora_alpha"]) for config, _ in loaded.values()}
    if len(scales) > 1:
        raise ValueError(f"the adapters in {directory} differ in (rank, alpha): {sorted(scales)}")
    rank, alpha = scales.pop()
    if head.adapters != tuple(names) or adapter_size(head) != (rank, alpha):
        for layer in layers.values():
            layer.adapter_down = layer.adapter_up = None
        head.adapters = ()
        add_adapters(head, names, rank, alpha)
    for path, layer in layers.items():
        assert layer.adapter_down is not None and layer.adapter_up is not None
        with torch.no_grad():
            for index, name in enumerate(names):
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


def _peft_config(head: DiTHead) -> dict[str, Any]:
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
