"""What ``benchmarks/gpu_check.sh`` runs: each part of the toolkit on the GPU, whether it is right and how fast.

A part that fails is reported with the last line of its error, and the next one runs. Sizes are the paper's (Florence-2
large and the 475M-parameter head, random weights, bf16) on a GPU, and toy ones on a machine without.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import dual_adapters
import numpy as np
import pdm_speed
import state_based_speed
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from random_scenes import RandomScenes, write_jpeg
from torch import Tensor

from dpvla.algorithms.config import DipoleConfig
from dpvla.algorithms.dipole import Dipole
from dpvla.cli import reporting_errors
from dpvla.costs.plan import outlined
from dpvla.encoders.config import FlorenceConfig
from dpvla.files import write_json
from dpvla.models import DPVLA, DPVLAConfig
from dpvla.models.flops import count_flops, on_meta
from dpvla.provenance import made_by
from dpvla.rl.config import RolloutConfig
from dpvla.rl.stage import RolloutStage
from dpvla.state_based.agents.dipole import DipoleAgentConfig
from dpvla.state_based.agents.registry import make_agent
from dpvla.state_based.data.replay import Replay
from dpvla.state_based.running.loop_config import STATE_BASED_LOOP, UpdateConfig
from dpvla.state_based.running.update import StackedUpdate
from dpvla.training.config import ImitationConfig, LoopConfig
from dpvla.training.imitation import ImitationStage
from dpvla.training.strategies.registry import make_strategy
from navsim_bridge.data.images import read_images, read_images_on_gpu
from navsim_bridge.doctor.scores import BUNDLED
from navsim_bridge.golden.v1 import FRAGILE_COLUMNS, GoldenScene, read_golden
from navsim_bridge.golden.v2 import read_golden_epdms
from navsim_bridge.metrics.pdms import PDMS
from navsim_bridge.metrics.reward import MetricReward
from navsim_bridge.pdm import SUB_SCORES, EPDMSBatch, MetricScene, SceneBatch, epdms_terms, score_plans
from tools import evaluate, make_demo_world, pretrain, rl_finetune

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
SECONDS = 460.0
"""All parts together; the one that runs then is stopped, and the rest are not begun."""
TOLERANCE = 1e-6
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Datasheets' bf16 rate without sparsity."""
Numbers = dict[str, float | int | str]


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    seconds: float  # each speed is measured at least so long
    pdm_row: tuple[int, int]  # scenes x candidates
    scenes: int  # that pretraining and RL have
    pretrain_batch: int  # scenes of an update, activations kept
    recomputed_batch: int  # the paper's 16, with the encoder's activations computed again in the backward pass
    picture: tuple[int, int]  # width and height of a camera's JPEG
    rollouts: RolloutConfig
    state_hidden: tuple[int, ...]
    state_batch: int
    state_per_step: int  # updates of one launch, and of one graph
    state_seeds: int  # of the larger stack
    peft_case: tuple[str, int, int, int]  # head, scenes, candidates, tokens
    world: tuple[str, ...]  # options of tools/make_demo_world.py


FULL = Sizes(
    4.0, (1024, 24), 64, 8, 16, (1920, 1080),
    RolloutConfig(group_size=10, batch_size=16, scenes_per_call=32, epochs_per_cycle=2),
    (512, 512, 512), 256, 10, 8, ("paper", 8, 10, 875),
    ("--num-train-logs", "4", "--num-test-logs", "2", "--log-seconds", "22", "--image-width", "160", "--image-height",
     "90"),
)  # fmt: skip
TOY = Sizes(
    0.2, (3, 4), 4, 2, 2, (192, 108),
    RolloutConfig(group_size=3, batch_size=2, scenes_per_call=2, epochs_per_cycle=1),
    (16, 16), 8, 2, 2, ("tiny", 1, 2, 10),
    ("--num-train-logs", "1", "--num-test-logs", "1", "--log-seconds", "12", "--image-width", "96", "--image-height",
     "48", "--workers", "1"),
)  # fmt: skip


