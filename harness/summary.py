"""The end of a run, on a terminal: profile, verdict, what does not pass and why, the bundle."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.finish import Verdicts
from harness.observation import Verdict
from harness.outcome import CheckResult
from harness.profiles import PROFILES, is_time_limit
from harness.visible import one_line

_STYLES = {
    Verdict.PASS: "green",
    Verdict.WAIVED: "yellow",
    Verdict.NOT_RUN: "yellow",
    Verdict.ERROR: "magenta",
    Verdict.FAIL: "bold red",
}


def render_summary(verdicts: Verdicts, *, width: int, color: bool) -> str:
    """The summary as text of at most `width` columns, with terminal colours if wanted."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False
    )
    gate = verdicts.gate
    console.print()
    profile = PROFILES[gate.profile]
    console.print(f"haikugate {gate.scope} · profile {gate.profile} ({profile.claim})")
    console.print(Text(gate.verdict_line, style="bold green" if gate.holds else "bold red"))
    for blocker in gate.blockers:
        console.print(Text(f"  blocked: {one_line(blocker)}"), soft_wrap=True)
    open_checks = [c for c in verdicts.checks if c.verdict in _OPEN]
    if open_checks:
        console.print(_table(open_checks))
    for line in _factored(verdicts.checks):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(gate.title), soft_wrap=True)
    if verdicts.signer_kind != "key":
        console.print(Text("Signed by an ephemeral key: INTEGRITY ONLY, identity unknown."))
    console.print(Text(f"bundle: {verdicts.bundle}"), soft_wrap=True)
    if (verdicts.bundle / "report.html").exists():
        console.print(Text(f"report: {verdicts.bundle / 'report.html'}"), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


_OPEN = (Verdict.FAIL, Verdict.ERROR, Verdict.NOT_RUN, Verdict.WAIVED)


def _table(checks: Sequence[CheckResult]) -> Table:
    table = Table("check", "verdict", "why", box=None, pad_edge=False)
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(Text(check.check), verdict, Text(one_line(check.message)[:400]))
    return table


def _factored(checks: Sequence[CheckResult]) -> list[str]:
    """The time limits that this profile stretched, of the checks that it judged."""
    lines = []
    for check in checks:
        if check.verdict in (Verdict.NOT_APPLICABLE, Verdict.NOT_RUN):
            continue
        for name, limit in check.limits.items():
            if is_time_limit(name) and limit.applied != limit.written:
                said = f"limit {limit.written:g}, judged against {limit.applied:g}"
                lines.append(f"{check.check} {name}: {said}")
    return lines
