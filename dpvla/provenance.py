"""What made a result: versions, commit, device, seed. Stored beside every number and checkpoint."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("dpvla", "torch", "torchvision", "triton", "numpy", "numba", "scipy", "shapely", "transformers",
            "diffusers", "peft", "accelerate", "timm", "safetensors", "mujoco", "dm_control", "gymnasium",
            "ogbench")  # fmt: skip


def made_by(seed: int | Sequence[int] | None = None, device: torch.device | str | None = None) -> dict[str, Any]:
    """Python, package and BLAS versions, git commit of the source tree (None outside one), device, command, seed(s).

    ``device``: where it was computed; None: whatever this machine has.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": list(seed) if isinstance(seed, Sequence) else seed,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
        "blas": blas_versions(),
        "device": device_name(device),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def device_name(device: torch.device | str | None = None) -> str:
    """The product name of a GPU, or "cpu"."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def blas_versions() -> dict[str, str]:
    """The linear algebra that numpy and torch were built with: it decides the last bits of a result."""
    import numpy as np
    import torch

    build: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    numpy_blas = build.get("Build Dependencies", {}).get("blas", {})
    torch_build = torch.__config__.show()
    found = re.search(r"BLAS_INFO=(\w+)", torch_build)
    mkl = re.search(r"Math Kernel Library Version ([\w.]+)", torch_build)
    return {
        "numpy": f"{numpy_blas.get('name', 'unknown')} {numpy_blas.get('version', '')}".strip(),
        "torch": f"{found.group(1) if found else 'unknown'} {mkl.group(1) if mkl else ''}".strip(),
    }


def git_commit() -> str | None:
    """Commit of the checkout this package is imported from, with '-dirty' when tracked files differ."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if dirty else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def version_of(name: str) -> str | None:
    """Of an installed distribution; None where there is none of that name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
