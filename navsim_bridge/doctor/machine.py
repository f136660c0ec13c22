"""Is this machine fit to train and score? One finding per line, each with what to do about it.

Every check looks at one thing and reports; none of them stops the others. Nothing that may crash is imported into
this process: a torchvision built for another torch, or another project called navsim, is recognised by its metadata
and tried in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from dpvla.parallel import available_cores
from navsim_bridge.files import roots
from navsim_bridge.files.logs import MAP_LOCATIONS
from navsim_bridge.splits.scene_filter import DEVKIT_ROOT, devkit_splits

OK, WARNING, ERROR = "ok", "warning", "ERROR"
PYTHONS = ((3, 10), (3, 13))  # from, and the first that is too new
NEEDED = (
    "accelerate", "diffusers", "tyro", "matplotlib", "numpy", "cv2", "pandas", "peft", "PIL", "pyogrio", "pyproj",
    "yaml", "safetensors", "scipy", "shapely", "tensorboard", "timm", "tokenizers", "torch", "torchvision", "tqdm",
    "transformers",
)  # fmt: skip
"""Modules that a checkout which is not installed must find; an installed dpvla lists its own requirements."""
DEVKIT_FILE = "common/dataclasses.py"
"""A file that the NAVSIM devkit's package `navsim` has, and the unrelated one on PyPI has not."""
BUNDLED = Path(__file__).parent / "scenes"
TOLERANCE = 1e-6
IMPORT_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str  # OK, WARNING (does not fail the report) or ERROR
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8}{self.what}" + (f" -> {self.remedy}" if self.remedy else "")


def examine(
    data_root: str | None = None,
    maps_root: str | None = None,
    split: str | None = None,
    cache: str | None = None,
    data_split: str | None = None,
    cameras: Sequence[str] = (),
) -> Iterator[Finding]:
    """All findings, in order.

    Args:
        data_root, maps_root: as the tools' options; default: the environment, then the demo world.
        split: also count this split's logs, scenes, and missing or empty camera files.
        cache: also check every byte of this metric cache.
        data_split: folder of the split's logs, where it does not say it or another is meant.
        cameras: as encoders call them; default: those that an encoder looks at where nothing else is said.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_python, check_packages, check_navsim, check_torchvision, check_gpu, check_linear_algebra, check_scores,
        check_environment, partial(check_data, data_root, maps_root, split, data_split, cameras),
    ]  # fmt: skip
    if cache is not None:
        checks.append(partial(check_cache, cache))
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a check that fails is a finding, and the others still run
            name = getattr(check, "func", check).__name__
            text = " ".join(str(error).split())
            yield Finding(ERROR, f"{name} failed ({type(error).__name__}: {text})", "see the findings above")


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    first, after = (".".join(map(str, version)) for version in PYTHONS)
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        yield Finding(OK, f"Python {platform.python_version()}")
    else:
        yield Finding(
            ERROR, f"Python {platform.python_version()}", f"use Python >= {first} and < {after} in a new environment"
        )


def check_packages() -> Iterator[Finding]:
    """Required packages and their versions."""
    try:
        requirements = metadata.requires("dpvla") or []
    except metadata.PackageNotFoundError:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        yield Finding(WARNING, "dpvla is not installed here", "pip install -e . in its checkout")
        for name in missing:
            yield Finding(ERROR, f"module {name} is missing", "pip install -e . in dpvla's checkout")
        if not missing:
            yield Finding(OK, f"all {len(NEEDED)} needed modules are there (versions not checked)")
        return
    from packaging.requirements import Requirement

    checked, good = 0, True
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        found = _version(requirement.name)
        if found is None:
            good = False
            yield Finding(ERROR, f"package {requirement.name} is missing", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            good = False
            yield Finding(
                ERROR, f"package {requirement.name} is {found}, needed {requirement.specifier}",
                f"pip install '{requirement}'",
            )  # fmt: skip
    if good:
        versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "scipy", "shapely"))
        yield Finding(OK, f"all {checked} required packages are there ({versions})")


def check_navsim() -> Iterator[Finding]:
    """An installed package `navsim`: NAVSIM's devkit, or the unrelated project that PyPI has under this name."""
    try:
        spec = importlib.util.find_spec("navsim")
    except (ImportError, ValueError):
        spec = None
    version = _version("navsim")
    if spec is None and version is None:
        yield Finding(OK, "no package navsim (the devkit is not needed)")
        return
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    if any((folder / DEVKIT_FILE).is_file() for folder in folders):
        yield Finding(OK, f"NAVSIM devkit {version or 'from ' + str(folders[0])}")
    else:
        yield Finding(
            WARNING,
            f"the installed package navsim {version or ''} is not NAVSIM's devkit but an unrelated project from PyPI",
            "pip uninstall navsim; dpvla does not need it. For the devkit: "
            "pip install 'navsim @ git+https://github.com/autonomousvision/navsim.git@v1.1'",
        )