@dataclass
class Check:
    """What the parts share."""

    device: torch.device
    sizes: Sizes
    folder: Path  # for whatever they write
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(precision="bf16", trackers=()))

    @property
    def on_gpu(self) -> bool:
        """Whether this is about a GPU at all."""
        return self.device.type == "cuda"

    @cached_property
    def golden(self) -> list[GoldenScene]:
        """The bundled scenes with official scores, and the tests' where they are there; each once."""
        paths = {path.stem.removeprefix("public_"): path for folder in (FIXTURES / "golden_v1", BUNDLED)
                 for path in folder.glob("*.npz")}  # fmt: skip
        return [read_golden(path) for _, path in sorted(paths.items())]

    @cached_property
    def source(self) -> RandomScenes:
        """Random pictures of the golden scenes."""
        tokens = [item.scene.token for item in self.golden]
        chosen = tuple(tokens[i % len(tokens)] for i in range(self.sizes.scenes))
        return RandomScenes(chosen, self.config.encoder.sensors)

    @cached_property
    def reward(self) -> MetricReward:
        """The PDM score of the golden scenes."""
        return MetricReward(PDMS(), GoldenScenes(self.golden), self.device)

    @property
    def config(self) -> DPVLAConfig:
        """The paper's policy, or the same in miniature."""
        if self.on_gpu:
            return DPVLAConfig(encoder=FlorenceConfig(source="large"))
        small = FlorenceConfig(source="tiny", image_width=96, image_height=48)
        return replace(DPVLAConfig.tiny(), encoder=small)

    @cached_property
    def policy(self) -> DPVLA:
        """Random weights of the policy, on the device; what is done to it stays for the next part."""
        return self.fresh_policy()

    def fresh_policy(self) -> DPVLA:
        """Another one with the same weights."""
        torch.manual_seed(0)
        policy = DPVLA.from_config(self.config)
        whole = self.source.whole
        assert whole.plan is not None
        policy.plan_coding.fit(whole.plan, whole.ego_status)
        policy.precision = self.loop.precision
        return policy.to(self.device)

    @cached_property
    def imitation_flops(self) -> int:
        """Of an update, for one scene."""
        counted = on_meta(outlined(self.config)).train()  # not of a policy that another part has frozen
        return count_flops(lambda: counted.imitation_loss(counted.encoder.fake_batch(1).to("meta"))[0].backward())

    @property
    def peak_tflops(self) -> float | None:
        """Of the GPU in dense bf16, where its datasheet is known here."""
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else ""
        return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)

    def accelerator(self) -> Accelerator:
        """A fresh one on the device."""
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=not self.on_gpu, mixed_precision=self.loop.precision)

    def seconds(self, work: Callable[[], object]) -> float:
        """How long ``work`` takes, the device waited for."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def rate(self, work: Callable[[], object]) -> float:
        """How often a second ``work`` can be done; twice before for warming up."""
        work(), work()
        done, spent = 0, 0.0
        while spent < self.sizes.seconds:
            done, spent = done + 1, spent + self.seconds(work)
        return done / spent

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def peak_gib(self) -> Numbers:
        """Memory that was allocated at most since the last call."""
        if not self.on_gpu:
            return {}
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return {"peak_gib": peak}


class GoldenScenes:
    """Golden scenes as a reward asks for them."""

    def __init__(self, golden: Sequence[GoldenScene]) -> None:
        self._scenes = {item.scene.token: item.scene for item in golden}
        self.tokens = tuple(self._scenes)

    def load(self, tokens: Sequence[str]) -> list[MetricScene]:
        """The scenes of ``tokens``."""
        return [self._scenes[token] for token in tokens]

    def require(self, tokens: Sequence[str]) -> None:
        """All are there."""


# ---------------------------------------------------------------------- parts


def pdm(check: Check) -> Numbers:
    """PDM on the device: equal to the CPU's and to the official scores, plans a second."""
    golden = check.golden
    batch = SceneBatch.from_scenes([item.scene for item in golden])
    plans = torch.from_numpy(np.stack([item.proposals for item in golden]))
    here, there = score_plans(batch, plans), score_plans(batch.to(check.device), plans).to("cpu")
    fragile = np.stack([item.results["dbg_fragile"] for item in golden])
    compared, differ, off = 0, 0, 0
    for name in SUB_SCORES:
        firm = ~fragile[..., list(FRAGILE_COLUMNS[name])].any(-1)
        ours, cpus = getattr(there, name).numpy(), getattr(here, name).numpy()
        official = np.stack([item.results[f"res_{name}"] for item in golden])
        compared += int(firm.sum())
        differ += int((np.abs(ours - cpus)[firm] > TOLERANCE).sum())
        off += int((np.abs(ours - official)[firm] > TOLERANCE).sum())
    if differ or off:
        raise ValueError(f"of {compared} sub-scores {differ} differ from the CPU's and {off} from the official ones")
    row = pdm_speed.measure(golden, *check.sizes.pdm_row, str(check.device), check.sizes.seconds, None)
    return {"scenes": len(golden), "sub_scores_equal": compared, "plans_per_s": row["plans_per_s"]} | check.peak_gib()


