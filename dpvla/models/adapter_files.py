"""Adapters on disk, in PEFT's layout: ``NAME/adapter_config.json``, ``NAME/adapter_model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from dpvla import files
from dpvla.config import Count, Range
from dpvla.layers.adaptable import AdaptableLinear
from dpvla.models.adapters import adaptable_layers, adapter_size, add_adapters, require_adapters
from dpvla.models.head import DiTHead
from dpvla.schema import read_as
from dpvla.tensors import load_tensors, require_same, save_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def names(adapters: Sequence[str]) -> list[str]:
    """The files of some adapters, relative to the folder that holds them."""
    return [f"{name}/{file}" for name in adapters for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]


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


def saved_size(directory: Path | str, names: Sequence[str]) -> tuple[int, float]:
    """Rank and alpha of the adapters that ``save_adapters`` wrote, which are the same for all ``names``."""
    path = Path(directory) / names[0] / ADAPTER_CONFIG
    config = read_as(path, _PeftConfig)
    _check_config(path, config)
    return config["r"], config["lora_alpha"]


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
        config, weights = read_as(folder / ADAPTER_CONFIG, _PeftConfig), folder / ADAPTER_WEIGHTS
        _check_config(folder / ADAPTER_CONFIG, config)
        tensors = load_tensors(weights)
        require_same(_expected(layers, config["r"]), tensors, weights)
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


class _Size(TypedDict):
    peft_type: str
    r: Count
    lora_alpha: Annotated[float, Range(above=0, most=1e6)]


class _PeftConfig(_Size, total=False):
    """``adapter_config.json``, as far as it is read."""

    use_dora: bool | None
    use_rslora: bool | None
    rank_pattern: dict[str, Any] | None
    alpha_pattern: dict[str, Any] | None
    bias: str | None


def _check_config(path: Path, config: _PeftConfig) -> None:
    if config["peft_type"] != "LORA" or config.get("use_dora") or config.get("use_rslora"):
        raise files.FileError(f"{path} is of no plain LoRA adapter (peft_type {files.short(config['peft_type'], 80)})")
    if config.get("rank_pattern") or config.get("alpha_pattern") or (config.get("bias") or "none") != "none":
        raise files.FileError(f"{path} uses rank_pattern, alpha_pattern or bias, which is not supported")


def _expected(layers: Mapping[str, AdaptableLinear], rank: int) -> dict[str, Tensor]:
    """Tensors of an adapter, without numbers."""
    shapes = {}
    for path, layer in layers.items():
        shapes[f"{PEFT_PREFIX}{path}.lora_A.weight"] = (rank, layer.in_features)
        shapes[f"{PEFT_PREFIX}{path}.lora_B.weight"] = (layer.out_features, rank)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


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
