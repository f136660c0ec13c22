"""Places that tests read from."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
GOLDEN_V1 = FIXTURES / "golden_v1"
GOLDEN_V2 = FIXTURES / "golden_v2"
OPEN_FILES = Path("/proc/self/fd")
"""One entry for each file that this process has open; on Linux."""
