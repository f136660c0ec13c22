"""Groups of keys that a name chooses, plug-ins that add names, and keys that were called otherwise before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from dpvla.cli import parse
from dpvla.config import ConfigError, Count, OneOf, from_dict, to_dict
from dpvla.registry import RegistryError, import_plugin, look_up


@dataclass(frozen=True)
class Shape:
    """What all shapes have."""

    name: str  # square, circle, or one of a plug-in
    color: str = "red"  # its color


@dataclass(frozen=True)
class SquareConfig(Shape):
    """A square."""

    name: str = "square"  # square, circle, or one of a plug-in
    side: Count = 1  # its length


@dataclass(frozen=True)
class CircleConfig(Shape):
    """A circle."""

    name: str = "circle"  # square, circle, or one of a plug-in
    radius: Count = 2  # its radius


class Square:
    Config = SquareConfig


class Circle:
    Config = CircleConfig


SHAPES: dict[str, Any] = {"square": Square, "circle": Circle}


def in_full(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """``circle:5`` was how a circle's radius was given."""
    kind, _, radius = str(data.get("name", "")).partition(":")
    return {**data, "name": kind, "radius": int(radius)} if radius else data


@dataclass(frozen=True)
class Drawing:
    """A group with a choice inside."""

    RENAMED: ClassVar[Mapping[str, str]] = {"paint": "shape.color"}

    shape: Annotated[Shape, OneOf(SHAPES, "shape", in_full)] = field(default_factory=lambda: SquareConfig(side=9))
    width: int = 3  # of the line
    filled: bool = False  # or only its outline


