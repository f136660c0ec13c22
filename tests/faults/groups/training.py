"""What training leaves and goes on from: checkpoints, adapters, states, buffers, token caches, run directories."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from dpvla.manifest import MANIFEST, write_manifest
from tests.faults.case import Call, Case, a_file, only, remove
from tests.faults.mutants import files, tensors, texts

Change = Callable[[Path], object]
TEST = ("world/navsim_logs/test", "world/sensor_blobs/test", "world/splits", "cache")
TRAIN = (
    "world/navsim_logs/trainval",
    "world/sensor_blobs/trainval",
    "world/splits",
    "world/maps/nuplan-maps-v1.0.json",
    "pretrain.yaml",
)
WEIGHTS = ("/checkpoints/*/**/*.safetensors", "/metrics.csv")


def _score(run: str, name: str) -> Call:
    return Call(
        "evaluate",
        (
            "--data-root",
            "world",
            "--split",
            "navtest_all",
            "--agent",
            "dpvla",
            "--checkpoint",
            run,
            "--metric-cache",
            "cache",
            "--device",
            "cpu",
            "--out",
            "out",
        ),
        (*TEST, f"runs/{name}/checkpoints/step_*{'3' if name == 'pre' else '4'} as checkpoint"),
        ("out/scores.csv",),
        ("out", "out/**/*"),
    )


SCORE_MODEL, SCORE_ADAPTERS = _score("checkpoint", "pre"), _score("checkpoint", "dip")
RESUME_PRETRAIN = Call(
    "pretrain",
    ("--config", "pretrain.yaml", "--out", "run"),
    (*TRAIN, "interrupted/pre as run"),
    ("run/checkpoints/step_00000003/**/*.safetensors", "run/metrics.csv"),
    ("run", "run/**/*"),
)
DIPOLE_NEEDS = (
    "world/navsim_logs/test",
    "world/sensor_blobs/test",
    "world/splits",
    "world/maps/nuplan-maps-v1.0.json",
    "cache",
    "dipole.yaml",
    "runs/pre",
)
RESUME_DIPOLE = Call(
    "rl_finetune",
    ("--config", "dipole.yaml", "--out", "run", "--tokens.directory", "tokens"),
    (*DIPOLE_NEEDS, "tokens", "interrupted/dip as run"),
    ("run/checkpoints/step_00000004/**/*.safetensors", "run/metrics.csv"),
    ("run", "run/**/*", "tokens", "tokens/*"),
)
START_DIPOLE = Call(
    "rl_finetune",
    ("--config", "dipole.yaml", "--out", "new", "--tokens.directory", "tokens"),
    (*DIPOLE_NEEDS, "tokens"),
    tuple(f"new{pattern}" for pattern in WEIGHTS),
    ("new", "new/**/*", "tokens", "tokens/*"),
)
UNBOUNDED = "a metric of somebody's own may score as it likes"
IN_RANGE = "a number in its range, under checksums made right again: another model, and nothing tells which was meant"
STEP = {"pre": "step_00000002", "dip": "step_00000003", "state": "step_00000006"}


def reseal(path: Path) -> None:
    """Make every manifest above a changed file right again, innermost first."""
    for folder in path.parents:
        manifest = folder / MANIFEST
        if manifest.is_file() and "files" in json.loads(manifest.read_text()):
            write_manifest(folder)


def everything(
    group: str,
    call: Call,
    samples: Path,
    at: str,
    pristine: str,
    seed: int,
    words: tuple[str, ...],
    other: Path | None = None,
    flips: int = 6,
    each: int = 1,
    most: int = 25,
) -> Iterator[Case]:
    """Everything that can befall a file, and, under manifests made right again, everything it could say instead.

    Args:
        at: the file in the folder of a case.
        pristine: the same file among the samples.
    """
    source = only(samples, pristine)
    short = at.rpartition("checkpoint/")[2] if "checkpoint/" in at else "/".join(Path(at).parts[-2:])
    words = (Path(at).name, *words)

    def case(name: str, change: Change, more: tuple[str, ...] = ()) -> Case:
        return Case(group, f"{short}_{name}", call, lambda place: change(only(place, at)), (*words, *more))

    for name, change in files.befallen(seed, flips, other):
        yield case(name, change)
    if source.suffix == ".safetensors":
        for name, more, change in tensors.changes(source):
            yield case(name, change, more)
        for name, more, change in tensors.changes(source, reseal):
            yield case(f"sealed_{name}", change, more)
    elif source.suffix in (".json", ".yaml"):
        for name, more, change in texts.changes(source, 3, seed, each, most=most):
            yield case(name, change, more)
        for name, more, change in texts.changes(source, 3, seed + 1, each, reseal, most=most):
            made = case(f"sealed_{name}", change, more)
            yield replace(made, accepted=IN_RANGE) if name.endswith("_float") else made


def checkpoint(samples: Path) -> Iterator[Case]:
    """The model of a checkpoint that is evaluated."""
    pristine = f"runs/pre/checkpoints/{'step_00000003'}"
    for file in ("model/model.safetensors", "model/config.json", "run.yaml"):
        other = Path("checkpoint/run.yaml" if file.endswith("config.json") else "checkpoint/model/config.json")
        yield from everything(
            "checkpoint",
            SCORE_MODEL,
            samples,
            f"checkpoint/{file}",
            f"{pristine}/{file}",
            70,
            ("checkpoint",) if file.endswith(".safetensors") else (),
            other,
            most=40,
        )
    for name, keys, value in (
        ("timm_checkpoint_path", ("encoder", "options", "checkpoint_path"), "/etc/passwd"),
        ("timm_pretrained_cfg", ("encoder", "options", "pretrained_cfg"), {"file": "/etc/passwd"}),
        ("timm_overlay", ("encoder", "options", "pretrained_cfg_overlay"), {"url": "http://127.0.0.1:9/x"}),
        ("timm_cache_dir", ("encoder", "options", "cache_dir"), "../somewhere"),
        ("timm_scriptable", ("encoder", "options", "scriptable"), True),
        ("timm_unknown", ("encoder", "options", "of_nobody"), 1),
        ("timm_huge", ("encoder", "options", "dims"), [1 << 20] * 4),
        ("timm_hub", ("encoder", "network"), "hf-hub:somebody/something"),
        ("timm_local_dir", ("encoder", "network"), "local-dir:/tmp"),
        ("network_a_path", ("encoder", "network"), "../../x"),
        ("encoder_pretrained", ("encoder", "pretrained"), True),
        ("head_huge", ("head", "width"), 1 << 20),
        ("head_blocks_huge", ("head", "blocks"), ["1000000 modulated self mlp"]),
        ("steps_huge", ("diffusion", "num_steps"), 10**9),
    ):
        yield Case(
            "checkpoint",
            f"config_{name}",
            SCORE_MODEL,
            partial(_configured, keys=keys, value=value),
            ("config.json", keys[-1]),
        )
    yield Case(
        "checkpoint",
        "of_another_run",
        SCORE_MODEL,
        lambda place: _swap_model(place, samples / "runs/dip/checkpoints/step_00000004/model"),
        ("model",),
    )
    yield Case(
        "checkpoint",
        "model_absent",
        SCORE_MODEL,
        lambda place: shutil.rmtree(place / "checkpoint/model"),
        ("checkpoint",),
    )
    yield Case(
        "checkpoint", "model_a_file", SCORE_MODEL, lambda place: a_file(place / "checkpoint/model"), ("checkpoint",)
    )
    yield Case("checkpoint", "a_file", SCORE_MODEL, lambda place: a_file(place / "checkpoint"), ("checkpoint",))


def _set(path: Path, keys: tuple[str, ...], value: object) -> None:
    content = json.loads(path.read_text())
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(content))
    reseal(path)


def _configured(place: Path, keys: tuple[str, ...], value: object) -> None:
    _set(place / "checkpoint/model/config.json", ("model", *keys), value)


def _of_policy(place: Path, name: str) -> None:
    _set(place / "checkpoint/adapters/sampling.json", ("policies",), [name, "negative"])


def _swap_model(place: Path, model: Path) -> None:
    """The weights of the sample are linked among checkpoints; another's are put in, of a byte less."""
    target = place / "checkpoint/model/model.safetensors"
    target.unlink()
    found = load_file(model / "model.safetensors")
    save_file({name: value.flip(0).contiguous() if value.dim() else value for name, value in found.items()}, target)


