"""A CPU without any feature that Numba could name runs the same kernels and says the same."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/unit/test_cpu_tiles.py",
    "tests/unit/test_tiny_goldens.py",
    "tests/unit/test_cpu_runtime.py::test_the_greedy_path_is_the_oracles_teacher_forced",
    "tests/unit/test_cpu_runtime.py::test_decode_equals_prefill_bit_for_bit",
)


def test_the_portable_kernels_are_right() -> None:
    portable = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    probe = "from engine.backends.cpu_jit import FEATURES; raise SystemExit(len(FEATURES))"
    assert subprocess.run([sys.executable, "-c", probe], env=portable, check=False).returncode == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        command, cwd=ROOT, env=portable, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    closing = done.stdout.splitlines()[-1]
    assert "skipped" not in closing, closing
