"""Which scenes a split holds: YAML files in the devkit's scene-filter schema, or lists of tokens."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from dpvla.files import FileError, inside, read_yaml, short
from navsim_bridge.files.roots import LOGS
from navsim_bridge.splits.log_folder import LogFolderError, find_folder
from navsim_bridge.splits.token_list import MOST_BYTES, SUFFIXES, TokenListError, read_token_list
from navsim_bridge.splits.two_stage import MAPPING, SECOND_STAGE, MappingError, TwoStages, find_root, two_stages

DEVKIT_ROOT = "NAVSIM_DEVKIT_ROOT"
DEVKIT_SPLITS = Path("navsim/planning/script/config/common/train_test_split")
SPLITS = "splits"
IGNORED_KEYS = ("_target_", "_convert_")
SYNTHETIC = "include_synthetic_scenes"
LEFT_OUT_KEYS = ("all_mapping", "synthetic_scene_tokens", "non_reactive_synthetic_initial_tokens",
                 "non_reactive_all_mapping", "two_stage_mapping")  # fmt: skip
"""Keys of files of version 2 that must be empty: its two-stage script reads none of them."""
VERSION_2_KEYS = (SYNTHETIC, SECOND_STAGE, *LEFT_OUT_KEYS)
LONGEST_NAME = 200
"""Of a log, a folder or a scene."""
SPLIT_KEYS = ("data_split", "scene_filter", "defaults", MAPPING)


class SplitError(ValueError):
    """A split that cannot be used; the message says which file and key and what to do."""


@dataclass(frozen=True)
class SceneFilter:
    """The devkit's filter: windows of consecutive frames, named by the token of the last history frame."""

    num_history_frames: int = 4  # frames up to and including t = 0
    num_future_frames: int = 10  # frames after it; 10 for scoring
    frame_interval: int | None = None  # a window starts every n frames; None: the window length (no overlap)
    has_route: bool = True  # only scenes with a route
    max_scenes: int | None = None  # the first so many, in order of log name and time
    log_names: tuple[str, ...] | None = None  # None: every log of the folder
    tokens: tuple[str, ...] | None = None  # None: every window

    def __post_init__(self) -> None:
        for name, least in (("num_history_frames", 1), ("num_future_frames", 0), ("frame_interval", 1),
                            ("max_scenes", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is None and name in ("frame_interval", "max_scenes"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SplitError(f"{name}: expected a whole number of at least {least}, found {short(value)}")
        if not isinstance(self.has_route, bool):
            raise SplitError(f"has_route: expected true or false, found {short(self.has_route)}")
        for key in ("log_names", "tokens"):
            bad = next((name for name in getattr(self, key) or () if not _is_plain(name)), None)
            if bad is not None:
                raise SplitError(f"{key}: {short(bad)} is no name of a {'log' if key == 'log_names' else 'scene'}")

    @cached_property
    def wanted(self) -> frozenset[str] | None:
        """``tokens``, to look in: made once, however many logs are looked through."""
        return None if self.tokens is None else frozenset(self.tokens)

    @property
    def num_frames(self) -> int:
        return self.num_history_frames + self.num_future_frames

    @property
    def step(self) -> int:
        return self.num_frames if self.frame_interval is None else self.frame_interval


@dataclass(frozen=True)
class Split:
    """A named set of scenes."""

    name: str
    data_split: str  # folder below navsim_logs/ and sensor_blobs/
    scene_filter: SceneFilter
    path: Path | None = None  # the file it came from
    two_stage: TwoStages | None = None  # its second stage, where it has one

    @property
    def tokens(self) -> tuple[str, ...] | None:
        """Of all scenes that it lists, those of the second stage last; None where it lists none."""
        listed = self.scene_filter.tokens
        return listed if listed is None or self.two_stage is None else (*listed, *self.two_stage.tokens)


def load_split(
    name_or_file: str | Path,
    data_root: Path | str | None = None,
    data_split: str | None = None,
    synthetic_root: Path | str | None = None,
) -> Split:
    """Find and read a split.

    A name is looked up as ``<data_root>/splits/NAME.yaml``, then among the devkit's own splits below
    ``NAVSIM_DEVKIT_ROOT``; anything that ends in .yaml, .yml, .csv or .parquet, or has a folder in it, is a file.
    A list of tokens (`read_token_list`) selects from all windows of 4 + 10 frames that have a route.

    Args:
        name_or_file: name or file.
        data_root: folder with `navsim_logs/` and maybe `splits/`.
        data_split: folder below `navsim_logs/`. By default the file says it; where it does not, as lists and the
            devkit's bare scene filters, it is the folder that has the scenes (`find_folder`).
        synthetic_root: folder with the synthetic scenes of a split that has a second stage, see `TwoStages.root`. By
            default that of the split's name below ``data_root``, else the only one there.

    Raises:
        FileNotFoundError: listing what was looked at and the names there are.
        SplitError: unknown or unusable keys, no such folder, a folder of logs that cannot be told, or stages that do
            not fit together.
    """
    root = Path(data_root) if data_root else None
    if data_split:
        _refuse_path(data_split)
    if data_split and root and not (root / LOGS / data_split).is_dir():
        there = ", ".join(sorted(p.name for p in (root / LOGS).glob("*") if p.is_dir()))
        raise SplitError(f"data_split {data_split!r} is no folder below {root / LOGS}; there: {there or 'none'}")
    path = _find(str(name_or_file), root)
    if problem := devkit_splits()[1]:
        _warn(problem)
    read = _token_split if path.suffix.lower() in SUFFIXES else _yaml_split
    try:
        named, rules, stages = read(path)
        if named:
            _refuse_path(named)
        if stages is not None:
            stages = dataclasses.replace(
                stages, root=Path(synthetic_root) if synthetic_root else find_root(root, path.stem)
            )
        elif synthetic_root:
            raise SplitError("it has no second stage: leave out --synthetic-root")
        folder = data_split or named or find_folder(root, rules.log_names, rules.tokens)
    except (TokenListError, FileError) as error:  # these name the file themselves
        raise SplitError(str(error)) from None
    except (SplitError, MappingError, LogFolderError) as error:
        raise SplitError(f"{path}: {error}") from None
    return Split(path.stem, folder, rules, path, stages)


def require_future(split: Split, frames: int, what: str) -> None:
    """Raise SplitError when the scenes of ``split`` have fewer than ``frames`` future frames, which ``what`` needs."""
    there = split.scene_filter.num_future_frames
    if there < frames:
        raise SplitError(
            f"split {split.name}: num_future_frames is {there}, but {what} needs {frames}: set it in "
            f"{split.path or 'the split'}"
        )


def devkit_splits() -> tuple[Path | None, str]:
    """Folder of the devkit's own splits, and what is wrong with ``NAVSIM_DEVKIT_ROOT`` where it leads to none."""
    value = os.environ.get(DEVKIT_ROOT)
    if not value:
        return None, ""
    folder = Path(value) / DEVKIT_SPLITS
    if folder.is_dir():
        return folder, ""
    what = f"holds no {DEVKIT_SPLITS}" if Path(value).is_dir() else "is no folder"
    return None, f"{DEVKIT_ROOT} is {value}, which {what}: point it to the devkit's checkout"


def is_named(split: Split, data_root: Path) -> bool:
    """Whether a split has its name from the data or the devkit; other files may have any name."""
    return split.path is None or split.path.parent in (data_root / SPLITS, devkit_splits()[0])


def _refuse_path(data_split: str) -> None:
    """Raise SplitError when a folder of logs is named by more than its name."""
    if not _is_plain(data_split):
        raise SplitError(f"data_split {short(data_split)}: expected the name of a folder below {LOGS}/, not a path")


def _is_plain(name: str) -> bool:
    """Whether a text can be the name of a file or folder, and leads nowhere else."""
    whole = 0 < len(name) <= LONGEST_NAME and name.isprintable() and name not in (".", "..")
    return whole and "/" not in name and "\\" not in name


@lru_cache(maxsize=1)
def _warn(problem: str) -> None:
    print(f"warning: {problem}; until then the devkit's splits are not found", file=sys.stderr)


def _find(name: str, data_root: Path | None) -> Path:
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml", *SUFFIXES) or len(path.parts) > 1:
        if not path.is_file():
            raise FileNotFoundError(f"no split file {path}")
        return path
    folders = [data_root / SPLITS] if data_root else []
    devkit, problem = devkit_splits()
    if devkit:
        folders.append(devkit)
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    raise FileNotFoundError(
        f"no split '{name}'. Looked at: {', '.join(str(f / f'{name}.yaml') for f in folders) or 'nowhere'}; "
        f"names there: {', '.join(known) or 'none'}. "
        f"{problem or f'Give a YAML, CSV or Parquet file, or set {DEVKIT_ROOT} for the splits of the devkit'}."
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises FileError, and SplitError that does not name the file."""
    raw = read_yaml(path, MOST_BYTES)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise SplitError(f"expected 'key: value' lines, found {found}")
    return raw


Rules = tuple[str | None, SceneFilter, TwoStages | None]
"""The folder that a file names, None where it names none, and the rest of it."""


def _yaml_split(path: Path) -> Rules:
    raw = _read_yaml(path)
    data_split = raw.get("data_split")
    if data_split is not None and (not isinstance(data_split, str) or not data_split):
        raise SplitError(f"data_split must name the folder below navsim_logs/, found {short(data_split)}")
    if "scene_filter" in raw or "defaults" in raw:
        _refuse_left_out(raw)
        _check_keys(raw, (*SPLIT_KEYS, *LEFT_OUT_KEYS))
        content = raw.get("scene_filter")
        if content is None or isinstance(content, str):
            file = _scene_filter_file(path, content or _default_filter(raw.get("defaults")))
            try:
                content = _read_yaml(file)
            except SplitError as error:
                raise SplitError(f"{file}: {error}") from None
        if not isinstance(content, Mapping):
            raise SplitError(f"scene_filter must be a group of keys, found {short(content, 80)}")
    else:
        content = {key: value for key, value in raw.items() if key not in ("data_split", MAPPING)}
    if not raw or ("scene_filter" in raw and not content.keys() - {*IGNORED_KEYS}):  # as in a file that is cut off
        raise SplitError("it does not say which scenes to take: it has none of the keys of a scene filter")
    rules = scene_filter({key: value for key, value in content.items() if key not in (SYNTHETIC, SECOND_STAGE)})
    return data_split, *_stages(raw, content, rules)


def _stages(
    raw: Mapping[str, Any], content: Mapping[str, Any], rules: SceneFilter
) -> tuple[SceneFilter, TwoStages | None]:
    """The filter of the first stage, and the second one where a file has one."""
    mapping, second, included = raw.get(MAPPING), content.get(SECOND_STAGE), content.get(SYNTHETIC)
    if not mapping and not second and not included:
        return rules, None
    if MAPPING not in raw:
        raise SplitError(
            f"{SYNTHETIC if included else SECOND_STAGE} is set, but it has no {MAPPING}, which says what follows what: "
            "name the split's own file, beside the folder scene_filter/"
        )
    if included not in (None, True):
        raise SplitError(f"{SYNTHETIC} must be true where {MAPPING} is given, found {short(included)}")
    if rules.max_scenes is not None:
        raise SplitError("max_scenes would cut groups apart: leave it null, and shorten the lists of tokens")
    stages = two_stages(mapping, second, rules.tokens)
    if rules.tokens is None:
        assert stages.groups is not None
        rules = dataclasses.replace(rules, tokens=tuple(t for group in stages.groups for t in group.first_stage))
    return rules, stages


def _refuse_left_out(content: Mapping[str, Any]) -> None:
    for key in LEFT_OUT_KEYS:
        if content.get(key):
            raise SplitError(f"{key} is set, which the devkit's two-stage script does not read; leave it empty")


def _token_split(path: Path) -> Rules:
    columns = read_token_list(path)
    logs = tuple(dict.fromkeys(columns["log_name"])) if "log_name" in columns else None
    folders = set(columns.get("data_split", ()))
    if len(folders) > 1:
        raise SplitError(f"a split lies in one folder of logs; data_split names {', '.join(sorted(folders))}")
    rules = SceneFilter(frame_interval=1, log_names=logs, tokens=columns["token"])
    return (folders.pop() if folders else None), rules, None


def scene_filter(content: Mapping[str, Any]) -> SceneFilter:
    """A filter of recorded scenes from the devkit's keys; keys that only version 2 knows must be empty."""
    names = [field.name for field in dataclasses.fields(SceneFilter)]
    _check_keys(content, (*names, *IGNORED_KEYS, *VERSION_2_KEYS))
    _refuse_left_out(content)
    for key in (SYNTHETIC, SECOND_STAGE):
        if content.get(key):
            raise SplitError(f"{key} is set in a filter of recorded scenes; leave it empty")
    values = {key: content[key] for key in names if key in content}
    for key in ("log_names", "tokens"):
        if values.get(key) is not None:
            values[key] = _strings(key, values[key])
    return SceneFilter(**values)


def _strings(key: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise SplitError(f"{key}: expected a list, found {short(values, 80)}")
    for value in values:
        if not isinstance(value, str):
            raise SplitError(
                f"{key}: expected strings, found the {type(value).__name__} {short(value)}; put it in quotes"
            )
    return tuple(dict.fromkeys(values))


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in content:
        if key not in known:
            name = key[:80] if isinstance(key, str) else short(key, 80)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise SplitError(f"unknown key '{name}'; nearest valid name: '{near}'")


def _default_filter(defaults: Any) -> str:
    """Name after ``scene_filter:`` in a hydra defaults list."""
    for entry in defaults if isinstance(defaults, list) else []:
        if isinstance(entry, Mapping):
            for key, value in entry.items():
                if str(key).split()[-1].lstrip("/") == "scene_filter" and isinstance(value, str):
                    return value
    raise SplitError(f"expected 'scene_filter: NAME' in defaults, found {short(defaults)}")


def _scene_filter_file(path: Path, name: str) -> Path:
    folders = [path.parent / "scene_filter", path.parent.parent / "scene_filter"]
    try:
        looked_at = [inside(folder, f"{name}.yaml", follow=True) for folder in folders]
    except FileError as error:
        raise SplitError(f"scene_filter: {error}") from None
    for candidate in looked_at:
        if candidate.is_file():
            return candidate
    raise SplitError(f"no scene filter '{name}'; looked at {', '.join(map(str, looked_at))}")