def check_torchvision() -> Iterator[Finding]:
    """Whether torchvision was built for the installed torch. A missing one is another check's finding."""
    torch_version, vision_version = _version("torch"), _version("torchvision")
    if torch_version is None or vision_version is None:
        return
    needed = _torch_that_torchvision_needs(metadata.requires("torchvision") or [])
    public = torch_version.split("+")[0]
    if needed is not None and needed != public:
        yield Finding(
            ERROR, f"torchvision {vision_version} was built for torch {needed}, found torch {torch_version}",
            f"pip install --force-reinstall torch=={needed} torchvision=={vision_version.split('+')[0]}, "
            "both from one index",
        )  # fmt: skip
        return
    failure = _import_failure("torchvision.ops")
    if failure:
        yield Finding(
            ERROR, f"torchvision {vision_version} cannot be imported with torch {torch_version}: {failure}",
            "reinstall torch and torchvision together, both from one index (both CPU or the same CUDA)",
        )  # fmt: skip
    else:
        yield Finding(OK, f"torchvision {vision_version} fits torch {torch_version}")


def check_gpu() -> Iterator[Finding]:
    """CUDA devices, and why there are none where there should be."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding(OK, f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    elif Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding(
            WARNING, f"there is an NVIDIA driver, but torch {torch.__version__} ({build}) finds no GPU",
            "install a CUDA build of torch that the driver supports; look at CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    else:
        yield Finding(OK, "no GPU: everything runs on the CPU")


def check_linear_algebra() -> Iterator[Finding]:
    """The 24x24 inverse that OpenBLAS 0.3.20 (numpy 1.23) gets wrong on some CPUs: numpy issue 22502.

    Official scores are zeros there. Also an inverse and a pseudo-inverse of the sizes that scoring uses.
    """
    matrix = np.identity(24)
    matrix[17, 15] = 10
    random = np.random.default_rng(0)
    normal = random.normal(size=(40, 80))
    normal = normal @ normal.T + np.identity(40)
    errors = [
        np.abs(m @ invert(m) - np.identity(len(m))).max()
        for m in (matrix, normal)
        for invert in (np.linalg.inv, np.linalg.pinv)
    ]
    if max(errors) < 1e-9:
        yield Finding(OK, f"linear algebra: the inverses of numpy issue 22502 are right (error {max(errors):.0e})")
    else:
        yield Finding(
            ERROR, f"numpy {np.__version__} inverts a 24x24 matrix wrongly here (error {max(errors):.1e}, numpy issue "
            "22502): official scores made here are worthless",
            "pip install 'numpy>=1.24' (OpenBLAS >= 0.3.21), or set OPENBLAS_CORETYPE=SkylakeX",
        )  # fmt: skip


def check_scores(folder: Path = BUNDLED) -> Iterator[Finding]:
    """Score the bundled scenes and compare with what the official code gave for them."""
    import torch

    from navsim_bridge.golden.v1 import FRAGILE_COLUMNS, read_golden
    from navsim_bridge.pdm import SUB_SCORES, SceneBatch, score_plans

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
    if wrong:
        yield Finding(
            ERROR, f"{len(wrong)} of {compared} sub-scores of the bundled scenes differ from the official ones, first "
            f"{wrong[0]}",
            "do not trust scores made here: reinstall torch and numpy, and report this with the lines above",
        )  # fmt: skip
    else:
        yield Finding(OK, f"PDM score v1: {compared} sub-scores of {len(paths)} bundled scenes equal the official ones")


def check_environment() -> Iterator[Finding]:
    """The devkit's environment variables."""
    for name, meaning in (
        ("OPENSCENE_DATA_ROOT", "holds navsim_logs/ and sensor_blobs/"),
        ("NUPLAN_MAPS_ROOT", f"holds {roots.MAP_INDEX}"),
        (DEVKIT_ROOT, "the devkit's checkout, for its split files"),
    ):
        value, problem = os.environ.get(name), devkit_splits()[1] if name == DEVKIT_ROOT else ""
        if problem:
            what, _, remedy = problem.partition(": ")
            yield Finding(ERROR, what, remedy)
        elif not value:
            yield Finding(OK, f"{name} is not set ({meaning}; options and the demo world serve instead)")
        elif not Path(value).is_dir():
            yield Finding(ERROR, f"{name} is {value}, which is no folder", f"point it to the folder that {meaning}")
        else:
            yield Finding(OK, f"{name} is {value}")


