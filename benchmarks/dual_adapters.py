"""What it costs to run two adapters on one head, beside PEFT's way: one whole pass after the other.

    python benchmarks/dual_adapters.py --json dual_adapters.json            # the paper's head at an eighth of its depth
    python benchmarks/dual_adapters.py --device cuda --preset paper --json dual_adapters.json

All see the same head, the same adapters (written by ours, read by PEFT), scenes, plans and noise. Ours prepares a scene
once for all its candidates and runs both adapters in one pass. PEFT's user calls the wrapped head, once after each
``set_adapter``, and may save work in two ways of this head that PEFT itself does not bring:

    rows      none: every candidate is a row of its own with its scene's tokens, as diffusion transformers are called
    shared    the candidates of a scene share its tokens, as they do here
    prepared  the same, and keys and values are kept through the solver's steps, one set an adapter (sampling alone)

In training each of PEFT's passes has its own backward: with one backward for both, the adapter that was set first gets
no gradient.

The JSON holds our time over PEFT's as ``sampling_ratio`` and ``training_ratio`` (rows), ``sampling_ratio_shared``,
``training_ratio_shared`` and ``sampling_ratio_prepared``, medians of passes that take turns, and
``largest_difference`` between the outputs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from dpvla.cli import reporting_errors
from dpvla.diffusion import combine
from dpvla.files import check_file, write_json
from dpvla.models.adapter_files import save_adapters
from dpvla.models.adapters import adaptable_layers, adapter_parameters, add_adapters
from dpvla.models.config import HeadConfig
from dpvla.models.head import Condition, DiTHead
from dpvla.plan import NUM_POSES
from dpvla.provenance import made_by

ADAPTERS = ("positive", "negative")
PRESETS = {
    "paper": HeadConfig(),
    "eighth": HeadConfig(blocks=("3 modulated self mlp", "1 plain self cross mlp")),
    "tiny": HeadConfig(preset="tiny"),
}
CHANNELS, CONTEXT_WIDTH = 4, 1024
OMEGA = 1.0


class Case:
    """One head with two adapters, ours and PEFT's, and what both are asked for."""

    def __init__(self, preset: str, scenes: int, candidates: int, tokens: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.head = DiTHead(PRESETS[preset], CHANNELS, CONTEXT_WIDTH)
        for parameter in self.head.parameters():
            torch.nn.init.normal_(parameter, std=0.02)  # adaLN-Zero gives zeros, which every way gives alike
        bare = DiTHead(PRESETS[preset], CHANNELS, CONTEXT_WIDTH)
        bare.load_state_dict(self.head.state_dict())
        add_adapters(self.head, ADAPTERS, 16, 16.0)
        for layer in adaptable_layers(self.head).values():
            torch.nn.init.normal_(layer.adapter_up, std=0.02)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            save_adapters(self.head, folder)
            self.peft = PeftModel.from_pretrained(
                bare, Path(folder) / ADAPTERS[0], adapter_name=ADAPTERS[0], is_trainable=True
            )
            self.peft.load_adapter(str(Path(folder) / ADAPTERS[1]), adapter_name=ADAPTERS[1], is_trainable=True)
        self.head.requires_grad_(False).to(device)
        self.peft.to(device)
        self.trained = adapter_parameters(self.head)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.plans = torch.randn(scenes, candidates, NUM_POSES, CHANNELS, device=device)
        self.levels = torch.rand(scenes, candidates, device=device)
        condition = Condition(torch.zeros(scenes, dtype=torch.int64), torch.randn(scenes, 4), torch.randn(scenes, 3, 3))
        self.condition = Condition(
            *(getattr(condition, name).to(device) for name in ("command", "ego_status", "history"))
        )
        self.tokens = torch.randn(scenes, tokens, CONTEXT_WIDTH, device=device)

    def autocast(self) -> Any:
        """bf16 on a GPU, as training does there."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def ours_sampling(self, steps: int) -> Tensor:
        """Both adapters in one pass, the scene prepared once."""
        with self.autocast():
            prepared = self.head.prepare(self.tokens, None, self.condition, ADAPTERS)
            return self._solve(steps, lambda x, t: self.head.denoise(x, t, prepared))

    @torch.no_grad()
    def peft_sampling(self, steps: int, way: str) -> Tensor:
        """One adapter after the other."""
        head: Any = self.peft.base_model.model
        kept: dict[str, Any] = {}

        def outputs(x: Tensor, t: Tensor) -> list[Tensor]:
            found = []
            for name in ADAPTERS:
                self.peft.set_adapter(name)
                found.append(head.denoise(x, t, kept[name])[0] if kept else self._peft_output(x, t, way))
            return found

        with self.autocast():
            for name in ADAPTERS if way == "prepared" else ():
                self.peft.set_adapter(name)
                kept[name] = head.prepare(self.tokens, None, self.condition)
            return self._solve(steps, outputs)

    def _peft_output(self, x: Tensor, t: Tensor, way: str) -> Tensor:
        """Of the adapter that is set: (scene, candidate, pose, channel)."""
        if way == "shared":
            output: Tensor = self.peft(x, t, self.tokens, None, self.condition)[0]
            return output
        rows, one = x.flatten(0, 1)[:, None], t.flatten()[:, None]
        tokens = self.tokens.repeat_interleave(x.shape[1], dim=0)
        parts = (self.condition.command, self.condition.ego_status, self.condition.history)
        condition = Condition(*(part.repeat_interleave(x.shape[1], dim=0) for part in parts))
        output = self.peft(rows, one, tokens, None, condition)[0]
        return output.view_as(x)

    def _solve(self, steps: int, outputs: Callable[[Tensor, Tensor], Any]) -> Tensor:
        """Euler steps: the solver is not what is measured."""
        x = self.plans
        for step in range(steps):
            positive, negative = outputs(x, self.levels * 0 + 1 - step / steps)
            x = x - combine(positive.float(), negative.float(), OMEGA) / steps
        return x

    # ------------------------------------------------------------------ training

    def ours_training(self) -> None:
        """One pass and one backward for both."""
        with self.autocast():
            output = self.head(self.plans, self.levels, self.tokens, None, self.condition, ADAPTERS)
        output.float().square().mean().backward()
        for parameter in self.trained:
            parameter.grad = None

    def peft_training(self, way: str) -> None:
        """Two passes, each with its backward."""
        for name in ADAPTERS:
            self.peft.set_adapter(name)
            with self.autocast():
                output = self._peft_output(self.plans, self.levels, way)
            output.float().square().mean().backward()
        self.peft.zero_grad(set_to_none=True)


def measure(case: Case, steps: int, passes: int) -> dict[str, Any]:
    """Median seconds of each way, the ways taking turns, and the ratios."""
    first = case.peft_sampling(steps, "rows")
    apart = float((case.ours_sampling(steps) - first).abs().max() / first.abs().max())
    ways: dict[str, Callable[[], object]] = {
        "ours_sampling": lambda: case.ours_sampling(steps),
        "peft_sampling_rows": lambda: case.peft_sampling(steps, "rows"),
        "peft_sampling_shared": lambda: case.peft_sampling(steps, "shared"),
        "peft_sampling_prepared": lambda: case.peft_sampling(steps, "prepared"),
        "ours_training": case.ours_training,
        "peft_training_rows": lambda: case.peft_training("rows"),
        "peft_training_shared": lambda: case.peft_training("shared"),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(passes + 1):
        for name, work in ways.items():
            seconds = _timed(work, case.device)
            if turn:  # the first warms up
                spent[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "sampling_ratio": medians["ours_sampling"] / medians["peft_sampling_rows"],
        "sampling_ratio_shared": medians["ours_sampling"] / medians["peft_sampling_shared"],
        "sampling_ratio_prepared": medians["ours_sampling"] / medians["peft_sampling_prepared"],
        "training_ratio": medians["ours_training"] / medians["peft_training_rows"],
        "training_ratio_shared": medians["ours_training"] / medians["peft_training_shared"],
        "largest_difference": apart,
        "seconds": medians,
    }


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """CPU seconds on the CPU, where other jobs run; wall seconds on a GPU, waited for."""
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


@reporting_errors
def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="eighth", help="the head")
    parser.add_argument("--scenes", type=int, default=2, help="scenes together")
    parser.add_argument("--candidates", type=int, default=10, help="plans of a scene")
    parser.add_argument("--tokens", type=int, default=875, help="context tokens (875: three cameras at 768 x 384)")
    parser.add_argument("--steps", type=int, default=10, help="solver steps")
    parser.add_argument("--passes", type=int, default=5, help="measured passes of each way")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(argv)
    sizes = ("scenes", "candidates", "tokens", "steps", "passes")
    for name in sizes:
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, found {getattr(options, name)}")
    if options.json:
        try:
            check_file(options.json)
        except OSError as error:
            parser.error(f"--json: {error}")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no CUDA device")
    case = Case(options.preset, options.scenes, options.candidates, options.tokens, torch.device(options.device))
    found = measure(case, options.steps, options.passes)
    for name, value in found.items():
        if name != "seconds":
            print(f"{name:<26}{value:.3g}")
    for name, value in found["seconds"].items():
        print(f"{name:<26}{value:.4f} s")
    if options.json:
        about = {name: getattr(options, name) for name in ("preset", *sizes)}
        write_json(options.json, found | about | {"provenance": made_by(device=options.device)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
