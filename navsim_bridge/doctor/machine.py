"""Do Python, packages, GPU and linear algebra work?

Nothing that may crash is imported into this process: a torchvision built for another torch, or another project called
navsim, is recognized by its metadata and tried in a process of its own.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from dpvla.provenance import version_of
from navsim_bridge.doctor.finding import ERROR, OK, WARNING, Finding, verdict

PYTHONS = ((3, 10), (3, 15))  # from, and the first that is too new
NEEDED = (
    "accelerate", "diffusers", "tyro", "matplotlib", "numpy", "cv2", "pandas", "peft", "PIL", "pyogrio", "pyproj",
    "yaml", "safetensors", "scipy", "shapely", "tensorboard", "timm", "tokenizers", "torch", "torchvision", "tqdm",
    "transformers",
)  # fmt: skip
"""Modules that a checkout which is not installed must find; an installed dpvla lists its own requirements."""
DEVKIT_FILE = "common/dataclasses.py"
"""A file that the NAVSIM devkit's package `navsim` has, and the unrelated one on PyPI has not."""
IMPORT_SECONDS = 180


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    first, after = (".".join(map(str, version)) for version in PYTHONS)
    found = f"Python {platform.python_version()}"
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    yield verdict("" if fits else found, f"use Python >= {first} and < {after} in a new environment", found)


def check_packages() -> Iterator[Finding]:
    """Required packages and their versions."""
    try:
        requirements = metadata.requires("dpvla") or []
    except metadata.PackageNotFoundError:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        yield Finding(WARNING, "dpvla is not installed here", "pip install -e . in its checkout")
        for name in missing:
            yield Finding(ERROR, f"module {name} is missing", "pip install -e . in dpvla's checkout")
        if not missing:
            yield Finding(OK, f"all {len(NEEDED)} needed modules are there (versions not checked)")
        return
    from packaging.requirements import Requirement

    checked, good = 0, True
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        found = version_of(requirement.name)
        if found is None:
            good = False
            yield Finding(ERROR, f"package {requirement.name} is missing", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            good = False
            yield Finding(
                ERROR, f"package {requirement.name} is {found}, needed {requirement.specifier}",
                f"pip install '{requirement}'",
            )  # fmt: skip
    if good:
        versions = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "numpy", "scipy", "shapely"))
        yield Finding(OK, f"all {checked} required packages are there ({versions})")


def check_navsim() -> Iterator[Finding]:
    """An installed package `navsim`: NAVSIM's devkit, or the unrelated project that PyPI has under this name."""
    try:
        spec = importlib.util.find_spec("navsim")
    except (ImportError, ValueError):
        spec = None
    version = version_of("navsim")
    if spec is None and version is None:
        yield Finding(OK, "no package navsim (the devkit is not needed)")
        return
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    if any((folder / DEVKIT_FILE).is_file() for folder in folders):
        yield Finding(OK, f"NAVSIM devkit {version or 'from ' + str(folders[0])}")
    else:
        yield Finding(
            WARNING,
            f"the installed package navsim {version or ''} is not NAVSIM's devkit but an unrelated project from PyPI",
            "pip uninstall navsim; dpvla does not need it. For the devkit: "
            "pip install 'navsim @ git+https://github.com/autonomousvision/navsim.git@v1.1'",
        )


def check_torchvision() -> Iterator[Finding]:
    """Whether torchvision was built for the installed torch. A missing one is another check's finding."""
    torch_version, vision_version = version_of("torch"), version_of("torchvision")
    if torch_version is None or vision_version is None:
        return
    needed = _torch_that_torchvision_needs(metadata.requires("torchvision") or [])
    public = torch_version.split("+")[0]
    if needed is not None and needed != public:
        yield Finding(
            ERROR, f"torchvision {vision_version} was built for torch {needed}, found torch {torch_version}",
            f"pip install --force-reinstall torch=={needed} torchvision=={vision_version.split('+')[0]}, "
            "both from one index",
        )  # fmt: skip
        return
    failure = _import_failure("torchvision.ops")
    yield verdict(
        f"torchvision {vision_version} cannot be imported with torch {torch_version}: {failure}" if failure else "",
        "reinstall torch and torchvision together, both from one index (both CPU or the same CUDA)",
        f"torchvision {vision_version} fits torch {torch_version}",
    )


def check_gpu() -> Iterator[Finding]:
    """CUDA devices, and why there are none where there should be."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(OK, f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    elif Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding(
            WARNING, f"there is an NVIDIA driver, but torch {torch.__version__} ({build}) finds no GPU",
            "install a CUDA build of torch that the driver supports; look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    else:
        yield Finding(OK, "no GPU: everything runs on the CPU")


def check_linear_algebra() -> Iterator[Finding]:
    """The 24x24 inverse that OpenBLAS 0.3.20 (numpy 1.23) gets wrong on some CPUs: numpy issue 22502.

    Official scores are zeros there. Also an inverse and a pseudo-inverse of the sizes that scoring uses.
    """
    matrix = np.identity(24)
    matrix[17, 15] = 10
    random = np.random.default_rng(0)
    normal = random.normal(size=(40, 80))
    normal = normal @ normal.T + np.identity(40)
    errors = [
        np.abs(m @ invert(m) - np.identity(len(m))).max()
        for m in (matrix, normal)
        for invert in (np.linalg.inv, np.linalg.pinv)
    ]
    wrong = (
        f"numpy {np.__version__} inverts a 24x24 matrix wrongly here (error {max(errors):.1e}, numpy issue 22502): "
        "official scores made here are worthless"
    )
    yield verdict(
        wrong if not max(errors) < 1e-9 else "",
        "pip install 'numpy>=1.24' (OpenBLAS >= 0.3.21), or set OPENBLAS_CORETYPE=SkylakeX",
        f"linear algebra: the inverses of numpy issue 22502 are right (error {max(errors):.0e})",
    )


def _torch_that_torchvision_needs(requirements: Sequence[str]) -> str | None:
    """The one torch version that torchvision's metadata asks for; None when it names none."""
    for requirement in requirements:
        found = re.match(r"torch\s*\(?==\s*([\w.]+)", requirement)
        if found:
            return found.group(1)
    return None


def _import_failure(module: str) -> str | None:
    """Last line of what importing ``module`` says in a process of its own; None when it works."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {IMPORT_SECONDS} s"
    if run.returncode == 0:
        return None
    lines = run.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {run.returncode}"