def adapter(samples: Path) -> Iterator[Case]:
    """The adapters of a checkpoint that is evaluated."""
    pristine = "runs/dip/checkpoints/step_00000004"
    for file in (
        "adapters/positive/adapter_model.safetensors",
        "adapters/negative/adapter_config.json",
        "adapters/sampling.json",
    ):
        yield from everything(
            "adapter",
            SCORE_ADAPTERS,
            samples,
            f"checkpoint/{file}",
            f"{pristine}/{file}",
            80,
            ("adapters",),
            Path("checkpoint/run.yaml"),
            flips=4,
            each=2,
            most=30,
        )
    at = Path("checkpoint/adapters")
    yield Case(
        "adapter", "one_absent", SCORE_ADAPTERS, lambda place: shutil.rmtree(place / at / "negative"), ("negative",)
    )
    yield Case("adapter", "exchanged", SCORE_ADAPTERS, lambda place: _exchange(place / at), ("positive", "negative"))
    yield Case("adapter", "all_absent", SCORE_ADAPTERS, lambda place: shutil.rmtree(place / at), ("adapters",))
    for name, target in (("outside", "../../../x"), ("absolute", "/etc"), ("empty", ""), ("long", "x" * 5000)):
        yield Case(
            "adapter", f"policy_{name}", SCORE_ADAPTERS, partial(_of_policy, name=target), ("sampling.json", "policies")
        )


