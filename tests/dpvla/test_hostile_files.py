"""Files of strangers: what is read of them is bounded, plain and where it belongs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest

from dpvla.config import Range, one_line
from dpvla.files import FileError, inside, open_regular, read_bytes, read_json, read_text, read_yaml, short
from dpvla.manifest import MANIFEST, ManifestError, check_manifest, write_manifest
from dpvla.schema import checked


def test_a_fifo_a_device_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, kind in ((tmp_path / "fifo", "FIFO"), (tmp_path / "zero", "device"), (tmp_path, "folder")):
        with pytest.raises(FileError, match=f"{path} is a {kind}"):
            open_regular(path)


def test_a_file_larger_than_it_can_be_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="more than 100 bytes"):
        read_bytes(tmp_path / "sparse", 100)
    assert read_bytes(__file__, 2**20) == Path(__file__).read_bytes()


def test_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"{\xff}")
    with pytest.raises(FileError, match=r"x\.json is no UTF-8 text \(byte 1\)"):
        read_text(tmp_path / "x.json")


def test_names_in_errors_do_not_talk_to_the_terminal() -> None:
    error = FileNotFoundError(2, "No such file or directory", "a\nerror: b\x1b[2J\u202e\x07c\udcff")
    assert one_line(error) == r"a error: b\x1b[2J\u202e\x07c\udcff: No such file or directory"
    long = one_line(FileNotFoundError(2, "No such file or directory", "a" * 10**6))
    assert len(long) < 1000 and long.startswith("aaa") and long.endswith("aaa: No such file or directory")
    assert one_line(ValueError("länger, 東京 'x'")) == "länger, 東京 'x'", "what can be read stays as it is"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../b", "/x", "a\\b", "C:x", "a\0b", "x" * 5000, None, 3, ["a"]]
)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(FileError, match=r"no file name|leads out"):
        inside(tmp_path, name)


def test_a_link_out_of_its_folder_is_followed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").write_text("")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(FileError, match="link that leads out"):
        inside(tmp_path / "folder", "link")
    assert inside(tmp_path / "folder", "link", follow=True).read_text() == ""
    assert inside(tmp_path / "folder", "a/b") == tmp_path / "folder" / "a" / "b"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[1]", "JSON object, found a list"),
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ' * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
    ],
)  # fmt: skip
def test_json_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FileError, match=f"x.json .*{reason}"):
        read_json(tmp_path / "x.json")


BOMB = "a: &a [1, 1]\n" + "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '*a'] * 10)}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "key 'c' stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "constructor for the tag"),
        ("a: &a [*a]", "contains itself"),
        (BOMB, "aliases repeat too much"),
        ("[" * 100_000, "not valid YAML"),
        ("a: " + "{b: " * 1000 + "}" * 1000, "nested too deep"),
        ("- " * 100_000, "nested too deep"),
        ("? " * 100_000, "nested too deep"),
        ("\n".join(" " * depth + "a:" for depth in range(1000)), "nested too deep"),
        ("a: 2001-99-99", "not valid YAML"),
        ("? [1, 2]\n: 3", "unhashable"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(FileError, match=f"x.yaml .*{reason}"):
        read_yaml(tmp_path / "x.yaml")


def test_yaml_takes_no_number_for_another(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("[1:30, 010, 1:30.5, 1, -2, 1_000, 0x10, 1.5, 1.0e-5, .5, 0]")
    assert read_yaml(tmp_path / "x.yaml") == ["1:30", "010", "1:30.5", 1, -2, 1000, 16, 1.5, 1e-5, 0.5, 0]
    (tmp_path / "x.yaml").write_text("".join(f"- {{a: [{number}]}}\n" for number in range(200)))
    assert read_yaml(tmp_path / "x.yaml") == [{"a": [number]} for number in range(200)]


def test_what_is_found_is_shown_short_however_large_it_is() -> None:
    nested: Any = "x"
    for _ in range(60):
        nested = [nested, nested]
    itself: list[Any] = []
    itself.append(itself)
    for value in (nested, itself, "x" * 10**7, 10**100_000, {i: i for i in range(10**5)}, [10**100_000]):
        assert len(short(value)) <= 201
    assert short(10**100_000) == "<a whole number of 332193 bits>"


class Optional(TypedDict, total=False):
    note: str


class Inner(TypedDict):
    name: Literal["a", "b"]
    sizes: list[Annotated[int, Range(least=1)]]
    pair: tuple[int, float]


class Outer(Optional):
    inner: Inner
    by_name: dict[str, Inner]
    perhaps: float | None


INNER = {"name": "a", "sizes": [1, 2], "pair": [1, 2.5]}
GOOD = {"inner": INNER, "by_name": {"x": INNER}, "perhaps": None, "of a later version": 1}


def test_what_fits_its_schema_is_given_back_as_it_is() -> None:
    assert checked(GOOD, Outer, "f.json") is GOOD
    assert checked({**GOOD, "note": "n", "perhaps": 1}, Outer, "f.json")["note"] == "n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inner": None}, "inner: expected a mapping, found None"),
        ({"inner": {**INNER, "name": "c"}}, "inner.name: expected one of 'a', 'b', found 'c'"),
        ({"inner": {**INNER, "sizes": [1, 0]}}, r"inner.sizes\[1\]: expected a number at least 1, found 0"),
        ({"inner": {**INNER, "sizes": [True]}}, r"inner.sizes\[0\]: expected a whole number, found True"),
        ({"inner": {**INNER, "sizes": "12"}}, "inner.sizes: expected a list, found '12'"),
        ({"inner": {**INNER, "pair": [1]}}, "inner.pair: expected a list of 2, found 1 values"),
        ({"inner": {**INNER, "pair": [1, 10**400]}}, r"inner.pair\[1\]: expected a number"),
        ({"by_name": {"x": {}}}, "by_name.x.name: is missing"),
        ({"by_name": {3: INNER}}, "by_name: expected texts as keys, found 3"),
        ({"perhaps": "1"}, "perhaps: expected a number or null, found '1'"),
        ({"note": 5}, "note: expected a text, found 5"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named_with_its_whole_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(FileError, match=f"f.json: {says}"):
        checked({**GOOD, **change}, Outer, "f.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a").write_bytes(bytes(range(100)))
    (tmp_path / "b").write_bytes(b"b")
    write_manifest(tmp_path)
    return tmp_path


def test_a_whole_folder_agrees_with_its_manifest_and_one_without_says_so(folder: Path) -> None:
    assert check_manifest(folder)
    assert check_manifest(folder, ["b"])
    (folder / "another").write_text("of a user")
    assert check_manifest(folder)
    (folder / MANIFEST).unlink()
    assert not check_manifest(folder)


@pytest.mark.parametrize("name", ["part/a", "b"])
def test_a_missing_a_cut_and_a_changed_file_are_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for changed, reason in (
        (content[:-1], "is damaged, "),
        (bytes([content[0] ^ 1]) + content[1:], "another checksum"),
    ):
        (folder / name).write_bytes(changed)
        with pytest.raises(ManifestError, match=f"{folder / name} .*{reason}"):
            check_manifest(folder)
    (folder / name).unlink()
    with pytest.raises(ManifestError, match=f"{folder / name} is missing"):
        check_manifest(folder)


def test_a_file_that_the_manifest_does_not_list_is_not_read(folder: Path) -> None:
    (folder / "foreign").write_text("")
    with pytest.raises(ManifestError, match=r"foreign is of another origin.* does not list it"):
        check_manifest(folder, ["foreign"])


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    for text in (
        "",
        "{}",
        '{"files": {"b": {"bytes": -1, "sha256": ""}}}',
        '{"files": {"../b": {"bytes": 1, "sha256": ""}}}',
    ):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(FileError, match=str(folder)):
            check_manifest(folder)