def epdms(check: Check) -> Numbers:
    """EPDMS on the device equals the CPU's."""
    paths = sorted((FIXTURES / "golden_v2").glob("*.npz"))
    if not paths:
        return {"skipped": f"no scenes in {FIXTURES / 'golden_v2'}"}
    paths = paths if check.on_gpu else paths[:2]
    files = [read_golden_epdms(path) for path in paths]
    firm = [~np.load(FIXTURES / "golden_v1" / path.name)["dbg_fragile"].any(-1) for path in paths]
    batch = EPDMSBatch.from_scenes([file.scene for file in files])
    plans = torch.from_numpy(np.stack([file.proposals for file in files]))
    here, there = epdms_terms(batch, plans).values, epdms_terms(batch.to(check.device), plans).values.cpu()
    apart = (here - there).abs()[torch.from_numpy(np.stack(firm))]
    if not bool((apart <= TOLERANCE).all()):
        raise ValueError(f"of {apart.numel()} sub-scores {int((apart > TOLERANCE).sum())} differ from the CPU's")
    return {"scenes": len(files), "sub_scores_equal": apart.numel()}


def state_based(check: Check) -> Numbers:
    """DIPOLE's state-based update of one seed and of several: equal losses with a CUDA graph, updates a second.

    TF32 is on, as in training.
    """
    numbers: Numbers = {}
    for seeds in (1, check.sizes.state_seeds):
        loss, rate = state_based_updates(check, seeds, graph=False)
        numbers[f"updates_per_s_{seeds}"] = rate
        if check.on_gpu:
            captured, captured_rate = state_based_updates(check, seeds, graph=True)
            if not abs(captured - loss) <= 1e-3 * abs(loss):
                raise ValueError(f"with a CUDA graph the loss of {seeds} seeds is {captured}, without {loss}")
            numbers |= {f"updates_per_s_{seeds}_cuda_graph": captured_rate}
            numbers |= {f"minutes_per_million_{seeds}": 1e6 / captured_rate / 60}
    return numbers | check.peak_gib()


def state_based_updates(check: Check, seeds: int, graph: bool) -> tuple[float, float]:
    """Loss of the first updates, and updates a second of every seed."""
    config = DipoleAgentConfig(hidden=check.sizes.state_hidden, batch_size=check.sizes.state_batch)
    numbers = list(range(seeds))
    agent = make_agent("dipole", config, state_based_speed.OBSERVATION, state_based_speed.ACTION, numbers).to(
        check.device
    )
    replay = Replay(state_based_speed.synthetic_rows(), numbers, device=check.device)
    stride = check.sizes.state_per_step
    update = StackedUpdate(agent, STATE_BASED_LOOP, UpdateConfig(per_step=stride, cuda_graph=graph))
    steps = itertools.count(stride, stride)
    first = update.step(replay, next(steps), 3e-4)["train/loss"]
    return float(first), stride * check.rate(lambda: update.step(replay, next(steps), 3e-4))


