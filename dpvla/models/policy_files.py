"""A saved policy: ``config.json`` says what it is, ``model.safetensors`` holds weights and plan statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from dpvla import __version__, files
from dpvla.checkpoint_layout import CONFIG_FILE, WEIGHTS_FILE
from dpvla.config import ConfigError, from_dict, one_line, to_dict
from dpvla.encoders.encoder import Encoder
from dpvla.encoders.registry import encoder_class
from dpvla.manifest import check_manifest, require_manifest, write_manifest
from dpvla.models.config import DPVLAConfig
from dpvla.precision import Precision
from dpvla.schema import checked
from dpvla.tensors import CheckpointError, described, read_into, require_same, save_tensors

FORMAT_VERSION = 2
READABLE = (1, 2)  # 1: encoders had other keys, which ``encoders.registry.in_full`` still reads
NETWORK_KEYS = ("output", "beta_min", "beta_max")
"""Diffusion options that say what a network's output means; the others concern loss and sampler."""


class _Needed(TypedDict):
    model: dict[str, Any]
    encoder_architecture: Any


class _Description(_Needed, total=False):
    """``config.json``."""

    precision: Precision
    manifest: bool  # whether there is one


@dataclass(frozen=True)
class PolicyFiles:
    """What ``config.json`` says; the weights lie beside it."""

    directory: Path
    config: DPVLAConfig
    encoder_architecture: Any  # what the encoder must know beside its config
    precision: Precision

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Both files, each atomically, and their checksums."""
        save_tensors(self.directory / WEIGHTS_FILE, tensors)
        description = {
            "format_version": FORMAT_VERSION,
            "dpvla_version": __version__,
            "model": self.config.to_dict(),
            "encoder_architecture": self.encoder_architecture,
            "precision": self.precision,
            "values": _values_by_type(tensors),
            "manifest": True,
        }
        files.write_json(self.directory / CONFIG_FILE, description)
        write_manifest(self.directory, names=(CONFIG_FILE, WEIGHTS_FILE))

    @classmethod
    def read(cls, directory: Path | str, wanted: DPVLAConfig | None = None) -> PolicyFiles:
        """What was saved, with the config ``wanted`` instead of its own; only loss and sampler may differ.

        Raises FileNotFoundError or ValueError: files are missing, damaged, or of another model than wanted.
        """
        directory = Path(directory)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory / name} is missing: {directory} is not a saved DP-VLA")
        path = directory / CONFIG_FILE
        content = files.read_json(path)
        found = content.get("format_version")
        if type(found) is not int or found not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise files.FileError(
                f"{path}: format_version {files.short(found, 80)}, of a driving policy it is {readable}; give a "
                "checkpoint of tools/pretrain.py or tools/rl_finetune.py"
            )
        description = checked(content, _Description, str(path))
        require_manifest(directory, description.get("manifest", False), [CONFIG_FILE])
        config = from_dict(DPVLAConfig, description["model"], str(path))
        if wanted is not None:
            _refuse_other_architecture(wanted, config, path)
            config = wanted
        precision = description.get("precision", "no")  # version 0.1.0 did not keep it
        return cls(directory, config, description["encoder_architecture"], precision)

    def encoder(self) -> Encoder[Any]:
        """The encoder, before its weights are loaded."""
        config = self.config.encoder
        return encoder_class(config).from_architecture(config, self.encoder_architecture)

    @contextmanager
    def describing(self) -> Iterator[None]:
        """What cannot be built inside is the fault of ``config.json``: ValueError names it."""
        path = self.directory / CONFIG_FILE
        try:
            yield
        except CheckpointError:  # of the weights
            raise
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(
                f"{path} describes no model that can be built: {type(error).__name__}: {one_line(error)[:200]}"
            ) from None

    def require_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError where the weights are others than ``tensors``, of which memory is taken afterwards."""
        path = self.directory / WEIGHTS_FILE
        require_same(tensors, described(path), path)

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill weights and plan statistics. Raises CheckpointError where they are damaged, not finite or others."""
        check_manifest(self.directory, [WEIGHTS_FILE])
        read_into(tensors, self.directory / WEIGHTS_FILE)


def _values_by_type(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers of each type the weights hold, for whoever reads ``config.json``."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return dict(counts)


def _refuse_other_architecture(wanted: DPVLAConfig, saved: DPVLAConfig, path: Path) -> None:
    """ConfigError where weights would mean something else under ``wanted`` than under ``saved``."""
    free = {  # where first weights came from, and what the network does not know of
        "encoder": set(saved.encoder.SOURCES),
        "diffusion": to_dict(saved.diffusion).keys() - set(NETWORK_KEYS),
    }
    for group in ("encoder", "head", "plan", "diffusion"):
        ours, theirs = to_dict(getattr(wanted, group)), to_dict(getattr(saved, group))
        for key in ours:
            if ours[key] != theirs.get(key) and key not in free.get(group, ()):
                raise ConfigError(
                    f"model.{group}.{key} is {ours[key]!r}, but the weights of {path.parent} are of a model with "
                    f"{theirs.get(key)!r}: give the same model options, or start without these weights"
                )
