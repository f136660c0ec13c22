"""What made a result: versions, commit, device, seed. Stored beside every number and checkpoint."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("dpvla", "torch", "torchvision", "numpy", "scipy", "shapely", "transformers", "diffusers", "peft",
            "accelerate", "timm", "safetensors")  # fmt: skip


def collect(seed: int | None = None) -> dict[str, Any]:
    """Python, package versions, git commit of the source tree (None outside one), device and command."""
    import torch

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
