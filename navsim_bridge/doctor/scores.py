"""Does scoring give here what the official code gave?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from navsim_bridge.doctor.finding import ERROR, Finding, verdict

BUNDLED = Path(__file__).parent / "scenes"
TOLERANCE = 1e-6


def check_scores(folder: Path = BUNDLED) -> Iterator[Finding]:
    """Score the bundled scenes and compare with what the official code gave for them."""
    import torch

    from navsim_bridge.golden.v1 import FRAGILE_COLUMNS, read_golden
    from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans
    from navsim_bridge.pdm.compiled import choice

    paths = sorted(folder.glob("*.npz"))
    if not paths:
        yield Finding(ERROR, f"the bundled scenes are missing from {folder}", "reinstall dpvla")
        return
    compared, wrong = 0, []
    for path in paths:
        golden = read_golden(path)
        plans = torch.from_numpy(golden.proposals.astype(np.float64))[None]
        found = score_plans(SceneBatch.from_scenes([golden.scene]), plans)
        for name in SUB_SCORES:
            fragile = golden.results["dbg_fragile"][:, list(FRAGILE_COLUMNS[name])].any(axis=1)
            difference = np.abs(getattr(found, name)[0].numpy() - golden.results[f"res_{name}"])
            compared += int((~fragile).sum())
            wrong += [f"{path.stem} plan {i} {name}" for i in np.flatnonzero(~(difference <= TOLERANCE) & ~fragile)]
    differ = f"{len(wrong)} of {compared} sub-scores of the bundled scenes differ from the official ones, first "
    yield verdict(
        differ + wrong[0] if wrong else "",
        "do not trust scores made here: reinstall torch and numpy, and report this with the lines above",
        f"PDM score v1: {compared} sub-scores of {len(paths)} bundled scenes equal the official ones, "
        f"by {choice.on_cpu()}",
    )