@dataclass(frozen=True)
class Options:
    """A tool's options."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "old.side": "drawing.shape.side",
        "old.width": "drawing.width",
        "old.full": "drawing.filled",
    }

    drawing: Drawing = field(default_factory=Drawing)  # what to draw
    plugin: tuple[str, ...] = ()  # your modules


def shape(*words: str) -> Shape:
    return parse(Options, words).drawing.shape


def test_the_name_chooses_the_other_keys_in_files_and_on_the_command_line(tmp_path: Path) -> None:
    assert shape() == SquareConfig(side=9)
    assert shape("--drawing.shape.side", "4") == SquareConfig(side=4)
    assert shape("--drawing.shape.name", "circle", "--drawing.shape.radius", "7") == CircleConfig(radius=7)
    assert shape("--drawing.shape", "circle") == CircleConfig()
    (tmp_path / "a.yaml").write_text("drawing: {shape: {name: circle, radius: 5, color: blue}}")
    assert shape("--config", str(tmp_path / "a.yaml")) == CircleConfig(color="blue", radius=5)
    (tmp_path / "b.yaml").write_text("drawing: {shape: circle}")
    assert shape("--config", str(tmp_path / "b.yaml")) == CircleConfig()


def test_a_later_choice_keeps_the_keys_that_it_has_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("drawing: {shape: {name: circle, radius: 5, color: blue}}")
    (tmp_path / "b.yaml").write_text("drawing: {shape: {name: square, side: 2}}")
    files = ["--config", str(tmp_path / "a.yaml")]
    assert shape(*files, "--drawing.shape.name=square") == SquareConfig(color="blue", side=9)
    assert shape(*files, "--config", str(tmp_path / "b.yaml")) == SquareConfig(color="blue", side=2)
    (tmp_path / "c.yaml").write_text("drawing: {shape: {radius: 6}}")
    assert shape(*files, "--config", str(tmp_path / "c.yaml")) == CircleConfig(color="blue", radius=6)


@pytest.mark.parametrize("config", [SquareConfig("square", "green", 3), CircleConfig("circle", "green", 3)])
def test_a_choice_survives_the_way_to_a_mapping_and_back(config: Shape) -> None:
    options = Options(Drawing(config))
    assert from_dict(Options, to_dict(options), "x") == options


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shape": {"name": "cirle"}}, "unknown shape 'cirle'; nearest valid name: 'circle' .of square, circle; "),
        (
            {"shape": {"name": "circle", "side": 2}},
            "unknown key 'drawing.shape.side' of shape circle: it belongs to square$",
        ),
        ({"shape": {"name": "circle", "sid": 2}}, "unknown key 'drawing.shape.sid'; nearest valid name: 'drawing"),
        ({"shape": {"name": "circle", "radius": 0}}, "drawing.shape.radius must be at least 1"),
        ({"shape": 3}, "'drawing.shape' takes a group of keys, found 3"),
        ({"shape": {"name": 3}}, "drawing.shape.name must be a text"),
    ],
)
def test_what_the_choice_does_not_have_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Options, {"drawing": data}, "x")


def test_what_the_choice_does_not_have_is_refused_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--drawing.shape.name", "cirle"], ["--drawing.shape", "circle", "--drawing.shape.side", "2"]):
        with pytest.raises(SystemExit) as end:
            shape(*words)
        assert end.value.code == 2
    said = capsys.readouterr().err
    assert "unknown shape 'cirle'" in said
    assert "error: the command line: --drawing.shape.side belongs to --drawing.shape square\n" in said


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("--drawing.widht", "--drawing.width"), ("--drawing.shape.sidee", "--drawing.shape.side"), ("--x", "--plugin")],
)
def test_an_unknown_option_is_one_line_with_the_nearest(
    option: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([option, "3"], [f"{option}=3"]):
        with pytest.raises(SystemExit) as end:
            shape(*words)
        assert end.value.code == 2
        line = f"error: the command line: unknown option {option}; nearest valid name: "
        assert capsys.readouterr().err.startswith(line + (nearest if nearest != "--plugin" else ""))


def test_of_several_names_the_last_counts() -> None:
    assert shape("--drawing.shape", "circle", "--drawing.shape.name=square") == SquareConfig(side=9)


def test_the_help_is_that_of_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        shape("--drawing.shape", "circle", "--help")
    text = capsys.readouterr().out
    assert "--drawing.shape.radius" in text and "its radius" in text and "side" not in text
    assert "of the line" in text


def test_former_names_still_work_and_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shape("--old.side", "4") == SquareConfig(side=4)
    assert shape("--drawing.paint=blue") == SquareConfig(side=9, color="blue")
    assert "--old.side is now --drawing.shape.side" in capsys.readouterr().err
    assert parse(Options, ["--old.full"]).drawing.filled
    (tmp_path / "full.yaml").write_text("drawing: {filled: true}")
    assert not parse(Options, ["--config", str(tmp_path / "full.yaml"), "--old.no-full"]).drawing.filled
    (tmp_path / "a.yaml").write_text("old: {side: 4, width: 8}\ndrawing: {paint: blue}")
    assert parse(Options, ["--config", str(tmp_path / "a.yaml")]).drawing == Drawing(
        SquareConfig(side=4, color="blue"), 8
    )
    assert shape("--drawing.shape.name", "circle:5") == CircleConfig(radius=5)
    assert from_dict(Options, {"drawing": {"shape": "circle:6"}}, "x").drawing.shape == CircleConfig(radius=6)
    with pytest.raises(ConfigError, match=r"x: old\.width and drawing\.width are the same; give drawing\.width alone"):
        from_dict(Options, {"old": {"width": 1}, "drawing": {"width": 2}}, "x")
    with pytest.raises(ConfigError, match="unknown key 'old'"):
        from_dict(Options, {"old": {"depth": 1}}, "x")


def test_a_plug_in_adds_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(SHAPES, "triangle", raising=False)
    (tmp_path / "my_triangle.py").write_text(
        "from dataclasses import dataclass\n"
        "from tests.dpvla.test_choices import SHAPES, Shape\n"
        "@dataclass(frozen=True)\n"
        "class Config(Shape):\n"
        '    name: str = "triangle"  # it\n'
        "    height: int = 1  # its height\n"
        "class Triangle:\n"
        "    Config = Config\n"
        'SHAPES["triangle"] = Triangle\n'
    )
    made = shape("--plugin", "my_triangle", "--drawing.shape", "triangle", "--drawing.shape.height", "3")
    assert to_dict(made) == {"name": "triangle", "color": "red", "height": 3}
    monkeypatch.delitem(SHAPES, "triangle")
    import_plugin("json")  # a module that is there already
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "my_other.py").write_text(
        "from tests.dpvla.test_choices import SHAPES, Circle\nSHAPES['o'] = Circle\n"
    )
    (tmp_path / "a.yaml").write_text("plugin: [more/my_other.py]\ndrawing: {shape: {name: o, radius: 4}}")
    assert shape("--config", "a.yaml") == CircleConfig("o", radius=4)


def test_a_plug_in_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in (
        ("no_such_module", "there is no module 'no_such_module'"),
        ("x/y.py", "x/y.py does not exist"),
    ):
        with pytest.raises(SystemExit) as end:
            shape("--plugin", name)
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(RegistryError, match=r"plugin my_broken cannot be .*: ModuleNotFoundError .*not_installed_any"):
        import_plugin("my_broken")


def test_a_name_may_stand_for_a_class_or_for_where_it_is() -> None:
    assert look_up({"a": "collections:OrderedDict"}, "a", "thing").__name__ == "OrderedDict"
    with pytest.raises(
        RegistryError, match="thing 'a' is said to be collections:Nothing, but collections has no Nothing"
    ):
        look_up({"a": "collections:Nothing"}, "a", "thing")
