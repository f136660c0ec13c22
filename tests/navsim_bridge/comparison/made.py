"""A comparison in a folder, and tools that pretend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from navsim_bridge.comparison.cells import SHOWN
from navsim_bridge.comparison.config import ComparisonConfig
from navsim_bridge.comparison.jobs import Jobs
from navsim_bridge.comparison.rows import Rows

PROTOCOL: dict[str, Any] = {
    "pretrain": "pretrain.yaml",
    "metrics": ["pdms"],
    "finetune": {"rollouts": {"group_size": 2, "cycles": 2, "scenes_per_cycle": 4, "batch_size": 2,
                              "epochs_per_cycle": 1}},
    "minutes": {"imitation": 4, "finetune": 2, "evaluation": 1},
}  # fmt: skip
ROWS: dict[str, Any] = {
    "rows": {
        "still": {"title": "stand still", "agent": "stand_still"},
        "imitation": {"title": "imitation"},
        "dipole": {"title": "DIPOLE", "algorithm": {"name": "dipole", "beta": 2}, "grid": {"algorithm.beta": [1, 2]}},
        "control": {"like": "dipole", "algorithm": {"beta": 0}},
    },
    "bootstrap": 100,
}

TOOL = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
out = Path(words[words.index("--out") + 1])
with open(Path(__file__).parent / "called.txt", "a") as file:
    file.write(f"{Path(__file__).stem} {out}\\n")
if (Path(__file__).parent / "fail").exists() and (Path(__file__).parent / "fail").read_text() in str(out):
    print("before")
    print("error: it did not work", file=sys.stderr)
    sys.exit(1)
if Path(__file__).stem == "evaluate":
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text("{}")
else:
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
"""


def write(folder: Path, protocol: dict[str, Any] | None = None, rows: dict[str, Any] | None = None) -> ComparisonConfig:
    """The files of a comparison, and its options."""
    (folder / "pretrain.yaml").write_text("split: navtrain\n")
    (folder / "protocol.yaml").write_text(yaml.safe_dump({**PROTOCOL, **(protocol or {})}, sort_keys=False))
    (folder / "rows.yaml").write_text(yaml.safe_dump({**ROWS, **(rows or {})}, sort_keys=False))
    return ComparisonConfig(
        table="4", rows=str(folder / "rows.yaml"), protocol=str(folder / "protocol.yaml"), out=str(folder / "out")
    )


def jobs_of(config: ComparisonConfig) -> tuple[Rows, Jobs]:
    """Rows and jobs of a comparison whose data is nowhere."""
    rows = Rows(config.rows, config.protocol, Path(config.out))
    return rows, Jobs(config, rows, Path("data"), Path("data/maps"))


def pretended_tools(folder: Path) -> Path:
    """Tools that leave what finished ones leave, and note that they were called."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("pretrain.py", "rl_finetune.py", "evaluate.py"):
        (tools / name).write_text(TOOL)
    return tools


def called(tools: Path) -> list[str]:
    """Which tools were called, in order."""
    path = tools / "called.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def scored(folder: Path, scores: dict[str, float], fingerprint: str = "same") -> None:
    """An evaluation as ``tools/evaluate.py`` leaves it: the score alone."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = sum(scores.values()) / len(scores)
    columns = [*SHOWN, "score"]
    summary = {
        "scenes": len(scores),
        "averages": dict.fromkeys(columns, mean),
        "split": "navval",
        "data_fingerprint": fingerprint,
        "provenance": {"git_commit": "abc"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [f"token,valid,{','.join(columns)},reason"]
    for token, score in {**scores, "average_all_frames": mean}.items():
        lines.append(f"{token},True,{','.join([str(score)] * len(columns))},because")
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
