"""The paper's model at its real size: built, trained, saved, loaded, fine-tuned, sampled; time and peak memory of each.

``python benchmarks/full_size.py --json full.json`` runs on the CPU with one scene, ``--device cuda --batch-size 16`` on
a GPU. Weights are random (Florence-2-large's architecture, 475M head), images are noise: no file is read.

Peaks are what a phase added to the process before it built or loaded anything (on a GPU: what torch allocated), over
the bytes of the weights. Each half, training and fine-tuning, is a process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from random_scenes import RandomScenes
from torch import Tensor, nn

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.cli import reporting_errors
from dpvla.device import usable_device
from dpvla.encoders.config import FlorenceConfig
from dpvla.files import check_file, write_json
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.provenance import made_by
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.tensors import empty_parameters
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.imitation import ImitationStage
from dpvla.training.strategies.registry import make_strategy

GROUP = 10
"""Candidates of a scene (the paper's navtrain setting)."""
GB = 1e9
HALVES = ("training", "fine_tuning")
Numbers = dict[str, Any]


class Phases:
    """Seconds and peak memory of named pieces of work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.found = device, dict[str, Numbers]()
        self._before = _resident()

    @contextmanager
    def measure(self, name: str, weights: Callable[[], int]) -> Iterator[Numbers]:
        """Note what is done inside; ``weights``: their bytes afterwards. What it yields is noted with it."""
        gc.collect()
        self._reset()
        numbers: Numbers = {}
        began = time.perf_counter()
        cpu = time.process_time()
        yield numbers
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        peak = self._peak()
        numbers |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak / GB,
                    "peak_over_weights": peak / weights(), "weights_gb": weights() / GB}  # fmt: skip
        self.found[name] = numbers
        print(f"{name:<14}{seconds:>8.1f} s  peak {peak / GB:.2f} GB = {numbers['peak_over_weights']:.3f} x weights",
              file=sys.stderr, flush=True)  # fmt: skip

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM") - self._before


def training(options: Namespace, folder: Path, phases: Phases) -> Numbers:
    """Build the policy, learn by imitation, save."""
    loop = loop_of(options)
    config = DPVLAConfig(encoder=FlorenceConfig(source="large", image_width=options.width, image_height=options.height))
    with empty_parameters():
        parameters = counted(DPVLA.from_config(config))
    made: list[DPVLA] = []

    def weights() -> int:
        return bytes_of(made[0])

    with phases.measure("build", weights):
        torch.manual_seed(0)
        made.append(DPVLA.from_config(config).to(phases.device))
    policy, source = made[0], scenes(config, options.batch_size)
    assert source.whole.plan is not None
    policy.plan_coding.fit(source.whole.plan, source.whole.ego_status)
    policy.precision = loop.precision
    accelerator = make_accelerator(options)
    stage = ImitationStage(policy, source, ImitationConfig(batch_size=options.batch_size), accelerator, 0, _nothing)
    with phases.measure("pretrain_step", weights) as numbers:
        numbers |= pretrain(stage, loop, accelerator, options)
    policy.zero_grad(set_to_none=True)
    with phases.measure("save", weights):
        policy.save_pretrained(folder / "model")
    return parameters


def pretrain(stage: ImitationStage, loop: LoopConfig, accelerator: Accelerator, options: Namespace) -> Numbers:
    """Updates of all weights; the optimizer's memory is free afterwards."""
    update = make_strategy(stage.module, loop, accelerator)
    batches = stage.batches(0, _nothing, update.whole_weights)
    numbers = updates(lambda step: update.step(next(batches), step, 1e-5), options)
    accelerator.free_memory()
    return numbers


def fine_tuning(options: Namespace, folder: Path, phases: Phases) -> Numbers:
    """Load the policy, roll out, train both adapters, sample."""
    loop, loaded = loop_of(options), list[DPVLA]()

    def weights() -> int:
        return bytes_of(loaded[0])

    with phases.measure("load", weights):
        loaded.append(DPVLA.from_pretrained(folder / "model", phases.device))
    policy = loaded[0]
    policy.precision = loop.precision
    algorithm = Dipole(DipoleConfig())
    torch.manual_seed(0)
    policy.add_adapters(algorithm.adapters)
    parameters = counted(policy)
    source, accelerator = scenes(policy.config, options.batch_size), make_accelerator(options)
    rollouts = RolloutConfig(
        group_size=GROUP, batch_size=options.batch_size, scenes_per_call=options.batch_size, epochs_per_cycle=9
    )
    stage = RolloutStage(policy, algorithm, source, distance_along, rollouts, accelerator, 0, folder, _nothing)
    update = make_strategy(stage.module, loop, accelerator)
    batches = stage.batches(0, _nothing, update.whole_weights)
    with phases.measure("roll_out", weights):
        first = next(batches)
    with phases.measure("rl_step", weights) as numbers:
        numbers |= updates(lambda step: update.step(first, step, 1e-4), options)
    policy.eval()
    with phases.measure("sample", weights), torch.no_grad():
        plans = policy.sample(policy.encode(source.batch(range(1)).to(phases.device)), 1)
    if not bool(plans.isfinite().all()):
        raise FloatingPointError("the sampled plan is not finite")
    return parameters


def loop_of(options: Namespace) -> LoopConfig:
    """What is asked for, as a run's config."""
    return LoopConfig(precision=options.precision, recompute=options.recompute, trackers=())


def make_accelerator(options: Namespace) -> Accelerator:
    """Of one process on the device."""
    return Accelerator(cpu=options.device.type == "cpu", mixed_precision=options.precision)


def scenes(config: DPVLAConfig, count: int) -> RandomScenes:
    """At least two: plan statistics need them."""
    return RandomScenes([f"scene{index}" for index in range(max(count, 2))], config.encoder.sensors)


def distance_along(tokens: Sequence[str], plans: Tensor) -> dict[str, Tensor]:
    """A reward that needs no map: how far a plan goes."""
    return {"score": plans[:, :, -1, 0].double()}


def updates(step: Callable[[int], dict[str, Tensor]], options: Namespace) -> Numbers:
    """So many updates: their losses and the seconds of each."""
    seconds, losses = [], []
    for number in range(1, options.updates + 1):
        began = time.perf_counter()
        losses.append(float(step(number)["train/loss"]))
        seconds.append(time.perf_counter() - began)
    if not all(map(torch.isfinite, map(torch.tensor, losses))):
        raise FloatingPointError(f"losses are not finite: {losses}")
    fastest = min(seconds[1:] or seconds)
    return {"update_seconds": seconds, "losses": losses, "scenes_per_s": options.batch_size / fastest}


def counted(policy: DPVLA) -> Numbers:
    """Parameters by part; ``adapter``: of one of them."""
    adapters = policy.adapter_parameters()
    adapter = sum(p.numel() for p in adapters)
    encoder, head = (sum(p.numel() for p in part.parameters()) for part in (policy.encoder, policy.head))
    return {"encoder": encoder, "head": head - adapter, "adapter": adapter // max(1, len(policy.head.adapters)),
            "total": encoder + head}  # fmt: skip


def bytes_of(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@reporting_errors
def main(argv: list[str] | None = None) -> None:
    """Run both halves and, if asked for, write what was found as JSON."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", type=usable_device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=int, default=1, help="scenes of an update")
    parser.add_argument("--updates", type=int, default=2, help="of each kind of training")
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16", help="loop.precision")
    parser.add_argument("--width", type=int, default=768, help="of the images, in pixels")
    parser.add_argument("--height", type=int, default=384, help="of the images, in pixels")
    parser.add_argument(
        "--recompute", choices=["none", "both"],
        help="loop.recompute of pretraining; by default both on the CPU, where 24 GB have to do, and none on a GPU",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the model is written (4.2 GB); default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the outcome here")
    parser.add_argument("--half", choices=HALVES, help="run this one alone and print its numbers; needs --folder")
    options = parser.parse_args(argv)
    options.recompute = options.recompute or ("both" if options.device.type == "cpu" else "none")
    if options.half:
        phases = Phases(options.device)
        half = training if options.half == "training" else fine_tuning
        parameters = half(options, options.folder, phases)
        print(json.dumps({"parameters": parameters, "phases": phases.found}))
        return
    if options.json:
        try:
            check_file(options.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    arguments = list(sys.argv[1:] if argv is None else argv)
    found: dict[str, Numbers] = {"parameters": {}, "phases": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for half_name in HALVES:
            command = [sys.executable, __file__, *arguments, "--half", half_name]
            command += ["--folder", str(options.folder or temporary)]
            # Otherwise glibc keeps freed tensors of up to 32 MB, and the peak says little of what was needed.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{half_name} ended with status {done.returncode}")
            for key, numbers in json.loads(done.stdout.splitlines()[-1]).items():
                found[key] |= numbers
    parts = ", ".join(f"{name} {count:,}" for name, count in found["parameters"].items())
    print(f"parameters: {parts}")
    if options.json:
        settings = {name: str(value) if isinstance(value, Path | torch.device) else value
                    for name, value in vars(options).items() if name not in ("json", "half", "folder")}  # fmt: skip
        write_json(options.json, found | {"settings": settings, "provenance": made_by(0, options.device)})


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _status(key: str) -> int:
    """Bytes that the kernel states under this name."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _nothing(*_: Any, **__: Any) -> None:
    """Neither logs nor describes."""


if __name__ == "__main__":
    main()