def pretraining(check: Check) -> Numbers:
    """Updates of imitation, all weights, in bf16."""
    return imitation_updates(check, check.sizes.pretrain_batch, check.loop)


def pretraining_recomputed(check: Check) -> Numbers:
    """The same at the paper's batch, which needs less memory a scene where the encoder is run twice."""
    return imitation_updates(check, check.sizes.recomputed_batch, replace(check.loop, recompute="encoder"))


def pretraining_compiled(check: Check) -> Numbers:
    """The same with encoder and head compiled; compiling comes first and is told apart."""
    return imitation_updates(check, check.sizes.pretrain_batch, replace(check.loop, compile=True))


def imitation_updates(check: Check, scenes: int, loop: LoopConfig) -> Numbers:
    """Updates a second, and the part of the GPU's bf16 rate that the model's own FLOPs make (MFU)."""
    policy = check.fresh_policy()  # what is compiled or recomputed stays so
    accelerator = check.accelerator()
    stage = ImitationStage(policy, check.source, ImitationConfig(batch_size=scenes), accelerator, 0, _nothing)
    update = make_strategy(stage.module, loop, accelerator)
    batches = stage.batches(0, _nothing, update.whole_weights)
    infos: list[dict[str, Tensor]] = []
    work = lambda: infos.append(update.step(next(batches), len(infos) + 1, 1e-5))  # noqa: E731
    first = check.seconds(work)
    rate = check.rate(work)
    losses = _finite(infos)
    tflop = check.imitation_flops / 1e12
    numbers: Numbers = {
        "batch": scenes, "first_s": first, "updates_per_s": rate, "scenes_per_s": rate * scenes,
        "tflop_per_scene": tflop, "last_loss": losses[-1],
    }  # fmt: skip
    if (peak := check.peak_tflops) is not None:
        numbers["mfu"] = rate * scenes * tflop / peak
    return numbers | check.peak_gib()


