"""Files appear whole, and a folder has one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from dpvla import files
from dpvla.config import one_line
from dpvla.files import DirectoryInUseError, check_file, check_folder, one_writer, write_text, write_together

HOLD = """
import os, sys, time
from dpvla.files import one_writer
with one_writer(sys.argv[1]):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, mode: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), mode], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(DirectoryInUseError, match=f"process {process.pid} on .*choose another --out"):
            one_writer(tmp_path / "run").__enter__()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode", ["", "fork"])
def test_a_killed_process_holds_nothing_even_where_its_children_live_on(tmp_path: Path, mode: str) -> None:
    process = holder(tmp_path / "run", mode)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with one_writer(tmp_path / "run") as held:
            assert held.is_dir()
    finally:
        subprocess.run(["pkill", "-g", str(process.pid)], check=False)


def test_a_lock_is_gone_when_its_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on a machine that was switched off")
    with one_writer(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not [*tmp_path.iterdir()]


def test_who_waits_has_the_folder_when_the_other_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = holder(tmp_path / "run")
    threading.Timer(0.2, process.kill).start()
    with one_writer(tmp_path / "run", wait=True):
        assert process.wait() == -signal.SIGKILL
    assert f"is being written by process {process.pid} on " in capsys.readouterr().err


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear reader")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "letter")
    with pytest.raises(OSError):
        one_writer(tmp_path / "run").__enter__()
    assert (tmp_path / "letter").read_text() == "dear reader"


def test_one_process_may_take_its_own_folder_again(tmp_path: Path) -> None:
    with one_writer(tmp_path / "run"), one_writer(tmp_path / "run"):
        pass
    with one_writer(tmp_path / "run"):
        process = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "run"), ""], capture_output=True, text=True
        )
    assert "DirectoryInUseError" in process.stderr


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a file")
    with pytest.raises(FileExistsError, match=r"README\.md is a file, where a folder is to be written"):
        one_writer(tmp_path / "README.md").__enter__()


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (check_folder, check_file, lambda path: one_writer(path).__enter__()):
        with pytest.raises(FileNotFoundError, match="to write has an empty name: give one"):
            call("")
    assert not [*tmp_path.iterdir()]


def test_where_nothing_can_be_written_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path)
    check_folder(tmp_path / "new/deep")
    check_file(tmp_path / "new/deep/x.pkl")
    check_file(tmp_path / "file")
    for check, name, message in (
        (check_folder, "file", "file is a file, where a folder is to be written"),
        (check_folder, "file/x/y", "file/x/y: .*file is no folder"),
        (check_file, "file/x", "file/x: .*file is no folder"),
        (check_file, "", "is a folder, where a file is to be written"),
    ):
        with pytest.raises(OSError, match=message):
            check(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_another_user_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(PermissionError, match="is not writable for this user"):
        check_folder(tmp_path)
    with pytest.raises(PermissionError, match=r"cannot be made: .* is not writable for this user"):
        check_file(tmp_path / "new/x")


def test_what_a_killed_holder_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kill = (
        "import os, sys, dpvla.files as f; os.replace = lambda *_: os.kill(os.getpid(), 9); f.write_text(*sys.argv[1:])"
    )
    subprocess.run([sys.executable, "-c", kill, str(tmp_path / "a.json"), "text"], check=False)
    (left,) = tmp_path.iterdir()
    kept = [tmp_path / name for name in (".config.settings", ".a.json", "a.json.12345678.part", ".b.part")]
    for path in kept:
        path.touch()
    with one_writer(tmp_path):
        assert not left.exists() and all(path.exists() for path in kept)
        write_text(tmp_path / "a.json", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.json", *(p.name for p in kept)])


def test_a_lock_that_its_holder_removes_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = files._take, []

    def holder_goes(file: IO[str], directory: Path, wait: bool) -> None:
        take(file, directory, wait)
        taken.append(directory)
        if len(taken) < 3:  # the last holder removes what it has held, after this process has opened it
            (directory / ".lock").unlink()
            directory.rmdir()

    monkeypatch.setattr(files, "_take", holder_goes)
    with one_writer(tmp_path / "work"), (tmp_path / "work/.lock").open() as lock:
        assert len(taken) == 3 and lock.read().startswith("process ")
    (tmp_path / "work/.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"\.lock"):
        one_writer(tmp_path / "work").__enter__()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("moment", ["replace", "unlink", "fsync"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_files_that_belong_together_are_never_old_beside_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    def write(text: bytes) -> None:
        write_together({tmp_path / name: lambda file: file.write(text) for name in ("first", "second")})

    write(b"old")
    count = 0
    owner = Path if moment == "unlink" else os
    real = getattr(owner, moment)

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(owner, moment, stop)
        write(b"new")
    texts = [path.read_bytes() for path in sorted(tmp_path.iterdir()) if path.name in ("first", "second")]
    assert texts in ([b"old"] * 2, [b"old"], [b"new"], [b"new"] * 2)
    assert (tmp_path / "first").exists()
    write(b"new")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["first", "second"]


@pytest.mark.parametrize("call", ["pwrite", "truncate"])
def test_a_lock_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out/\.lock'"), one_writer(tmp_path / "out"):
        pass
    monkeypatch.undo()
    with one_writer(tmp_path / "out") as folder:
        assert folder == tmp_path / "out"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("8 requested and 0 written")])
def test_a_write_that_fails_names_its_file(error: OSError) -> None:
    with pytest.raises(OSError, match=r"some/file\.npy") as told, files.naming("some/file.npy"):
        raise error
    assert str(error.args[-1]) in str(told.value)


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with pytest.raises(IsADirectoryError, match="second is a folder"):
        write_together({tmp_path / name: lambda file: file.write(b"") for name in ("first", "second")})
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
    with pytest.raises(IsADirectoryError) as caught:
        (tmp_path / "second").open("w")
    assert "move the folder away" in one_line(caught.value)
