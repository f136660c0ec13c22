"""Lists and filters of strangers: refused in one line that names file or key, in bounded time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_bridge.splits import token_list
from navsim_bridge.splits.scene_filter import SceneFilter, SplitError, load_split

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
TEXTS = [
    ("deep.yaml", "tokens: " + "[" * 100_000),
    ("aliases.yaml", ALIASES),
    ("itself.yaml", "tokens: &a [*a]\n"),
    ("twice.yaml", "max_scenes: 1\nmax_scenes: 2\n"),
    ("tag.yaml", "tokens: !!python/object/apply:os.system [echo]\n"),
    ("date.yaml", "tokens: 2021-99-99\n"),
    ("digits.yaml", "max_scenes: -" + "9" * 10_000),
    ("hexadecimal.yaml", "max_scenes: -0x" + "f" * 10_000),
    ("key.yaml", "k" * 100_000 + ": 1\n"),
    ("mapping_as_key.yaml", "? {a: 1}\n: 1\n"),
    ("long.yaml", f"tokens: [{'a' * 100_000}]\n"),
    ("nested.yaml", "tokens: [[a]]\n"),
    ("nul.yaml", 'tokens: ["a\\0b"]\n'),
    ("up.yaml", "log_names: [../../secret]\n"),
    ("absolute.yaml", "log_names: [/etc/passwd]\n"),
    ("windows.yaml", "log_names: ['..\\secret']\n"),
    ("empty_name.yaml", "log_names: ['']\n"),
    ("dots.yaml", "tokens: ['..']\n"),
    ("folder.yaml", "data_split: ../mini\n"),
    ("filter.yaml", "data_split: mini\nscene_filter: ../../x\n"),
    ("defaults.yaml", "defaults: " + "[" * 50 + "]" * 50 + "\n"),
    ("nul.csv", "token\na\0b\n"),
    ("up.csv", "token,log_name\nab,../secret\n"),
    ("folders.csv", "token,data_split\nab,../mini\n"),
    ("columns.csv", "token,token\nab,cd\n"),
    ("header.csv", "x" * 100_000 + "\nab\n"),
    ("long.csv", "token\n" + "a" * 100_000 + "\n"),
    ("empty.csv", "\n\n\n"),
]


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=[name for name, _ in TEXTS])
def test_a_hostile_list_is_refused_in_one_short_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "navsim_logs/mini").mkdir(parents=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(SplitError) as refused:
        load_split(tmp_path / name, tmp_path)
    said = str(refused.value)
    assert name in said and len(said) < 800 and "\n" not in said


@pytest.mark.parametrize("suffix", [".csv", ".yaml", ".parquet"])
def test_what_is_no_file_is_not_waited_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="no split file"):
        load_split(path, tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".yaml"])
def test_a_list_that_is_far_too_long_is_not_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SplitError, match=rf"list\{suffix} has more than {token_list.MOST_BYTES} bytes"):
        load_split(path, tmp_path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".yaml"]), led=st.booleans())
def test_any_bytes_are_a_split_or_refused(
    content: bytes, suffix: str, led: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "any_bytes"
    (root / "navsim_logs/mini").mkdir(parents=True, exist_ok=True)
    path = root / f"x{suffix}"
    path.write_bytes((b"token\n" if suffix == ".csv" else b"tokens:\n- ") * led + content)
    try:
        split = load_split(path, root)
    except SplitError:
        return
    assert isinstance(split.scene_filter, SceneFilter)


def test_a_list_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "navsim_logs/mini").mkdir(parents=True)
    for name, text in (("a.csv", "token\nab\n"), ("b.yaml", "tokens: [ab]\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_split(tmp_path / name, tmp_path).scene_filter.tokens == ("ab",)
