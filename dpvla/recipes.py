"""Where the bundled recipes are: ``configs/`` of a checkout, or the package ``dpvla_configs`` of an installation.

``--config pretrain_demo`` names a bundled one, ``--config my/own.yaml`` a file.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from dpvla.config import ConfigError

_BESIDE = Path(__file__).resolve().parents[1]
RECIPES = next((_BESIDE / name for name in ("configs", "dpvla_configs") if (_BESIDE / name).is_dir()), None) or (
    _BESIDE / "dpvla_configs"
)
"""The folder of all bundled recipes."""


def bundled(name: str) -> Path | None:
    """The bundled recipe called ``name``, which has neither folder nor suffix; None where there is none."""
    plain = name.isidentifier() or name.replace("_", "").isalnum()
    path = RECIPES / f"{name}.yaml"
    return path if plain and path.is_file() else None


def recipe_file(given: str) -> Path:
    """The file that ``--config`` means: one that is there, or a bundled recipe by its name.

    Raises ConfigError that names the nearest bundled recipe.
    """
    path = Path(given)
    if path.exists():
        return path
    if (found := bundled(given)) is not None:
        return found
    names = sorted(one.stem for one in RECIPES.glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.0)
    hint = f"; nearest bundled recipe: --config {near[0]} (all: {', '.join(names)})" if near else ""
    raise ConfigError(f"config file {given} does not exist{hint}")
