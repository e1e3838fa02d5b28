"""No mutated model file may crash the loader, hang it, or make it allocate without bound."""

import json
import os
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20
N_FILES = int(os.environ.get("HAIKUGATE_FUZZ_FILES", "2000"))
SEED = int(os.environ.get("HAIKUGATE_FUZZ_SEED", "0"))


def test_every_mutated_file_loads_or_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.integration.gguf_fuzzer"]
    done = subprocess.run(
        [*command, str(N_FILES), str(SEED), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    assert seen["files"] == N_FILES
    assert seen["refused"] > N_FILES // 4, seen
    assert seen["loaded"] > N_FILES // 20, seen
    assert seen["slowest_s"] < 2.0, seen
    assert seen["long_lines"] == 0, seen
    assert seen["grown_bytes"] <= 2 * seen["largest_bytes"] + 64 * MIB, seen
