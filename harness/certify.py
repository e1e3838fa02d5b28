"""`haikugate certify`: a gate run with live progress, one line a check."""

import argparse
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated

import pytest
import typer

from harness.errors import UsageError

SUITES = Path(__file__).resolve().parent.parent / "suites"
QUIET = ("-q", "--no-header", "--tb=no", "--no-summary", "-o", "console_output_style=classic")
PLAIN = (
    *("-c", "/dev/null", "-p", "no:cacheprovider", "--import-mode=importlib"),
    *("--confcutdir", str(SUITES), "-p", "haikugate"),
)
"""No configuration, cache or conftest.py but the suites' own."""
NO_PLUGINS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
FOREIGN_VARIABLES = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")


def option_lines() -> str:
    """The options of a gate run, for `--help`: those of the pytest plugin."""
    from harness.plugin import OPTIONS

    lines = ("Options that describe the engine and the run:",)
    return "\n\n".join((*lines, *(f"{flag}  {settings['help']}" for flag, settings in OPTIONS)))


def certify(
    context: typer.Context,
    gate: Annotated[
        int | None,
        typer.Option(min=1, max=4, help="The gate, 4 if omitted; those below come with it."),
    ] = None,
    area: Annotated[str | None, typer.Option(help="Only one area, e.g. utf8.")] = None,
    workers: Annotated[int, typer.Option("-n", min=0, help="pytest-xdist workers.")] = 0,
) -> None:
    """Certify an engine: run a gate against it, seal the evidence, say the verdict."""
    if gate and area:
        raise UsageError(f"certify: --gate {gate} and --area {area}: wanted one of them")
    _refuse_arguments(area, context.args)
    raise typer.Exit(run_gate(area or f"gate{gate or 4}", context.args, workers))


def _refuse_arguments(area: str | None, arguments: Sequence[str]) -> None:
    """Raises UsageError for what pytest would refuse in many lines, or after a run of nothing."""
    from harness.checklist import load_checklists
    from harness.plugin import OPTIONS

    areas = sorted(load_checklists().areas)
    if area is not None and area not in areas:
        raise UsageError(f"--area: wanted one of {', '.join(areas)}, got {area!r}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag, settings in OPTIONS:
        parser.add_argument(flag, **settings)
    try:
        _, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UsageError(f"certify: {error}; see haikugate certify --help") from None
    if others and not others[0].startswith("-"):
        raise UsageError(f"certify: wanted options alone, got {others[0]!r}")


def run_gate(marker: str, arguments: Sequence[str], workers: int = 0) -> int:
    """Run pytest on the installed suites in this process; returns certify's exit code.

    0 certified, 1 not, 2 usage, 3 harness error, 130 interrupted. Raises UsageError for options
    that pytest does not know, or with which it runs nothing.
    """
    from harness.live import LiveChecks

    if not SUITES.is_dir():
        raise UsageError(f"{SUITES}: the gate suites are not installed")
    for name in FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= NO_PLUGINS
    spread = ("-p", "xdist.plugin", "-n", str(workers)) if workers else ()
    command = (*PLAIN, *QUIET, *spread, "-m", marker, str(SUITES), *arguments)
    live = LiveChecks()
    code = int(pytest.main(list(command), plugins=[OneLineRefusals(), live]))
    if code == 0 and not live.judged:
        given = " ".join(arguments)
        raise UsageError(f"certify: nothing was judged; to see only, ask pytest -m gate4 {given}")
    return {4: 2, 5: 1}.get(code, code)


class OneLineRefusals:
    """Says in one line of ours what pytest refuses to parse, in place of its own usage lines."""

    @pytest.hookimpl(wrapper=True)
    def pytest_cmdline_parse(self) -> Generator[None, pytest.Config, pytest.Config]:
        try:
            return (yield)
        except pytest.UsageError as error:
            said = str(error).rpartition(": error: ")[2].partition("\n")[0].rstrip(".")
            raise UsageError(f"certify: {said}; see haikugate certify --help") from None
