"""Load the simulators without a window: nothing here draws, and most machines that train have no display."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from types import ModuleType

from dpvla.config import one_line

INSTALL = (
    "the state-based track needs MuJoCo, dm_control and ogbench; with Python 3.10 to 3.12, in the source tree: "
    "pip install -e '.[state]'"
)


def load(module: str) -> ModuleType:
    """Import ``module`` (part of mujoco, dm_control or ogbench), with drawing off unless the caller has chosen.

    MuJoCo's packages read MUJOCO_GL once, when first imported, and look for a display when it is unset. A value that
    is set (egl, osmesa, glfw) is left alone, and so is a process that has imported them already.

    Raises:
        ModuleNotFoundError: the package is not installed; says how to install it.
        ImportError: MUJOCO_GL names a way to draw that this machine does not have.
    """
    _quiet_complaints_about_the_packages_own_models()
    if "mujoco" not in sys.modules and "dm_control" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "disable")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("mujoco", "dm_control", "dm_env", "ogbench", "gymnasium"):
            raise ModuleNotFoundError(f"{error}; {INSTALL}", name=error.name) from error
        raise
    except Exception as error:  # whatever the libraries behind a way to draw raise where they are not there
        if os.environ.get("MUJOCO_GL", "disable") == "disable":
            raise
        raise ImportError(
            f"{module} cannot be loaded with MUJOCO_GL={os.environ['MUJOCO_GL']} ({type(error).__name__}: "
            f"{one_line(error)[:200]}); nothing is drawn here: unset MUJOCO_GL"
        ) from error


@contextmanager
def naming_simulator(name: str) -> Iterator[None]:
    """Around what makes an environment: OSError says of which, and where the packages write their models first."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the simulator of {name} cannot be made: {one_line(error)} (its model is written to "
            f"{tempfile.gettempdir()} first: is there room? TMPDIR names another folder)"
        ) from error


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions of some of the simulators' packages.

    Raises:
        ModuleNotFoundError: one is not installed; says how to install it.
    """
    try:
        return {package: metadata.version(package) for package in packages}
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"No module named '{error.name}'; {INSTALL}", name=error.name) from error


@cache
def _quiet_complaints_about_the_packages_own_models() -> None:
    """Two messages that every environment of every worker would repeat and nobody here can act on."""
    warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32", category=UserWarning)
    logging.getLogger("absl").addFilter(lambda record: "'settotalmass' is deprecated" not in record.getMessage())
