"""A case of the campaign: what is broken in a sample, what is called on it, and how that ends."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dpvla.manifest import MANIFEST
from tests.faults.server import Ended, Job, Server

Class = Literal["clear", "accepted", "unclear", "traceback", "silent", "hang", "crash"]
CLASSES: tuple[Class, ...] = ("clear", "accepted", "unclear", "traceback", "silent", "hang", "crash")
LONGEST_LINE = 1000
"""Characters of an error."""
VOLATILE = {
    "provenance", "begun_with", "made_with", "resumed", "stamp", "seconds", "updates_per_s", "seed_updates_per_s",
    "sha256_of_this_file",
}  # fmt: skip
"""Keys of side files whose values tell when and how something was made, not what."""

Mutate = Callable[[Path], object]
"""Breaks something below the folder of a case."""


def as_typed(line: str) -> tuple[str, ...]:
    """The words of a command line without quotes."""
    return tuple(line.split())


@dataclass(frozen=True)
class Call:
    """A call of a tool on part of the samples."""

    tool: str
    argv: tuple[str, ...]
    needs: tuple[str, ...]  # patterns of what is copied from the samples into the folder it is called in
    results: tuple[str, ...]  # patterns of what it computes; "-": what it says
    writes: tuple[str, ...] = ()  # patterns of what else it may write
    before: str = ""  # see ``Job``
    cpu_s: float = 60.0

    @property
    def module(self) -> str:
        """Where its ``main`` is: a tool's, or one that is named in full."""
        return self.tool if "." in self.tool else f"tools.{self.tool}"


@dataclass(frozen=True)
class Case:
    """One mutation."""

    group: str
    name: str
    call: Call
    mutate: Mutate
    words: tuple[str, ...]  # one of them stands in a clear error: file or key
    accepted: str = ""  # why exit status 0 is right, where the format cannot tell
    options: tuple[str, ...] = ()  # further words of the command line

    @property
    def title(self) -> str:
        """As ``--case`` takes it."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    title: str
    kind: Class
    why: str
    said: str  # the error, or the end of what was said
    command: str
    cpu_s: float = 0.0


@dataclass
class Bench:
    """Where cases are run: samples, a scratch folder, a server; and what calls give on pristine samples."""

    samples: Path
    scratch: Path
    server: Server
    keep: bool = False  # folders of cases stay
    _pristine: dict[tuple[Call, tuple[str, ...]], dict[str, str] | None] = field(default_factory=dict)

    def run(self, case: Case) -> Outcome:
        """Break, call, look."""
        place = self.folder(case.call, re.sub(r"\W+", "-", case.title)[:150])
        command = f"python tools/{case.call.tool}.py {' '.join((*case.call.argv, *case.options))}"
        try:
            case.mutate(place)
            before = _inventory(place, case.call)
            ended, out, err = self._call(case.call, place, case.options)
            strange = _differences(before, _inventory(place, case.call))
            results = results_of(place, case.call, out) if ended.status == 0 else {}
            kind, why = classify(ended, err, case.words)
            if strange:
                kind, why = "silent", f"touched what is not its own: {strange[0]}"
            elif kind == "silent":
                if "; they are scored nevertheless, and counted" in err:
                    kind, why = "accepted", "it is odd, which is said and counted"
                elif case.accepted:
                    kind, why = "accepted", case.accepted
                elif results == self.pristine(case.call):
                    kind, why = "accepted", "the result is that of the pristine sample, bit for bit"
            return Outcome(case.title, kind, why, (_errors(err) or [err[-600:] or out[-300:]])[0][:600], command,
                           ended.cpu_s)  # fmt: skip
        finally:
            if not self.keep:
                remove(place.parent)

    def pristine(self, call: Call, options: tuple[str, ...] = ()) -> dict[str, str]:
        """What a call gives on samples that nobody broke; raises AssertionError where it fails."""
        if (call, options) not in self._pristine:
            place = self.folder(call, f"pristine-{abs(hash((call, options)))}")
            ended, out, err = self._call(call, place, options)
            assert ended.status == 0, f"{call} fails on pristine samples: {ended}\n{err[-3000:]}"
            found = results_of(place, call, out)
            assert found, f"{call} leaves nothing that matches {call.results}"
            self._pristine[call, options] = found
            remove(place.parent)
        return self._pristine[call, options] or {}

    def folder(self, call: Call, name: str) -> Path:
        """The needed parts of the samples, in a folder called ``place`` below one of the case's own."""
        own = self.scratch / name
        remove(own)
        place = own / "place"
        place.mkdir(parents=True)
        for pattern in call.needs:
            source_pattern, _, target = pattern.partition(" as ")
            found = sorted(self.samples.glob(source_pattern))
            assert found, f"no sample matches {pattern}"
            for source in found:
                copy(source, place / (target or source.relative_to(self.samples)))
        return place

    def _call(self, call: Call, place: Path, options: tuple[str, ...]) -> tuple[Ended, str, str]:
        said = place.parent / "said"
        job = Job(call.module, (*call.argv, *options), str(place), str(said), call.cpu_s, call.before)
        ended = self.server.run(job)
        out, err = (Path(f"{said}{end}").read_text(errors="replace") for end in ("", ".err"))
        return ended, out, err