def _exchange(adapters: Path) -> None:
    (adapters / "positive").rename(adapters / "other")
    (adapters / "negative").rename(adapters / "positive")
    (adapters / "other").rename(adapters / "negative")


def resume_pretrain(samples: Path) -> Iterator[Case]:
    """The state that pretraining goes on from."""
    at = f"checkpoints/{STEP['pre']}"
    for file in (
        "model/model.safetensors",
        "trainer_state/weights.safetensors",
        "trainer_state/ema.safetensors",
        "trainer_state/optimizer.safetensors",
        "trainer_state/loop.json",
    ):
        yield from everything(
            "resume",
            RESUME_PRETRAIN,
            samples,
            f"run/{at}/{file}",
            f"interrupted/pre/{at}/{file}",
            90,
            (STEP["pre"],),
            Path(f"run/{at}/run.yaml"),
            flips=3,
        )


def resume_dipole(samples: Path) -> Iterator[Case]:
    """The state that DIPOLE goes on from, but for its buffer."""
    at = f"checkpoints/{STEP['dip']}"
    for file in (
        "model/model.safetensors",
        "trainer_state/weights.safetensors",
        "trainer_state/optimizer.safetensors",
        "adapters/positive/adapter_model.safetensors",
        "trainer_state/loop.json",
    ):
        yield from everything(
            "resume dipole",
            RESUME_DIPOLE,
            samples,
            f"run/{at}/{file}",
            f"interrupted/dip/{at}/{file}",
            95,
            (STEP["dip"],),
            None,
            flips=2,
        )