def check_data(
    data_root: str | None,
    maps_root: str | None,
    split: str | None,
    data_split: str | None = None,
    cameras: Sequence[str] = (),
) -> Iterator[Finding]:
    """Folders with logs, camera files and maps; with ``split`` also its logs, scenes and camera files."""
    named = bool(data_root or maps_root or split)
    missing = ERROR if named or os.environ.get("OPENSCENE_DATA_ROOT") or os.environ.get("NUPLAN_MAPS_ROOT") else WARNING
    try:
        root = roots.data_root(data_root)
    except FileNotFoundError as error:
        yield Finding(missing, str(error))
        return
    for folder in sorted(p for p in (root / roots.LOGS).iterdir() if p.is_dir()):
        logs = {p.stem for p in folder.glob("*.pkl")}
        sensors = root / roots.SENSORS / folder.name
        with_sensors = {p.name for p in sensors.iterdir() if p.is_dir()} & logs if sensors.is_dir() else set()
        lacking = len(logs) - len(with_sensors)
        level, remedy = (WARNING, f"get the camera files of this split below {sensors}") if lacking else (OK, "")
        yield Finding(level, f"{folder}: {len(logs)} logs, {len(with_sensors)} with camera files", remedy)
    try:
        maps = roots.maps_root(maps_root)
    except FileNotFoundError as error:
        yield Finding(missing, str(error))
        return
    yield from _check_maps(maps)
    if split is not None:
        yield from check_split(root, maps, split, data_split, cameras)


