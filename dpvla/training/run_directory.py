"""A run's directory: its config, what made it, what its weights have seen, and how it may go on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from dpvla.checkpoint_layout import (
    ADAPTERS,
    BEST,
    CHECKPOINTS,
    KEPT_ROLL_OUTS,
    METRICS_FILE,
    MODEL,
    PICTURE,
    RUN_FILE,
    TRACKING,
    TRAINER_STATE,
)
from dpvla.config import ConfigError, NotNegative, Whole, from_dict, modern, to_dict
from dpvla.files import LOCK, DirectoryInUseError, check_file, check_folder, one_writer, write_text
from dpvla.former_defaults import as_formerly, former_defaults, replaced
from dpvla.manifest import MANIFEST, require_manifest
from dpvla.provenance import made_by
from dpvla.schema import read_as
from dpvla.training.checkpoint import checkpoint_step, is_leftover, latest_checkpoint, remove_leftovers

FREE = (
    "out", "restart", "workers", "data_root", "data_split", "synthetic_root", "maps_root", "metric_cache",
    "image_cache", "image_store", "allow_missing", "imitation.num_workers", "imitation.validation_scenes",
    "rollouts.context_cache_gb", "plugin",
    "loop.log_every", "loop.evaluate_every", "loop.save_every", "loop.keep_checkpoints", "loop.trackers",
    "loop.stop_after_step", "tokens.limit_gb", "tokens.verify", "tokens.ahead", "tokens.workers", "yes",
    "watch.metrics", "watch.metric_caches", "watch.scenes", "watch.reverse_mps", "watch.still_m", "watch.rise",
    "watch.fall", "watch.alike", "watch.picture", "heldout.split", "heldout.scenes", "heldout.every",
    "heldout.stop_below",
)  # fmt: skip
"""Options that change nothing of what is computed (data may move; their content is compared apart)."""

NOTED = (
    "imitation.epochs", "rollouts.cycles", "loop.steps", "loop.lr", "loop.lr_schedule", "loop.warmup_steps",
    "loop.weight_decay", "loop.clip_norm", "loop.adam_betas", "loop.precision", "rollouts.scenes_per_call",
    "tokens.directory",
    "loop.accumulate", "loop.recompute", "loop.compile", "loop.strategy.name", "loop.strategy.reshard_after_forward",
    "loop.strategy.whole_below",
)  # fmt: skip
"""Options of which a run may go on with other values; run.yaml keeps the old ones and when they changed."""

FOLLOWED = ("algorithm.omega",)
"""Options that, where they are not given, are what they were in the run that goes on."""

SCHEDULE = {"imitation.epochs", "rollouts.cycles", "loop.steps", "loop.lr_schedule", "loop.warmup_steps"}
"""Those of them that move the learning rate's schedule."""

DISCARDED = ".discarded"
"""Where --restart puts what it discards until the new run has begun."""

UNKNOWN = "unknown"
"""Stage of weights whose training nothing tells."""


@dataclass(frozen=True)
class TrainedOn:
    """Scenes that weights have seen in one stage; kept with them so that every score can say so."""

    stage: str  # imitation, the name of an RL algorithm, offline, or unknown
    split: str  # name of the split
    scenes: int  # how many
    logs: tuple[str, ...]  # their logs
    of: int | None = None  # how many scenes the split names, where some were left out
    weights: str = MODEL  # what the stage moved: model or adapters
    reward: str | None = None  # what its plans were rewarded by: the metric with its options

    @classmethod
    def unknown(cls) -> TrainedOn:
        """A stage that says that nothing is known."""
        return cls(UNKNOWN, UNKNOWN, 0, ())