def buffer(samples: Path) -> Iterator[Case]:
    """The roll-outs of a cycle under way."""
    at = f"run/checkpoints/{STEP['dip']}/trainer_state/buffer.safetensors"
    pristine, step = at.replace("run/", "interrupted/dip/", 1), STEP["dip"]
    for befallen in everything("buffer", RESUME_DIPOLE, samples, at, pristine, 100, (step,), None, flips=6):
        if befallen.name.endswith("_sealed_lacks_one"):
            befallen = replace(befallen, accepted="a sub-score, logged when plans are rolled out, is not read again")
        yield befallen

    def case(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Case:
        def mutate(place: Path) -> None:
            path = place / at
            found = load_file(path)
            change(found)
            save_file(found, path)
            reseal(path)

        words = ("buffer.safetensors", STEP["dip"])
        return Case("buffer", name, RESUME_DIPOLE, mutate, words, UNBOUNDED if name == "score_beyond" else "")

    yield case("of_another_cycle", lambda b: b.update(cycle=torch.tensor(7)))
    yield case("of_a_negative_cycle", lambda b: b.update(cycle=torch.tensor(-1)))
    yield case("cycle_a_list", lambda b: b.update(cycle=torch.tensor([1, 1])))
    yield case("index_beyond", lambda b: b.update(indices=b["indices"] + 1000))
    yield case("index_negative", lambda b: b.update(indices=b["indices"] - 1000))
    yield case("index_twice", lambda b: b.update(indices=b["indices"] * 0))
    yield case("fewer_scenes", lambda b: b.update({k: v[:-1].contiguous() if v.dim() else v for k, v in b.items()}))
    yield case("score_beyond", lambda b: b.update({"scores.score": b["scores.score"] + 1000}))


def tokens(samples: Path) -> Iterator[Case]:
    """A cache of the encoder's tokens, which a new run finds."""
    again = "a file that is missing is made again, as all that a cache holds"
    for file in ("shard_00000.safetensors", "manifest.json", "description.json"):
        for case in everything(
            "tokens",
            START_DIPOLE,
            samples,
            f"tokens/{file}",
            f"tokens/{file}",
            110,
            ("tokens",),
            None,
            flips=8,
            most=20,
        ):
            if not case.name.partition("_")[2].startswith("sealed") and "sealed_" not in case.name:
                yield case
    yield Case("tokens", "folder_a_file", START_DIPOLE, lambda place: a_file(place / "tokens"), ("tokens",))
    yield Case(
        "tokens",
        "shard_linked_out",
        START_DIPOLE,
        lambda place: _linked_out(place / "tokens/shard_00000.safetensors"),
        ("shard_00000",),
        accepted=again,
    )


def _linked_out(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def run_directory(samples: Path) -> Iterator[Case]:
    """What stands beside the checkpoints of a run."""
    for file in ("run.yaml", "metrics.csv", f"checkpoints/{STEP['pre']}/run.yaml"):
        yield from everything(
            "run directory",
            RESUME_PRETRAIN,
            samples,
            f"run/{file}",
            f"interrupted/pre/{file}",
            120,
            (file, "run"),
            None,
            flips=0,
            most=40,
        )

    def case(name: str, change: Callable[[Path], object], *words: str) -> Case:
        return Case("run directory", name, RESUME_PRETRAIN, lambda place: change(place / "run"), words)

    newer = "checkpoints/step_00000009"
    yield case("newer_checkpoint_empty", lambda run: (run / newer).mkdir(), "step_00000009")
    yield case("newer_checkpoint_a_file", lambda run: (run / newer).touch(), "step_00000009")
    yield case(
        "newer_checkpoint_half",
        lambda run: shutil.copytree(run / f"checkpoints/{STEP['pre']}/model", run / newer / "model"),
        "step_00000009",
    )
    yield case(
        "newer_checkpoint_same",
        lambda run: shutil.copytree(run / f"checkpoints/{STEP['pre']}", run / newer),
        "step_00000009",
        "9",
    )
    yield case(
        "step_huge",
        lambda run: shutil.copytree(run / f"checkpoints/{STEP['pre']}", run / ("checkpoints/step_" + "9" * 30)),
        "step_9",
        "9999",
    )
    yield case(
        "checkpoints_a_file",
        lambda run: a_file(run / "checkpoints"),
        "checkpoints",
        "run",
    )
    yield case("checkpoints_linked_out", lambda run: _linked_out(run / "checkpoints"), "checkpoints")
    yield case("lock_a_folder", lambda run: _emptied(run / ".lock"), ".lock")
    yield case("lock_a_fifo", lambda run: _fifo(run / ".lock"), ".lock")
    yield case("lock_linked_out", lambda run: _link(run / ".lock", run.parent / "pretrain.yaml"), ".lock")
    yield case("tracking_a_file", lambda run: (run / "tracking").touch(), "tracking")
    yield case("is_a_file", lambda run: a_file(run), "run")
    yield case("holds_other_things", lambda run: _emptied(run, "thesis.tex"), "thesis.tex")
    yield case("config_of_another_tool", lambda run: _other_run(run, "config", {"env": "x"}), "run.yaml", "run")
    yield case("trained_on_nothing", lambda run: _other_run(run, "trained_on", []), "run.yaml", "trained_on")


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _emptied(path: Path, holds: str = "") -> None:
    """An empty folder in the place of a file or folder, or one that holds an empty file."""
    remove(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir()
    if holds:
        (path / holds).touch()


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _other_run(run: Path, key: str, value: object) -> None:
    for path in (run / "run.yaml", run / f"checkpoints/{STEP['pre']}/run.yaml"):
        content = yaml.safe_load(path.read_text())
        content[key] = value
        path.write_text(yaml.safe_dump(content))
        reseal(path)