def classify(ended: Ended, err: str, words: Sequence[str]) -> tuple[Class, str]:
    """Class of an ended call by its status and error stream, and why it is not clear."""
    if ended.hung is not None:
        return "hang", ended.hung
    if ended.signal is not None:
        return "crash", f"signal {ended.signal}"
    if "Traceback (most recent call last)" in err:
        return "traceback", err.strip().splitlines()[-1][:300]
    if ended.status == 0:
        return "silent", "exit status 0"
    if ended.left:
        return "unclear", f"left {ended.left} processes behind"
    errors = _errors(err)
    if len(errors) != 1:
        return "unclear", f"{len(errors)} lines begin with error:"
    if len(errors[0]) > LONGEST_LINE:
        return "unclear", f"an error of {len(errors[0])} characters"
    if not any(word in errors[0] for word in words):
        return "unclear", f"names none of {', '.join(words)}"
    return "clear", ""


def _errors(err: str) -> list[str]:
    return [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def results_of(place: Path, call: Call, out: str) -> dict[str, str]:
    """Digests of what a call computed, without what tells when and how."""
    found = {"-": hashlib.sha256(out.encode()).hexdigest()} if "-" in call.results else {}
    for pattern in call.results:
        if pattern == "-":
            continue
        paths = sorted(path for path in place.glob(pattern) if path.is_file() and path.name != ".lock")
        for number, path in enumerate(paths):  # not by name, which may tell what it was made from
            found[f"{pattern} {number}"] = hashlib.sha256(content_of(path, place)).hexdigest()
    return found


def content_of(path: Path, place: Path) -> bytes:
    """A file's content; of side files what is computed alone, wherever the folder of the case is."""
    return _computed(path).replace(str(place).encode(), b"")


def _computed(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.csv":
        rows = list(csv.DictReader(content.decode().splitlines()))
        return json.dumps(
            [{k: v for k, v in row.items() if not k.startswith("speed/") and not k.endswith("seconds")} for row in rows]
        ).encode()
    if path.suffix == ".scenes":
        return _scenes(content)
    if path.name == MANIFEST:
        return _manifest(content)
    if path.suffix == ".json":
        return json.dumps(_steady(json.loads(content)), sort_keys=True).encode()
    if path.suffix in (".yaml", ".yml"):
        return json.dumps(_steady(yaml.safe_load(content)), sort_keys=True, default=str).encode()
    return content


def _scenes(content: bytes) -> bytes:
    """Of a metric cache's scenes, without the digest of what they were made from, and so without checksum."""
    (length,) = struct.unpack_from("<Q", content, 8)
    about = json.loads(content[16 : 16 + length])
    about["header"].pop("source", None)
    return json.dumps(about, sort_keys=True).encode() + content[16 + length : -4]


def _manifest(content: bytes) -> bytes:
    """Names and digests, but of side files, which tell when they were made, names alone."""
    listed = json.loads(content)
    entries = listed.get("files", listed)
    return json.dumps({k: None if Path(k).suffix in (".json", ".yaml") else v for k, v in entries.items()}).encode()


def _steady(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _steady(inside) for key, inside in value.items() if key not in VOLATILE}
    return list(map(_steady, value)) if isinstance(value, list) else value


def _inventory(place: Path, call: Call) -> dict[str, tuple[int, int, int]]:
    """What stands in and beside the folder of a case: type, length and time of all that the call may not write."""
    own = set()
    for pattern in (*call.results, *call.writes):
        if pattern != "-":
            own |= set(place.glob(pattern))
    found = {}
    for folder, folders, files in os.walk(place.parent):
        at = Path(folder)
        for name in (*files, *folders):
            path = at / name
            if path.name in ("said", "said.err", ".lock") or path in own or own & set(path.parents):
                continue
            about = path.lstat()
            regular = stat.S_ISREG(about.st_mode)
            found[str(path.relative_to(place.parent))] = (
                stat.S_IFMT(about.st_mode), about.st_size if regular else 0, about.st_mtime_ns if regular else 0,
            )  # fmt: skip
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def copy(source: Path, target: Path) -> None:
    """A file or a folder, links as links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def remove(folder: Path) -> None:
    """Whatever is in it, however it is protected."""
    for at, _, _ in os.walk(folder):
        os.chmod(at, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def only(place: Path, pattern: str) -> Path:
    """The first file that matches."""
    found = sorted(place.glob(pattern))
    assert found, f"nothing matches {pattern} in {place}"
    return found[0]


def at(file: str | Path, change: Mutate) -> Mutate:
    """A mutation of one file or folder of the case's."""
    return lambda place: change(place / file)


def a_file(path: Path) -> None:
    """A file in the place of a folder, or of nothing."""
    remove(path)
    path.touch()
