"""Check this machine: Python, packages, GPU, linear algebra, scores, data. One line per finding, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    from dpvla.cli import parse, refuse_given, reporting_errors
    from navsim_bridge.doctor.examine import examine
    from navsim_bridge.doctor.finding import ERROR, OK, WARNING
    from navsim_bridge.files.roots import DataAndMapOptions
except ModuleNotFoundError as missing:
    raise SystemExit(f"ERROR   module {missing.name} is missing -> pip install -e . in dpvla's checkout") from None


@dataclass(frozen=True)
class Doctor(DataAndMapOptions):
    """Say what is wrong with this machine and what to do. Exits with 1 when something is broken."""

    split: str | None = None  # also count this split's logs, scenes and missing or empty camera files
    metric_cache: str | None = None  # also check every byte of this cache
    checkpoint: str | None = None  # also check every byte of this run, checkpoint or model
    write_manifest: str | None = None  # only note checksums of this checkpoint or model anew, changed on purpose
    cameras: tuple[str, ...] = ()  # of the camera files to count; default: front_left, front and front_right


@reporting_errors
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Doctor, argv)
    if options.split is None:
        refuse_given(options, ["data_split", "synthetic_root", "cameras"], "--split")
    if options.write_manifest is not None:
        return write_anew(options.write_manifest)
    counts = {OK: 0, WARNING: 0, ERROR: 0}
    for finding in examine(
        options.data_root, options.maps_root, options.split, options.metric_cache, options.data_split, options.cameras,
        options.checkpoint, options.synthetic_root,
    ):  # fmt: skip
        counts[finding.level] += 1
        print(finding, flush=True)
    print(f"{counts[OK]} ok, {counts[WARNING]} warnings, {counts[ERROR]} broken")
    if counts[ERROR]:
        raise SystemExit(1)


def write_anew(folder: str) -> None:
    """The manifest of a checkpoint, and of the model and adapters in it, or of one of these alone."""
    from dpvla.checkpoint_layout import ADAPTERS, CONFIG_FILE, MODEL, SAMPLING_FILE
    from dpvla.config import ConfigError
    from dpvla.manifest import renew_manifests

    path = Path(folder)
    if not any((path / name).is_file() for name in (CONFIG_FILE, SAMPLING_FILE, f"{MODEL}/{CONFIG_FILE}")):
        raise ConfigError(f"--write-manifest {folder}: no checkpoint, model or adapters; give the folder of one")
    for written in renew_manifests(path, (MODEL, ADAPTERS)):
        print(f"wrote {written}")


if __name__ == "__main__":
    main()
