"""What can go wrong when a name is added: each is told in one line that says what to do."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import pytest

from dpvla.cli import parse
from dpvla.config import ConfigError, OneOf, from_dict
from dpvla.registry import Registry, RegistryError, import_plugin, look_up


@dataclass(frozen=True)
class ToolConfig:
    """What all tools have."""

    name: str  # which


@dataclass(frozen=True)
class HammerConfig(ToolConfig):
    """A hammer."""

    name: str = "hammer"  # which


class Tool(ABC):
    Config: ClassVar[type[ToolConfig]]
    size: ClassVar[int]

    @abstractmethod
    def use(self) -> None: ...


class Hammer(Tool):
    Config = HammerConfig
    size = 1

    def use(self) -> None: ...


class Saves(Protocol):
    def save(self) -> None: ...


TOOLS = Registry(Tool, hammer=Hammer)


@dataclass(frozen=True)
class Options:
    """Of a program."""

    tool: Annotated[ToolConfig, OneOf(TOOLS, "tool")] = field(default_factory=HammerConfig)  # which tool
    count: int = 1  # how often
    plugin: tuple[str, ...] = ()  # your modules


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in {*TOOLS} - {"hammer"}:
        del TOOLS[name]
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse(Options, words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_name_that_is_taken_is_refused_and_the_same_thing_again_is_not() -> None:
    TOOLS["hammer"] = Hammer

    class Other(Hammer):
        pass

    with pytest.raises(RegistryError, match=r"the name 'hammer' is taken by .*\.Hammer; give .*Other another name"):
        TOOLS["hammer"] = Other
    assert TOOLS["hammer"] is Hammer


def plain(name: str = "hammer") -> type:
    @dataclass(frozen=True)
    class NoSubclass:
        name: str = "x"

    class NoDataclass(ToolConfig):
        pass

    @dataclass(frozen=True)
    class NoDefault(ToolConfig):
        size: int

    @dataclass(frozen=True)
    class NoType(HammerConfig):
        size: Nowhere = 3  # type: ignore[name-defined]  # noqa: F821

    return {c.__name__: c for c in (NoSubclass, NoDataclass, NoDefault, NoType)}[name]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("NoSubclass", "is no subclass of tests.*ToolConfig"),
        ("NoDataclass", r"is no dataclass: write @dataclass\(frozen=True\) above it"),
        ("NoDefault", "gives name, size no default"),
        ("NoType", "a type in its Config, .*NoType, cannot be read: name 'Nowhere' is not defined"),
    ],
)
def test_a_config_that_can_be_none_is_told(config: str, message: str) -> None:
    TOOLS["mine"] = type("Mine", (Hammer,), {"Config": plain(config)})
    with pytest.raises(ConfigError, match=f"x: tool.name: tool 'mine': .*{message}"):
        from_dict(Options, {"tool": "mine"}, "x")


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, "is 3: no class"),
        ("nowhere.at:All", "is said to be nowhere.at:All, but there is no module nowhere"),
        ("json:All", "json has no All"),
        ("json", "has no class named: write module:Class"),
        (HammerConfig, "HammerConfig: no subclass of .*Tool"),
        (type("Half", (Tool,), {}), "Half, lacks Config, size, use: .*Tool says what they are"),
    ],
)
def test_what_a_name_cannot_stand_for_is_told_before_anything_is_done(
    thing: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    TOOLS["mine"] = thing
    with pytest.raises(RegistryError, match=message):
        look_up(TOOLS, "mine", "tool")
    line = said(capsys, "--tool", "mine")
    assert line.startswith("error: the command line: tool.name: tool 'mine'") and line.count("\n") == 1


def test_a_protocol_asks_for_its_methods() -> None:
    with pytest.raises(RegistryError, match=r"saver 'a', .*Hammer, lacks save: .*\.Saves says what they are"):
        look_up(Registry(Saves, a=Hammer), "a", "saver")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("def x(:", "SyntaxError"), ("raise ValueError('boom')", "ValueError"), ("raise SystemExit(0)", "SystemExit")],
)
def test_a_plug_in_that_fails_is_shown_and_named(text: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("failing_plugin.py").write_text(text)
    *shown, line = said(capsys, "--plugin", "failing_plugin.py").strip().split("\n")
    assert line.startswith(f"error: plugin failing_plugin.py cannot be imported: {kind} (")
    assert any("failing_plugin.py" in text for text in shown)


def test_a_plug_in_that_takes_a_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taking_plugin.py").write_text(f"from {__name__} import *\nclass A(Hammer): pass\nTOOLS['hammer'] = A\n")
    line = said(capsys, "--plugin", "taking_plugin.py")
    assert line.startswith("error: plugin taking_plugin.py: the name 'hammer' is taken by ") and line.count("\n") == 1


def test_a_plug_in_is_imported_twice_under_two_names() -> None:
    Path("more").mkdir()
    Path("more/twice_plugin.py").write_text(f"from {__name__} import *\nclass A(Hammer): pass\nTOOLS['a'] = A\n")
    import_plugin("more.twice_plugin")
    import_plugin("more/twice_plugin.py")
    assert issubclass(TOOLS["a"], Hammer)


def test_a_file_whose_name_another_module_has_is_refused() -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "same_plugin.py").write_text("")
    import_plugin("one/same_plugin.py")
    import_plugin("one/same_plugin.py")
    with pytest.raises(RegistryError, match=r"two/same_plugin.py .*module 'same_plugin' already .*one/.*: rename"):
        import_plugin("two/same_plugin.py")
    for name in ("json.py", "sys.py"):
        Path(name).write_text("")
        with pytest.raises(RegistryError, match=rf"{name} cannot be imported, as there is a module .*: rename yours"):
            import_plugin(name)
    Path("a.b.py").write_text("")
    with pytest.raises(RegistryError, match="a dot in its name"):
        import_plugin("a.b.py")


def test_plug_ins_of_a_file_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("plugin: mine.py\n")
    assert said(capsys, "--config", "a.yaml") == "error: a.yaml: plugin takes a list: plugin: [mine.py]\n"


def test_a_config_may_refuse_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class NailConfig(ToolConfig):
        name: str = "nail"
        into: str = ""  # what

        def __post_init__(self) -> None:
            if not self.into:
                raise ValueError("into must be given")

    TOOLS["nail"] = type("Nail", (Hammer,), {"Config": NailConfig})
    assert parse(Options, ["--tool", "nail", "--tool.into", "wall"]).tool == NailConfig(into="wall")
    assert said(capsys, "--tool", "nail") == "error: the command line: tool.into must be given\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "x"], "Error parsing --count: invalid literal for int() with base 10: 'x'"),
        (["--count"], "Missing value for argument '--count'. Expected 1 values."),
        (["more"], "Unrecognized options: more"),
    ],
)
def test_what_cannot_be_read_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *words) == f"error: the command line: {message} (--help lists all)\n"
