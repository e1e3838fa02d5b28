"""Live progress of a gate run: one line a check, as soon as its last test here has ended."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from harness.gate_hooks import PROPERTY, WorkerHooks
from harness.observation import Verdict
from harness.outcome import worst
from harness.visible import one_line

_SIGNS = {
    Verdict.PASS: "✓",
    Verdict.NOT_APPLICABLE: "·",
    Verdict.NOT_RUN: "–",
    Verdict.ERROR: "!",
    Verdict.FAIL: "✗",
}


class LiveChecks:
    """Prints a line for each check; pytest's own dots are left out."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[str]] = {}
        self._found: dict[str, list[tuple[Verdict, str]]] = defaultdict(list)
        self._said: set[str] = set()
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        if report.when == "call":
            return report.outcome, "", ""
        return ("error" if report.failed else report.outcome, "", "") if not report.passed else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown" or self._config is None:
            return
        properties: Mapping[str, Any] = dict(report.user_properties)
        found: Mapping[str, list[list[str]]] = properties.get(PROPERTY, {})
        for check, findings in found.items():
            self._found[check] += [(Verdict(verdict), message) for verdict, message in findings]
            self._ended(check, report.nodeid.rpartition("::")[2])

    @property
    def judged(self) -> bool:
        """Whether there was a run to judge: pytest also has options that only show something."""
        hooks = self._hooks()
        return hooks is not None and hooks.session.bundle is not None

    def _hooks(self) -> WorkerHooks | None:
        if self._config is None:
            return None
        hooks = self._config.pluginmanager.get_plugin("haikugate-gate")
        return hooks if isinstance(hooks, WorkerHooks) else None

    def _ended(self, check: str, test: str) -> None:
        hooks = self._hooks()
        if hooks is None:
            return
        waiting = self._waiting.setdefault(check, set(hooks.session.required_tests(check)))
        waiting.discard(test)
        if not waiting and check not in self._said:
            self._said.add(check)
            verdict = worst(verdict for verdict, _ in self._found[check])
            said = next(m for v, m in self._found[check] if v == verdict)
            self._line(f"{_SIGNS.get(verdict, '!')} {check}  {one_line(said)}"[:160])

    def _line(self, text: str) -> None:
        assert self._config is not None
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(text)
