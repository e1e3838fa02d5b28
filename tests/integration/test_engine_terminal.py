"""What a person at a terminal sees, and what a machine reads instead."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

from tests.integration.engine_process import COMMAND, MODEL, exit_code, launched, wait_until

LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ (INFO|WARNING|ERROR) +([a-z_]+): ([^|]{1,100}) \| .*")


class Terminal:
    """A command whose stderr is a terminal; `shown` is all that was ever written to it."""

    def __init__(self, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "300", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
        )
        os.close(theirs)
        self._ours, self.shown = ours, ""

    def read_until(self, wanted: str) -> None:
        """Read until the text was shown, or to the end."""
        while not wanted or wanted not in self.shown:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                return
            self.shown += piece.decode()

    def close(self, number: int) -> int:
        self.process.send_signal(number)
        self.read_until("")
        os.close(self._ours)
        return exit_code(self.process)


def screen(shown: str) -> list[str]:
    """The lines that stay on the screen when all is written."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part[0] != "\x1b":
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line for line in lines if line.strip()]


def test_a_person_sees_a_bar_with_bytes_and_then_only_whole_lines() -> None:
    terminal = Terminal("serve", "--model", str(MODEL), "--port", "0")
    terminal.read_until("ready: ")
    assert terminal.close(signal.SIGTERM) == 0
    assert re.search(r"loading [━╸╺ ]+[\d.]+/96\.6 MB", terminal.shown)
    lines = [LINE.fullmatch(line) for line in screen(terminal.shown)]
    assert all(lines), screen(terminal.shown)
    events = [line[2] for line in lines if line]
    assert events[:2] == ["startup", "model_load_start"]
    assert events.count("model_load_progress") == 5
    assert events[-3:] == ["model_load_complete", "ready", "shutdown"]


def test_generate_shows_the_bar_too_and_leaves_nothing_of_it() -> None:
    terminal = Terminal("generate", "-m", str(MODEL), "-p", "Once", "-n", "4")
    terminal.read_until("")
    assert terminal.close(0) == 0
    assert "MB" in terminal.shown
    assert screen(terminal.shown) == []


def test_json_at_a_terminal_is_json_and_nothing_else() -> None:
    terminal = Terminal("serve", "--model", str(MODEL), "--port", "0", "--log-format", "json")
    terminal.read_until('"ready"')
    assert terminal.close(signal.SIGTERM) == 0
    assert "\x1b" not in terminal.shown
    assert all(line.startswith("{") for line in terminal.shown.splitlines())


def test_human_lines_in_a_file_have_no_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        command = [*COMMAND, "serve", "-m", str(MODEL), "--port", "0", "--log-format", "human"]
        process = subprocess.Popen(command, stderr=stderr)

    def is_ready() -> bool:
        assert process.poll() is None
        return "ready: " in log.read_text()

    wait_until(is_ready)
    process.send_signal(signal.SIGTERM)
    assert exit_code(process) == 0
    assert all(LINE.fullmatch(line) for line in log.read_text().splitlines())


def test_a_machine_gets_json_without_asking_and_no_bar(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        progress = engine.events("model_load_progress")
        assert [line["percent"] for line in progress] == [0, 25, 50, 75, 100]
        assert [line["bytes_loaded"] for line in progress] == sorted(
            line["bytes_loaded"] for line in progress
        )
        assert progress[0]["bytes_loaded"] == 0
        assert progress[-1]["bytes_loaded"] == progress[-1]["bytes_total"] > 90_000_000
        assert "\x1b" not in engine.log.read_text()