def _check_maps(maps: Path) -> Iterator[Finding]:
    index = maps / roots.MAP_INDEX
    try:
        versions = {name: str(entry["version"]) for name, entry in json.loads(index.read_text("utf-8")).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(ERROR, f"{index} cannot be read ({type(error).__name__}: {error})", "get nuPlan's maps again")
        return
    there = [at for at in MAP_LOCATIONS if at in versions and (maps / at / versions[at] / "map.gpkg").is_file()]
    lacking = [at for at in MAP_LOCATIONS if at not in there]
    if lacking:
        yield Finding(
            WARNING, f"{maps}: {len(there)} of {len(MAP_LOCATIONS)} maps; missing: {', '.join(lacking)}",
            "get nuPlan's maps v1.1 unless your logs are elsewhere (the devkit opens all four)",
        )  # fmt: skip
    else:
        yield Finding(OK, f"{maps}: all {len(there)} maps")


def check_split(
    root: Path, maps: Path, split_name: str, data_split: str | None = None, cameras: Sequence[str] = ()
) -> Iterator[Finding]:
    """Logs, scenes, maps and camera files of one split."""
    from dpvla.batch import DEFAULT_CAMERAS
    from navsim_bridge.files.logs import list_logs
    from navsim_bridge.splits.scene_filter import load_split
    from navsim_bridge.splits.scenes import find_scenes
    from navsim_bridge.splits.sensors import camera_names, describe_bad, missing_images

    try:
        cameras = camera_names(cameras or DEFAULT_CAMERAS)
        split = load_split(split_name, root, data_split)
    except (ValueError, OSError) as error:  # names the split or its file itself
        yield Finding(ERROR, str(error))
        return
    try:
        there = list_logs(root, split.data_split)
        found = find_scenes(split, root, allow_missing=True, workers=available_cores())
    except (ValueError, OSError) as error:
        yield Finding(ERROR, f"split {split.name}: {error}")
        return
    logs = root / roots.LOGS / split.data_split
    wanted = split.scene_filter.log_names
    absent = sorted(set(wanted or ()) - set(there))
    if absent:
        yield Finding(
            ERROR, f"split {split.name}: {len(absent)} of {len(wanted or ())} logs are missing, first {absent[0]}",
            f"get them into {logs}",
        )  # fmt: skip
    else:
        yield Finding(OK, f"split {split.name}: {len(wanted or there)} logs in {logs}")
    records, listed = found.records, len(split.scene_filter.tokens or ())
    if found.absent:
        yield Finding(
            ERROR, f"split {split.name}: {len(found.absent)} of {listed} scenes are in no log, first {found.absent[0]}",
            "get the missing logs; scores over a part of a split cannot be compared",
        )  # fmt: skip
    else:
        yield Finding(OK, f"split {split.name}: {len(records)} scenes")
    unmapped = sorted({r.location for r in records if not any((maps / r.location).glob("*/map.gpkg"))})
    if unmapped:
        yield Finding(ERROR, f"split {split.name}: no map of {', '.join(unmapped)} in {maps}", "get nuPlan's maps")
    sensors = root / roots.SENSORS / split.data_split
    bad = missing_images(records, root, cameras)
    count = len(records) * len(cameras)
    if bad:
        yield Finding(
            ERROR, f"split {split.name}: {describe_bad(bad, len(records), len(cameras))}",
            f"get them into {sensors}; until then --allow-missing leaves their scenes out, and only plans without "
            "cameras (human, constant_velocity) can be made of them",
        )  # fmt: skip
    else:
        yield Finding(OK, f"split {split.name}: all {count} camera files ({', '.join(cameras)})")


def check_cache(folder: str) -> Iterator[Finding]:
    """Every byte of a metric cache."""
    from navsim_bridge.metric_cache import CacheError, MetricCache

    try:
        cache = MetricCache(folder)
        cache.verify()
    except CacheError as error:
        yield Finding(ERROR, f"metric cache: {error}")
    else:
        part, shard = cache.coverage, cache.index.get("shard")
        what = f"metric cache {folder}: {part} of {cache.index['split']}, all bytes checked"
        if shard is not None:
            yield Finding(
                WARNING, f"{what}; it is shard {shard['index']}/{shard['count']} alone",
                "join the shards with tools/cache_metrics.py --merge",
            )  # fmt: skip
        elif not part.is_whole:
            yield Finding(
                WARNING, f"{what}; NOT the whole split: {part.why}",
                "make it again when the rest is there; scores over a part of a split cannot be compared",
            )  # fmt: skip
        else:
            yield Finding(OK, what)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch_that_torchvision_needs(requirements: Sequence[str]) -> str | None:
    """The one torch version that torchvision's metadata asks for; None when it names none."""
    for requirement in requirements:
        found = re.match(r"torch\s*\(?==\s*([\w.]+)", requirement)
        if found:
            return found.group(1)
    return None


def _import_failure(module: str) -> str | None:
    """Last line of what importing ``module`` says in a process of its own; None when it works."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {IMPORT_SECONDS} s"
    if run.returncode == 0:
        return None
    lines = run.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {run.returncode}"