def latency(check: Check) -> Numbers:
    """Milliseconds from three JPEGs to a plan: decoding on CPU and GPU, encoding, ten guided solver steps."""
    policy = check.fresh_policy().eval()
    policy.add_adapters(Dipole(DipoleConfig()).adapters)
    policy.sampling = Dipole(DipoleConfig()).sampling()
    policy.to(check.device)
    sensors, batch = policy.encoder.sensors, check.source.batch([0])
    size = (sensors.width, sensors.height)
    paths = [write_jpeg(check.folder / f"{camera}.jpg", check.sizes.picture) for camera in sensors.cameras]

    def decoded_by_cpu() -> Tensor:
        return torch.from_numpy(read_images(paths, size, workers=len(paths))).to(check.device)

    def decoded_by_gpu() -> Tensor:
        return read_images_on_gpu(paths, size, check.device)

    there = batch.to(check.device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        context = policy.encode(there)
        parts: dict[str, Callable[[], object]] = {
            "decode_cpu": decoded_by_cpu,
            "encode": lambda: policy.encode(there),
            "sample": lambda: policy.sample(context, 1, generator=generator),
            "all": lambda: policy.sample(
                policy.encode(replace(batch, images=decoded_by_cpu()[None]).to(check.device)), 1, generator=generator
            ).cpu(),
        }
        if check.on_gpu:
            parts["decode_gpu"] = decoded_by_gpu
        return {f"{name}_ms": 1e3 / check.rate(work) for name, work in parts.items()} | check.peak_gib()


def rl_cycle(check: Check) -> Numbers:
    """Roll out, score, and both adapters' updates."""
    config, accelerator, policy = check.sizes.rollouts, check.accelerator(), check.policy
    algorithm = Dipole(DipoleConfig())
    if not policy.has_adapters:
        policy.add_adapters(algorithm.adapters)
    stage = RolloutStage(policy, algorithm, check.source, check.reward, config, accelerator, 0, check.folder, _nothing)
    update = make_strategy(stage.module, check.loop, accelerator)
    batches = stage.batches(0, _nothing, update.whole_weights)
    first: list[Any] = []
    rolling = check.seconds(lambda: first.append(next(batches)))
    infos = [update.step(first[0], 1, 1e-4)]
    plans = len(check.source) * config.group_size
    rate = check.rate(lambda: infos.append(update.step(first[0], len(infos) + 1, 1e-4)))
    _finite(infos)
    numbers = rl_split(check, policy) | {"updates_per_s": rate, "rolled_out_plans_per_s": plans / rolling}
    return numbers | check.peak_gib()


def rl_split(check: Check, policy: DPVLA) -> Numbers:
    """Milliseconds a scene of each piece of a cycle before its updates."""
    config = check.sizes.rollouts
    scenes = min(config.scenes_per_call, len(check.source))
    batch = check.source.batch(range(scenes)).to(check.device)
    policy.eval()
    with torch.no_grad():
        context = policy.encode(batch)
        plans = policy.sample(context, config.group_size)
        pieces: dict[str, Callable[[], object]] = {
            "encode": lambda: policy.encode(batch),
            "sample": lambda: policy.sample(context, config.group_size),
            "score": lambda: check.reward(batch.tokens, plans.cpu()),
        }
        return {f"{name}_ms_per_scene": 1e3 / check.rate(work) / scenes for name, work in pieces.items()}


def adapters_beside_peft(check: Check) -> Numbers:
    """Both adapters in one pass beside PEFT's two: see benchmarks/dual_adapters.py."""
    case = dual_adapters.Case(*check.sizes.peft_case, check.device)
    found = dual_adapters.measure(case, 10, 3)
    return {name: value for name, value in found.items() if name != "seconds"} | check.peak_gib()


def evaluation(check: Check) -> Numbers:
    """Loss and PDM score of one sample a scene, as between pretraining updates."""
    config, accelerator = ImitationConfig(validation_scenes=min(16, check.sizes.scenes)), check.accelerator()
    stage = ImitationStage(
        check.policy.eval(), check.source, config, accelerator, 0, _nothing, check.source, check.reward
    )
    found = dict(stage.evaluate(0))
    if not np.isfinite(list(found.values())).all():
        raise ValueError(f"evaluation gave {found}")
    seconds = check.seconds(lambda: stage.evaluate(0))
    return {"scenes_per_s": config.validation_scenes / seconds, "score": found["validation/score"]} | check.peak_gib()


def command_lines(check: Check) -> Numbers:
    """The tools as users start them, on a demo world of the smallest size."""
    world, runs = check.folder / "world", check.folder / "runs"
    roots = ["--data-root", str(world), "--maps-root", str(world / "maps")]
    steps = ["--split", "navtrain_all", "--workers", "1", "--loop.precision", "bf16"]
    configs = ROOT / "configs"
    jobs: dict[str, tuple[Callable[[Sequence[str]], None], list[str]]] = {
        "world_s": (make_demo_world.main, ["--root", str(world), "--quiet", *check.sizes.world]),
        "pretrain_s": (pretrain.main, ["--config", str(configs / "pretrain_demo.yaml"), *roots, *steps,
                       "--out", str(runs / "pretrain"), "--image-cache", str(check.folder / "images"),
                       "--validation-logs", "0", "--imitation.batch-size", "2", "--loop.steps", "4"]),
        "rl_finetune_s": (rl_finetune.main, ["--config", str(configs / "dipole_demo.yaml"), *roots, *steps,
                          "--checkpoint", str(runs / "pretrain"), "--out", str(runs / "dipole"),
                          "--image-cache", str(check.folder / "images"), "--rollouts.group-size", "4",
                          "--rollouts.batch-size", "2", "--rollouts.scenes-per-cycle", "4", "--rollouts.cycles", "1",
                          "--rollouts.epochs-per-cycle", "1"]),
        "evaluate_s": (evaluate.main, ["--agent", "dpvla", "--split", "navtest_all", "--checkpoint",
                       str(runs / "dipole"), "--out", str(runs / "scores"), *roots]),
    }  # fmt: skip
    numbers: Numbers = {}
    for name, (tool, options) in jobs.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        with redirect_stdout(sys.stderr):
            numbers[name] = check.seconds(lambda tool=tool, options=options: tool(options))  # type: ignore[misc]
    return numbers


def tests(check: Check) -> Numbers:
    """The tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--durations=0", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    if done.returncode or (check.on_gpu and not counts.get("passed")):
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise ValueError(f"{counts}, first {failed[0]}" if failed else f"pytest ended with {done.returncode}: {last}")
    return dict(counts)


PARTS: dict[str, Callable[[Check], Numbers]] = {
    part.__name__: part
    for part in (
        tests, pdm, epdms, state_based, rl_cycle, evaluation, command_lines, latency, adapters_beside_peft, pretraining,
        pretraining_recomputed, pretraining_compiled,
    )
}  # fmt: skip


# ---------------------------------------------------------------------- running them


@dataclass(frozen=True)
class Outcome:
    """What came of a part."""

    part: str
    ok: bool
    seconds: float
    numbers: Numbers
    error: str = ""

    def __str__(self) -> str:
        told = self.error or ", ".join(f"{name} {_short(value)}" for name, value in self.numbers.items())
        return f"{self.part:<14}{'ok' if self.ok else 'FAILED':<8}{self.seconds:>6.1f} s  {told}"


def run_part(name: str, check: Check, limit: float) -> Outcome:
    """Run a part for at most ``limit`` seconds; whatever it raises becomes part of the outcome."""
    began = time.perf_counter()
    numbers: Numbers = {}
    error = ""
    try:
        with stopped_after(limit):
            numbers = PARTS[name](check)
    except (Exception, SystemExit) as raised:  # a tool that refuses its options exits
        error = f"{type(raised).__name__}: {raised}".strip().splitlines()[-1]
    gc.collect()
    if check.on_gpu:
        torch.cuda.empty_cache()
    return Outcome(name, not error, time.perf_counter() - began, numbers, error)


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the work inside takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s: the whole check may take {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Run the parts, print the table and, if asked for, write it as JSON; 1 if a part failed."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to check")
    parser.add_argument("--json", type=Path, help="write the outcome here")
    options = parser.parse_args(argv)
    began, on_gpu = time.perf_counter(), torch.cuda.is_available()
    made = made_by()
    if on_gpu:
        print(f"{made['device']}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    else:
        print(f"no GPU: torch {torch.__version__} finds no CUDA device; toy sizes on the CPU, no number says anything")
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        check = Check(device, FULL if on_gpu else TOY, Path(folder))
        outcomes = []
        for name in options.parts:
            outcomes.append(run_part(name, check, SECONDS - (time.perf_counter() - began)))
            print(outcomes[-1], flush=True)
    passed = all(outcome.ok for outcome in outcomes)
    print(f"\n{'part':<14}{'':<8}{'':>8}" + "\n" + "\n".join(map(str, outcomes)))
    print("all parts passed" if passed else f"FAILED: {', '.join(o.part for o in outcomes if not o.ok)}")
    if options.json:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        seconds = time.perf_counter() - began
        about = {"passed": passed, "on_gpu": on_gpu, "seconds": seconds, "parts": rows, "provenance": made}
        write_json(options.json, about)
    return 0 if passed else 1


def _finite(infos: Sequence[dict[str, Tensor]]) -> list[float]:
    losses = [float(info["train/loss"]) for info in infos]
    if not np.isfinite(losses).all():
        raise ValueError(f"losses are not finite: {losses}")
    return losses


def _nothing(*_: Any, **__: Any) -> None:
    """Neither logs nor describes."""


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
