"""The team: a member late from a finished job touches nothing of the next one."""

import subprocess
import sys

LATE = """
from engine.backends.cpu_jit import address_of
from engine.backends.cpu_threads import END, FIRST, STATE, TABLE, Team, _run_part
team = Team(1, scratch_bytes=64, n_instructions=4)
team._control[[FIRST, END, TABLE, STATE]] = 1, 4, 8, 8
_run_part(team._address, address_of(team._scratch[0]), 5)
team.close()
print("left")
"""


def test_a_late_member_reads_no_table_that_is_not_its_jobs() -> None:
    """The table's address is none: whoever reads there ends the process."""
    command = [sys.executable, "-c", LATE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