@dataclass(frozen=True)
class Run:
    """An opened run directory. Nothing is written before ``begin``."""

    path: Path
    config: Any  # as given; of a run that goes on with what only an earlier version computed with (``FORMERLY``)
    accelerator: Accelerator
    last: Path | None  # newest checkpoint to go on from
    before: Mapping[str, Any]  # run.yaml as it was; empty for a new run
    changed: Mapping[str, tuple[Any, Any]]  # NOTED options with their old and new values
    restart: bool = False
    _content: dict[str, Any] = field(default_factory=dict)

    def following(self, key: str, value: Any) -> Run:
        """With ``value`` at a dotted key of the config that is there and was not given (None)."""
        found: Any = self.config
        for name in key.split("."):
            found = getattr(found, name, value)
        return self if found is not None else dataclasses.replace(self, config=replaced(self.config, key, value))

    @property
    def step(self) -> int:
        """Updates that are made already."""
        return 0 if self.last is None else checkpoint_step(self.last)

    def begin(
        self,
        seed: int | Sequence[int],
        trained_on: Sequence[TrainedOn],
        steps: int,
        data: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``run.yaml``: call it when everything is checked, before the first update.

        Args:
            trained_on: every stage behind the weights, this run's last.
            steps: updates in all.
            data: what the run learns from; ``fingerprint`` of a run that goes on must be what it was.
            start: the weights it began with, in words and numbers.

        Raises:
            ConfigError: the data is other data than before, or more updates are made than ``steps``.
        """
        if self.step > steps:
            raise ConfigError(
                f"{self.path} has made {self.step} updates, more than the {steps} asked for; they cannot be undone: "
                "choose another --out, or --restart"
            )
        self._refuse_other_data(data)
        made = made_by(seed, self.accelerator.device) | {"processes": self.accelerator.num_processes}
        content: dict[str, Any] = {
            "config": to_dict(self.config),
            "trained_on": list(map(_plain, trained_on)),
            "data": dict(data) if data is not None else None,
            "start": dict(start) if start is not None else None,
        }
        if self.last is None:
            content |= {"provenance": made}
        else:
            for kept in ("start", "trained_on"):  # what was true of the first update is true of all
                content[kept] = self.before.get(kept)
            content["provenance"] = self.before.get("provenance")
            history: list[dict[str, Any]] = list(self.before.get("resumed") or ())
            if self.step < steps:
                again = history.pop() if history and history[-1].get("step") == self.step else {}
                changed = _joined(again.get("changed", {}), self.changed)
                history.append({"step": self.step, "changed": changed, "provenance": made})
            content["resumed"] = history
        self._content.clear()
        self._content.update(content)
        if self.accelerator.is_main_process:
            if self.changed and self.step == steps:
                print(
                    f"all {steps} updates are made, so {', '.join(self.changed)} changes nothing; ask for more of them"
                )
            for key, (old, new) in self.changed.items() if self.step < steps else ():
                print(f"{key} is {new!r} from update {self.step + 1} on, it was {old!r}")
            if self.changed.keys() & SCHEDULE and self.step < steps:
                print(f"the learning rate follows the schedule of all {steps} updates from there")
            with ExitStack() as stack:
                if self.last is None:
                    stack.enter_context(_clearing(self.path, self.restart))
                if self.last is None or self.step < steps:
                    self.describe(self.path)
        self.accelerator.wait_for_everyone()

    def describe(self, directory: Path, also: Sequence[TrainedOn] = (), *, cycles: int | None = None) -> None:
        """Put ``run.yaml`` into a checkpoint directory.

        Args:
            also: what its weights have seen since the run began.
            cycles: of roll-outs behind its weights, in all rounds.
        """
        if not self._content:
            raise RuntimeError("begin the run before anything of it is saved")
        content = {**self._content, "trained_on": [*self._content["trained_on"], *map(_plain, also)]}
        if cycles is not None:
            content["cycles"] = cycles
        if directory != self.path:
            content["manifest"] = True
        write_text(directory / RUN_FILE, yaml.safe_dump(content, sort_keys=False))

    def _refuse_other_data(self, data: Mapping[str, Any] | None) -> None:
        before = self.before.get("data") or {}
        if self.last is None or data is None or not before.get("fingerprint"):
            return
        if before["fingerprint"] != data.get("fingerprint"):
            differing = ", ".join(
                f"{key} was {before[key]!r}, is {data[key]!r}"
                for key in before
                if key in data and key != "fingerprint" and before[key] != data[key]
            )
            raise ConfigError(
                f"{self.path} was trained on other data ({differing or 'the same names with other content'}); put the "
                "data back, or start a new run from its weights in another --out"
            )


OF_A_RUN = (TRACKING, METRICS_FILE, BEST, PICTURE, KEPT_ROLL_OUTS)
"""What a run writes beside ``run.yaml`` and its checkpoints."""


@contextmanager
def _clearing(path: Path, restart: bool) -> Iterator[None]:
    """Around what writes a new ``run.yaml``: removes what --restart discards, or what a start left without checkpoint.

    What is discarded is put aside first, and back where the writing fails: checkpoints go when a new run has begun.
    """
    if not restart or not (path / RUN_FILE).exists():
        for left in path.iterdir():
            if (left.name in OF_A_RUN or _ours(left)) and left.name != LOCK:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
        return
    aside = path / DISCARDED
    try:
        aside.mkdir()
        (path / RUN_FILE).rename(aside / RUN_FILE)  # first: see _put_back
        for old in path.iterdir():
            if old.name not in (LOCK, DISCARDED):
                old.rename(aside / old.name)
        yield
    except BaseException:
        _put_back(path)
        raise
    shutil.rmtree(aside)


def _put_back(path: Path) -> None:
    """Undo a --restart that was cut off before the new ``run.yaml`` was there; finish one that was cut off after it."""
    aside = path / DISCARDED
    if not aside.is_dir():
        return
    if not ((path / RUN_FILE).exists() and (aside / RUN_FILE).exists()):
        for old in sorted(aside.iterdir(), key=lambda old: old.name == RUN_FILE):  # last: as long as it is not there
            old.rename(path / old.name)
    shutil.rmtree(aside)


def _plain(stage: TrainedOn) -> dict[str, Any]:
    return asdict(stage) | {"logs": list(stage.logs)}


@contextmanager
def open_run(
    out: Path | str,
    config: Any,
    restart: bool,
    accelerator: Accelerator,
    free: Sequence[str] = FREE,
    noted: Sequence[str] = NOTED,
) -> Iterator[Run]:
    """Hold ``out`` for one run and find out whether it starts or goes on; ``Run.begin`` then writes.

    A directory without a checkpoint starts anew with any config. With one, ``config`` may differ from the run's in
    ``free`` and ``noted`` options alone, and in the words for the split where the data's fingerprint tells another one.

    Raises:
        ConfigError: ``out`` holds a run with another config (names the first key that differs), or no run at all.
        DirectoryInUseError: another process writes there.
        OSError: ``out`` cannot be made or written to.
    """
    check_folder(out)
    out = Path(out)
    if not restart:
        for folder in (CHECKPOINTS, TRACKING):
            check_folder(out / folder)
        for file in (RUN_FILE, METRICS_FILE):
            check_file(out / file)
    with ExitStack() as stack:
        _hold(out, stack, accelerator)
        inside = next((name for name in (TRAINER_STATE, MODEL, ADAPTERS) if (out / name).exists()), None)
        if inside is not None:
            raise ConfigError(f"{out} is a checkpoint (it holds {inside}) and no place for a run; choose another --out")
        last = None if restart else latest_checkpoint(out)
        _refuse_other_views(out, last, accelerator)
        before: Mapping[str, Any] = {}
        changed = {}
        if last is not None:
            before = read_run(out if (out / RUN_FILE).is_file() else last)
            theirs = modern(type(config), before["config"], str(out / RUN_FILE))
            if unknown := theirs.keys() - {f.name for f in fields(config)}:
                raise ConfigError(
                    f"{out} holds a run of another tool or version (with the option {sorted(unknown)[0]}); choose "
                    "another --out, or discard that run with --restart"
                )
            theirs = to_dict(from_dict(type(config), as_formerly(config, theirs), str(out / RUN_FILE)))
            config = _kept(config, theirs, accelerator)
            for key, mine, other in _differences(to_dict(config), theirs):
                if key in noted:
                    changed[key] = (other, mine)
                elif key not in free and not (key == "split" and (before.get("data") or {}).get("fingerprint")):
                    raise ConfigError(
                        f"{out} holds a run with {key} = {other!r}, this one has {mine!r}, which a run cannot change "
                        "while it goes on; choose another --out (a new run may start from these weights), or discard "
                        "that run with --restart"
                    )
        elif out.is_dir() and not (out / RUN_FILE).exists():
            others = [path.name for path in out.iterdir() if not _ours(path)]
            if others:
                raise ConfigError(f"{out} holds {sorted(others)[0]} and no run; choose another --out")
        yield Run(out, config, accelerator, last, before, changed, restart)


def _kept(config: Any, theirs: Mapping[str, Any], accelerator: Accelerator) -> Any:
    """``config`` with what the run computes with where none is given: FOLLOWED options, and what was none formerly.

    ``theirs``: the run's own config.
    """
    differing = {key: (mine, other) for key, mine, other in _differences(to_dict(config), theirs)}
    for key in FOLLOWED:
        group = key.rpartition(".")[0]
        if differing.get(key, (0, 0))[0] is None and f"{group}.name" not in differing:
            config = replaced(config, key, differing[key][1])
    for key, before, default in former_defaults(config):
        if differing.get(key) == (default, before):
            accelerator.print(
                f"{key} stays {before!r}, as an earlier version began this run; a new one has {default!r}"
            )
            config = replaced(config, key, before)
    return config


def _ours(path: Path) -> bool:
    """Whether a start that was cut short may have left this."""
    if path.name in (TRACKING, CHECKPOINTS):
        return path.is_dir() and all(map(is_leftover, path.iterdir()))
    return path.name == LOCK or path.name.startswith(f".{RUN_FILE}.")


def _hold(out: Path, stack: ExitStack, accelerator: Accelerator) -> None:
    """Lock ``out`` from the main process; where that fails, every process says so and none waits for the others."""
    refused: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            stack.enter_context(one_writer(out))
            _put_back(out)
            remove_leftovers(out)
        except (DirectoryInUseError, OSError) as error:
            if accelerator.num_processes == 1:
                raise
            refused = [str(error)]
    if accelerator.num_processes > 1 and (text := broadcast_object_list(refused)[0]) is not None:
        raise DirectoryInUseError(text)


def _refuse_other_views(out: Path, last: Path | None, accelerator: Accelerator) -> None:
    """Raise ConfigError on every process where some see another newest checkpoint: they would go on from it alone."""
    if accelerator.num_processes == 1:
        return
    seen: list[str] = gather_object(["no checkpoint" if last is None else last.name])
    other = next((number for number, name in enumerate(seen) if name != seen[0]), None)
    if other is not None:
        raise ConfigError(
            f"{out}: process 0 finds {seen[0]} there, process {other} {seen[other]}: all machines of a run must share "
            "its folder"
        )


def read_run(directory: Path) -> dict[str, Any]:
    """The mapping in a run's or a checkpoint's ``run.yaml``."""
    path = Path(directory) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} is not a run or checkpoint of tools/pretrain.py")
    content: dict[str, Any] = dict(read_as(path, _RunFile))
    require = content.get("manifest", False) or (path.parent / MANIFEST).exists()
    if require:
        require_manifest(path.parent, True, [RUN_FILE])
    return content


class _StageNeeded(TypedDict):
    stage: str
    split: str
    scenes: Whole
    logs: list[str]


class _Stage(_StageNeeded, total=False):
    of: Whole | None
    reward: str | None
    weights: Literal["model", "adapters"]


class _RunNeeded(TypedDict):
    config: dict[str, Any]
    trained_on: list[_Stage]


class _Data(TypedDict, total=False):
    fingerprint: str | None


class _Start(TypedDict, total=False):
    path: str
    weights_sha256: str
    adapters: str
    omega: NotNegative
    cycles: Whole  # of roll-outs behind the weights


class _Resumed(TypedDict):
    step: Whole
    changed: dict[str, tuple[Any, Any]]


class _RunFile(_RunNeeded, total=False):
    """``run.yaml``."""

    data: _Data | None
    start: _Start | None
    provenance: dict[str, Any] | None
    resumed: list[_Resumed] | None
    cycles: Whole  # of roll-outs behind the weights of a checkpoint, in all rounds
    manifest: bool  # of a checkpoint: whether it has one


def read_trained_on(checkpoint: Path) -> list[TrainedOn]:
    """Every stage behind the weights of a checkpoint, oldest first; one unknown stage where the file names none."""
    stages = read_run(checkpoint)["trained_on"]
    if not stages:  # no weights come from nothing
        return [TrainedOn.unknown()]
    names = {f.name for f in fields(TrainedOn)}
    found = [
        TrainedOn(**{key: value for key, value in stage.items() if key in names} | {"logs": tuple(stage["logs"])})
        for stage in stages
    ]
    # Runs of version 0.1.0 did not say what a stage moved; DIPOLE always moved the adapters.
    old = ["weights" not in stage for stage in stages]
    return [
        TrainedOn(**{**asdict(stage), "weights": ADAPTERS, "logs": stage.logs})
        if was_old and stage.stage == "dipole"
        else stage
        for was_old, stage in zip(old, found)
    ]


Difference = tuple[str, Any, Any]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    for key in dict.fromkeys([*ours, *theirs]):
        mine, other = ours.get(key), theirs.get(key)
        if mine == other:
            continue
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            yield from _differences(mine, other, f"{prefix}{key}.")
        else:
            yield prefix + key, mine, other


def _joined(earlier: Mapping[str, Sequence[Any]], later: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Changes made at one step by several starts: each option from its first value to its last."""
    joined = {key: list(values) for key, values in earlier.items()}
    for key, (old, new) in later.items():
        joined[key] = [joined[key][0] if key in joined else old, new]
    return {key: values for key, values in joined.items() if values[0] != values[1]}
