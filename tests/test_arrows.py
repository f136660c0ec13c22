"""Which part uses which: no arrow back up, no circle of files, also not where only a type checker or a string looks.

``ORDER`` is the drawing: a part uses what stands on lines below its own, never what stands beside or above it. A new
part gets its line here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("dpvla", "navsim_bridge", "dpvla_devkit")

KEEP_TO_ORDER = PACKAGES
"""Packages whose files all do."""

ORDER = (
    ("navsim_bridge.comparison",),
    ("navsim_bridge.evaluation", "navsim_bridge.demo_world", "navsim_bridge.submission", "navsim_bridge.serving"),
    ("navsim_bridge.doctor", "navsim_bridge.agents"),
    ("navsim_bridge.data",),
    ("navsim_bridge.metric_cache",),
    ("navsim_bridge.metrics", "navsim_bridge.golden"),
    ("navsim_bridge.pdm_closed", "navsim_bridge.splits", "navsim_bridge.traffic"),
    ("navsim_bridge.pdm", "navsim_bridge.files"),
    ("navsim_bridge", "navsim_bridge.ego", "navsim_bridge.human_filter"),
    ("dpvla.state_based.paper",),
    ("dpvla.state_based.running",),
    ("dpvla.state_based.agents",),
    ("dpvla.state_based.networks",),
    ("dpvla.state_based.data",),
    ("dpvla.state_based.environments",),
    ("dpvla.costs",),
    ("dpvla.selector",),
    ("dpvla.state_based", "dpvla.rl"),
    ("dpvla.algorithms", "dpvla.training"),
    ("dpvla.models",),
    ("dpvla.encoders",),
    ("dpvla.layers", "dpvla.diffusion", "dpvla.batch", "dpvla.report", "dpvla.tensors", "dpvla.provenance"),
    ("dpvla.cli", "dpvla.plan", "dpvla.sensors", "dpvla.checkpoint_layout", "dpvla.parallel"),
    ("dpvla.manifest",),
    ("dpvla.schema", "dpvla.former_defaults", "dpvla.sub_scores", "dpvla.recipes"),
    ("dpvla.config", "dpvla.kept_open", "dpvla.random_rows", "dpvla.ahead", "dpvla.precision"),
    ("dpvla.files",),
    ("dpvla.registry", "dpvla.device"),
    ("dpvla",),
    ("dpvla_devkit",),
    ("dpvla_devkit.agent",),
    ("dpvla_devkit.served_policy",),
    ("dpvla_devkit.protocol", "dpvla_devkit.address", "dpvla_devkit.config"),
)
"""Parts from the top down: files, and folders with all that is in them; a package itself is its ``__init__``."""

Uses = Mapping[str, set[str]]
"""Module to the modules it names."""


def modules_of(root: Path) -> dict[str, Path]:
    """Every file of the packages by its module's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def uses_of(root: Path) -> Uses:
    """What every module imports, anywhere in it, or names in a string (``"module"`` or ``"module:name"``)."""
    modules = modules_of(root)
    return {
        module: {name for name in _named(path, module, modules) if name in modules} - {module}
        for module, path in modules.items()
    }


def _named(path: Path, module: str, modules: Mapping[str, Path]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                yield inside if inside in modules else source
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+(\.\w+)+(:\w+)?", str(node.value)):
            yield str(node.value).partition(":")[0]


def level_of(module: str) -> tuple[int, str]:
    """Line in ``ORDER`` and the part that a module belongs to."""
    found = [
        (len(part), level, part)
        for level, parts in enumerate(ORDER)
        for part in parts
        if module == part or (part not in (*PACKAGES, "dpvla.state_based") and module.startswith(f"{part}."))
    ]
    assert found, f"{module} has no place in ORDER of tests/test_arrows.py: give it one"
    return max(found)[1:]


def wrong_arrows(uses: Uses) -> list[str]:
    """Uses of what does not stand below."""
    wrong = []
    for module, used in uses.items():
        level, part = level_of(module)
        for other in sorted(used):
            its_level, its_part = level_of(other)
            if its_part != part and its_level <= level:
                wrong.append(f"{module} -> {other}")
    return wrong


def circles(uses: Uses) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(uses[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in uses:
        if module not in number:
            visit(module)
    return found


@pytest.fixture(scope="module")
def uses() -> Uses:
    return uses_of(ROOT)


def test_no_part_uses_what_stands_beside_or_above_it(uses: Uses) -> None:
    assert wrong_arrows({module: used for module, used in uses.items() if module.split(".")[0] in KEEP_TO_ORDER}) == []


def test_no_files_use_each_other_in_a_circle(uses: Uses) -> None:
    assert circles(uses) == []


def test_the_packages_know_nothing_of_tools_tests_and_benchmarks() -> None:
    outside = {path.stem for folder in ("tools", "benchmarks") for path in (ROOT / folder).glob("[a-z]*.py")}
    for module, path in modules_of(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            first = {name.partition(".")[0] for name in names}
            assert not first & {"tools", "tests", "benchmarks", *outside}, (module, names)


@pytest.mark.parametrize(
    "text",
    [
        "from dpvla import rl",
        "import dpvla.rl.stage",
        "from ..rl.stage import Stage",
        "def f():\n    from dpvla.rl.stage import Stage",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dpvla.rl.stage import Stage",
        "WHERE = 'dpvla.rl.stage'",
        "WHERE = {'a': 'dpvla.rl.stage:Stage'}",
    ],
)
def test_an_arrow_back_up_is_found_however_it_is_written(text: str, tmp_path: Path) -> None:
    for name, content in {"models/policy": text, "rl/stage": "", "models/__init__": "", "rl/__init__": ""}.items():
        path = tmp_path / "dpvla" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = uses_of(tmp_path)
    assert wrong_arrows(found)[0].startswith("dpvla.models.policy -> dpvla.rl") and circles(found) == []
    (tmp_path / "dpvla/rl/stage.py").write_text("import dpvla.models.policy")
    (tmp_path / "dpvla/rl/__init__.py").write_text("from dpvla.rl.stage import Stage")
    assert [{"dpvla.models.policy", "dpvla.rl.stage"} <= {*group} for group in circles(uses_of(tmp_path))] == [True]
