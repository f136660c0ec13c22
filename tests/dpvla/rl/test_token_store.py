"""The token cache on disk: written once, whatever interrupts it, and never read as what it is not."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dpvla import kept_open
from dpvla.config import ConfigError
from dpvla.encoders.config import EncoderConfig
from dpvla.files import DirectoryInUseError
from dpvla.models import DPVLA
from dpvla.rl import token_files, token_store
from dpvla.rl.config import TokensConfig
from dpvla.rl.token_cache import TokenCache
from dpvla.rl.token_files import DESCRIPTION, MANIFEST, TokenCacheError, TokenFiles, shard_path
from dpvla.rl.token_store import open_tokens
from tests.gpu.pretended import PretendedGPU, value
from tests.gpu.tiny_driving import make_policy, training_on
from tests.other_process import locked_elsewhere
from tests.paths import OPEN_FILES, ROOT
from tests.scenes_in_memory import ScenesInMemory

PORTION = 2
SHARDS = 3  # of the six scenes of ``make_policy``


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_store, "SHARD_BYTES", 1.0)


@pytest.fixture(scope="module")
def made() -> tuple[DPVLA, ScenesInMemory]:
    return make_policy()


def opened(
    policy: DPVLA, source: ScenesInMemory, folder: Path, agreed: bool = False, portion: int = PORTION, **more: Any
) -> TokenFiles:
    config = TokensConfig(directory=str(folder), **more)
    files = open_tokens(config, policy, source, Accelerator(cpu=True), portion, agreed)
    assert files is not None
    return files


@contextmanager
def counting(policy: DPVLA) -> Iterator[list[int]]:
    """Sizes of the batches that the encoder is given."""
    sizes: list[int] = []
    hook = policy.encoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        hook.remove()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard_*"))}


@pytest.mark.parametrize("encoder", ["tiny", "tiny_florence"])
def test_weights_held_in_bf16_have_the_tokens_of_those_that_autocast_makes_bf16(tmp_path: Path, encoder: str) -> None:
    """A second round on merged adapters holds nothing in bf16, since it saves the model, and needs no other tokens."""
    policy, source = make_policy(encoder)
    policy.precision = "bf16"
    opened(policy, source, tmp_path)
    policy.requires_grad_(False)
    policy.hold_frozen()
    assert any(tensor.dtype == torch.bfloat16 for tensor in policy.encoder.state_dict().values())
    with counting(policy) as sizes:
        opened(policy, source, tmp_path)
    assert sum(sizes) == token_store.PROBED


@pytest.mark.parametrize("encoder", ["tiny", "tiny_florence"])
def test_tokens_come_back_as_bfloat16_of_what_the_encoder_gives(tmp_path: Path, encoder: str) -> None:
    policy, source = make_policy(encoder)
    files = opened(policy, source, tmp_path, verify=True)
    assert len(contents(tmp_path)) == SHARDS
    found = files.read(files.rows([source.tokens[i] for i in (5, 0, 3)]))
    with torch.no_grad():
        expected = policy.encode(source.batch([5, 0, 3]))
    assert found.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(found.tokens.float(), expected.tokens, rtol=2**-8, atol=1e-6)
    assert (found.mask is None) == (expected.mask is None)
    assert found.mask is None or (expected.mask is not None and torch.equal(found.mask, expected.mask))
    for name in ("command", "ego_status", "history"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="there is no list of open files")
def test_a_shard_that_is_read_takes_one_open_file_and_the_last_read_ones_alone(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_open, "most_open", lambda: 2)
    files = opened(*made, tmp_path)
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(2):
        assert len(files.read(range(6))) == 6
    assert len(list(OPEN_FILES.iterdir())) == before + 2 < before + SHARDS


def test_a_later_run_encodes_three_scenes_to_see_that_they_are_the_same_images(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], capsys: pytest.CaptureFixture[str]
) -> None:
    policy, source = made
    opened(policy, source, tmp_path)
    said = capsys.readouterr().out
    assert f"tokens: encoding 6 scenes once into {tmp_path}: 0.06 MB, about 0.0 minutes" in said
    with counting(policy) as sizes:
        opened(policy, source, tmp_path)
    assert sizes == [3]
    assert capsys.readouterr().out == f"tokens: {tmp_path} holds 6 scenes, 0.06 MB\n"
    with pytest.raises(TokenCacheError, match="is of other images than are found now: scene scene0000 differs"):
        opened(policy, _Other(source, "images"), tmp_path)
    with pytest.raises(TokenCacheError, match="is of other data than are found now: scene scene0000 differs"):
        opened(policy, _Other(source, "ego_status"), tmp_path)


class _Other(ScenesInMemory):
    """The same scenes with another value of one field."""

    def __init__(self, source: ScenesInMemory, name: str) -> None:
        values = getattr(source._all, name)
        self._all = replace(source._all, **{name: values.flip(0)})


class _Some(ScenesInMemory):
    """Some scenes of another source, under given names."""

    def __init__(self, source: ScenesInMemory, rows: list[int], names: tuple[str, ...] | None = None) -> None:
        chosen = source._all.select(torch.tensor(rows))
        self._all = replace(chosen, tokens=names or chosen.tokens)


def test_a_part_of_the_scenes_can_be_read_and_others_are_refused(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]
) -> None:
    policy, source = made
    opened(policy, source, tmp_path)
    part = _Some(source, [4, 1])
    files = opened(policy, part, tmp_path)
    assert torch.equal(files.read(files.rows(part.tokens)).ego_status, source.ego_status()[[4, 1]])
    with pytest.raises(TokenCacheError, match="is of another split: of 2 scenes it has not 1, first elsewhere"):
        opened(policy, _Some(source, [4, 1], ("scene0004", "elsewhere")), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", r"\(other encoder weights\)"),
        ("precision", r"\(precision 'no' instead of 'bf16'\)"),
        ("size", r"encoder.image_width 96 instead of 192"),
        ("encoder", r"encoder.name 'timm' instead of 'florence'"),
    ],
)
def test_tokens_of_another_encoder_are_refused_with_what_differs(tmp_path: Path, change: str, message: str) -> None:
    policy, source = make_policy()
    opened(policy, source, tmp_path)
    if change == "encoder":
        policy, source = make_policy("tiny_florence")
    elif change == "size":
        assert isinstance(policy.config.encoder, EncoderConfig)
        encoder = replace(policy.config.encoder, image_width=192)
        policy = DPVLA.from_config(replace(policy.config, encoder=encoder))
        source = ScenesInMemory(6, encoder.sensors)
    elif change == "weights":
        with torch.no_grad():
            next(policy.encoder.parameters()).view(-1)[0] += 1e-3
    else:
        policy.precision = "bf16"
    with pytest.raises(TokenCacheError, match=message) as refused:
        opened(policy, source, tmp_path)
    assert "\n" not in str(refused.value) and "choose another --tokens.directory" in str(refused.value)


@pytest.mark.parametrize("kill_at", range(SHARDS + 2))
def test_a_run_that_is_killed_at_any_moment_keeps_its_shards(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], kill_at: int
) -> None:
    """At the description, at each shard, and before the manifest."""
    policy, source = made
    opened(policy, source, tmp_path / "straight")
    writes = 0

    def killed(*given: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > kill_at:
            raise KeyboardInterrupt
        plain(*given)

    import dpvla.files

    plain, folder = dpvla.files.write_atomically, tmp_path / "broken"
    with (
        patch.object(dpvla.files, "write_atomically", killed),
        patch.object(token_files, "write_atomically", killed),
        pytest.raises(KeyboardInterrupt),
    ):
        opened(policy, source, folder)
    assert len(contents(folder)) == max(0, kill_at - 1) and not (folder / MANIFEST).exists()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard_*")}
    (folder / ".shard_00002.safetensors.abc").touch()  # what a kill leaves, when nothing is cleaned up
    with counting(policy) as sizes:
        opened(policy, source, folder, verify=True)
    left = SHARDS - max(0, kill_at - 1)
    measured = [1, PORTION] if left else []
    assert sizes == measured + [PORTION] * left
    assert contents(folder) == contents(tmp_path / "straight")
    assert not left or not [*folder.glob(".shard_*")]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_an_unfinished_cache_of_other_scenes_is_refused(tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]) -> None:
    policy, source = made
    opened(policy, source, tmp_path)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(TokenCacheError, match=r"unfinished token cache of 6 other scenes \(here 2\): finish it with"):
        opened(policy, _Some(source, [4, 1]), tmp_path)


def test_a_flipped_bit_is_found_when_its_scene_is_read_and_mended_by_deleting_the_shard(tmp_path: Path) -> None:
    policy, source = make_policy("tiny_florence")
    others = _Some(source, [0, 1, 2])
    first = opened(policy, source, tmp_path)._shards[1]
    whole, path = contents(tmp_path), shard_path(tmp_path, 1)
    message = f"{path.name} is damaged \\(scene {source.tokens[3]} has another checksum\\): delete it, and the same"
    sizes_of = {"BF16": 2, "BOOL": 1, "I64": 8, "F32": 4}
    for name, (dtype, shape, start) in first._header.items():
        row = sizes_of[dtype] * math.prod(shape[1:])
        content = bytearray(whole[path.name])
        content[start + row] ^= 1  # in the shard's second scene
        path.write_bytes(content)
        files = opened(policy, others, tmp_path)  # which has not that scene
        with pytest.raises(TokenCacheError, match=message):
            files.read([5, 3])
        assert name in ("tokens", "mask", "command", "ego_status", "history", "checksum")
    with pytest.raises(TokenCacheError, match=message):
        opened(policy, others, tmp_path, verify=True)
    path.unlink()
    with counting(policy) as sizes:
        opened(policy, source, tmp_path)
    assert sizes == [1, PORTION, PORTION] and contents(tmp_path) == whole


def test_large_batches_are_read_by_several_threads(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = opened(*made, tmp_path)
    rows = [5, 0, 3, 3, 1, 2, 4]
    expected = files.read(rows)
    monkeypatch.setattr(token_files, "WORTH_THREADS", 0)
    found = files.read(rows)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("tokens", "command", "history"))
    path = shard_path(tmp_path, 2)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TokenCacheError, match=f"{path.name} is damaged"):
        opened(*made, tmp_path).read([0, 1, 4, 5])


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], keep: int) -> None:
    policy, source = made
    opened(policy, source, tmp_path)
    path = shard_path(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TokenCacheError, match=f"{path.name} is damaged .*: delete it"):
        opened(policy, source, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scenes_per_shard": 0},
        {"scenes_per_shard": "2"},
        {"scenes_per_shard": 2.0},
        {"maker": 3},
        {"maker": {"encoder": 3}},
        {"scenes": 5},
        {"scenes": [[1], [2]]},
        {"scenes": ["a", "a"]},
        {"tokens": "ab"},
    ],
)
def test_a_description_of_wrong_types_is_refused_in_one_line(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], change: dict[str, object]
) -> None:
    opened(*made, tmp_path)
    path = tmp_path / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenCacheError, match=f"^{path}: [a-z_]+.*; choose another folder$"):
        opened(*made, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"of": 3}', '{"shards": 3}', '{"shards": {"../../x": 5}}'])
def test_a_manifest_of_something_else_is_named_and_made_again(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], content: str
) -> None:
    opened(*made, tmp_path)
    path = tmp_path / MANIFEST
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | json.loads(content)) if content.startswith("{") else content)
    with pytest.raises(TokenCacheError, match=f"^{path}.*: delete it, and the same command makes it again$"):
        opened(*made, tmp_path)
    path.unlink()
    opened(*made, tmp_path)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("command"),
        lambda header: header["command"].update(dtype="F64"),
        lambda header: header["tokens"].update(shape=[2, 10**6, 10**6]),
        lambda header: header["tokens"].update(shape="abc"),
        lambda header: header["ego_status"].update(data_offsets=header["history"]["data_offsets"]),
        lambda header: header["command"].update(data_offsets=[-16, 0]),
    ],
)
def test_a_shard_whose_header_is_wrong_is_named(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], change: Callable[[dict[str, Any]], object]
) -> None:
    opened(*made, tmp_path)
    path = shard_path(tmp_path, 1)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    with pytest.raises(TokenCacheError, match=f"^{path} is damaged .*: delete it, and the same command makes it again"):
        opened(*made, tmp_path)


def test_a_shard_in_the_place_of_another_is_refused(tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]) -> None:
    opened(*made, tmp_path)
    shard_path(tmp_path, 1).write_bytes(shard_path(tmp_path, 2).read_bytes())
    with pytest.raises(TokenCacheError, match=f"^{shard_path(tmp_path, 1)} is a shard of another token cache, or anot"):
        opened(*made, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], content: str
) -> None:
    (tmp_path / DESCRIPTION).write_text(content)
    with pytest.raises(TokenCacheError, match=DESCRIPTION):
        opened(*made, tmp_path)
    assert (tmp_path / DESCRIPTION).read_text() == content and len([*tmp_path.iterdir()]) == 1


def test_more_than_the_limit_is_written_when_it_was_agreed_to(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"takes 0.06 MB of disk, more than tokens.limit_gb = 1e-09: give --yes"):
        opened(*made, tmp_path / "new", limit_gb=1e-9)
    assert "encoding 6 scenes once" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    opened(*made, tmp_path / "new", agreed=True, limit_gb=1e-9)


def test_too_little_room_is_found_out_before_anything_is_written(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]
) -> None:
    usage = type("Usage", (), {"free": 10**9})
    with (
        patch("shutil.disk_usage", lambda path: usage),
        pytest.raises(OSError, match=r"needs 0.06 MB and 1.00 GB to spare, 1.00 GB are free at .*: nothing is written"),
    ):
        opened(*made, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_stops_with_one_line_and_goes_on_later(
    tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]
) -> None:
    policy, source = made
    with full_after(1), pytest.raises(OSError, match=r"cannot write shard 1 of 3 .*\(No space left on device\).*kept"):
        opened(policy, source, tmp_path)
    assert len(contents(tmp_path)) == 1 and not [*tmp_path.glob(".shard*")]
    with counting(policy) as sizes:
        opened(policy, source, tmp_path, verify=True)
    assert sizes == [1, PORTION, PORTION, PORTION]


@contextmanager
def full_after(shards: int) -> Iterator[None]:
    """A disk with room for so many shards: the next one is cut off."""
    plain, written = token_files.write_atomically, 0

    def write(path: Path, fill: Any) -> None:
        nonlocal written
        written += 1

        def cut_off(file: Any) -> None:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        plain(path, cut_off if written > shards else fill)

    with patch.object(token_files, "write_atomically", write):
        yield


def test_one_run_writes_at_a_time(tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]) -> None:
    with (
        locked_elsewhere(tmp_path),
        pytest.raises(DirectoryInUseError, match=r"being written by process \d+ .*choose another --tokens.directory"),
    ):
        opened(*made, tmp_path)


def test_batches_from_disk_are_ready_in_pinned_memory_and_wait_for_nothing(tmp_path: Path) -> None:
    policy, source = make_policy("tiny_florence")
    files = opened(policy, source, tmp_path)
    expected = files.read([4, 0])
    gpu = PretendedGPU()
    with training_on(gpu) as accelerator, torch.no_grad():
        policy.to(gpu.device)
        cache = TokenCache(policy, source, torch.tensor([4, 2, 0]), accelerator, 2, limit_gb=0.0, files=files)
        gpu.forget()
        contexts = cache.batches([[0, 2], [1]])
        context = next(contexts)
        assert context.device == gpu.device and gpu.copies_in == 5
        assert not gpu.syncs and not gpu.pageable and not gpu.unready, (gpu.syncs, gpu.pageable, gpu.unready)
        assert cache.encodings == 0 and not cache.encodes_batches
        assert_same(value(context.tokens), expected.tokens)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found, expected)


def test_two_processes_write_one_cache_that_one_reads(tmp_path: Path, made: tuple[DPVLA, ScenesInMemory]) -> None:
    """A disk that is full for one of them stops both; then both go on. The script says what each encoded."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    script = str(ROOT / "tests" / "dpvla" / "rl" / "two_writers.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, str(tmp_path)],
            env=os.environ | environment | {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=500)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-3000:]
    policy, source = made
    assert len(contents(tmp_path)) == SHARDS
    with counting(policy) as sizes:
        opened(policy, source, tmp_path, verify=True)
    assert sizes == [3]
    opened(policy, source, tmp_path / "alone")
    assert contents(tmp_path) == contents(tmp_path / "alone")
