#!/usr/bin/env bash
# Does all of this run on this machine's GPU, is it right there, and how fast? One command, at most 5 minutes:
#
#     benchmarks/gpu_check.sh                          # prints a table; status 1 if a part failed
#     benchmarks/gpu_check.sh --json gpu.json          # also writes numbers, device, versions and commit
#     benchmarks/gpu_check.sh --parts pdm state_based  # only these
#     CUDA_VISIBLE_DEVICES=1 benchmarks/gpu_check.sh   # another GPU
#
# Parts: see benchmarks/gpu_check.py. Without a GPU it says so and runs them at toy size on the CPU.
#
# It needs no network. It expects Python 3.10 to 3.12 with torch, torchvision, transformers >= 5.17, timm, peft,
# accelerate, numpy, scipy, pandas, matplotlib, opencv, pillow, safetensors, pytest, pytest-timeout, tensorboard, pyyaml,
# tqdm and rich. What else the code imports comes along as wheels, 52 MB together; where there is a network,
#
#     benchmarks/gpu_check.sh --collect-wheels DIR [PYTHON_VERSION]      # 3.12 unless given
#
# puts them in DIR, and on the machine with the GPU
#
#     WHEELS=DIR benchmarks/gpu_check.sh
#
# installs them into a temporary folder that is gone afterwards. PYTHON names the interpreter (default: python3).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
PACKAGES=(diffusers tyro docstring-parser typeguard shapely pyogrio pyproj
          importlib-metadata zipp lazy-importer requests urllib3 charset-normalizer idna certifi)

if [[ ${1:-} == --collect-wheels ]]; then
  [[ $# -ge 2 ]] || { echo "error: --collect-wheels needs a folder: $0 --collect-wheels DIR [PYTHON_VERSION]" >&2; exit 2; }
  exec "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${3:-3.12}" --dest "$2" \
    "${PACKAGES[@]}"
fi

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n ${WHEELS:-} ]]; then
  compgen -G "$WHEELS/*.whl" > /dev/null || { echo "error: WHEELS=$WHEELS holds no .whl file" >&2; exit 2; }
  "$PYTHON" -m pip install --quiet --no-index --no-deps --disable-pip-version-check --target "$SCRATCH/packages" \
    "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$SCRATCH/packages"
fi
"$PYTHON" - <<'END' || exit 2
import importlib.util
import sys

try:
    from navsim_bridge.doctor.machine import NEEDED
except ModuleNotFoundError:
    NEEDED = ("numpy",)
missing = [name for name in (*NEEDED, "pytest") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}; install them, or bring them: see WHEELS at the "
             "top of benchmarks/gpu_check.sh")
END
TMPDIR="$SCRATCH" "$PYTHON" "$ROOT/benchmarks/gpu_check.py" "$@"
