"""The command line: a thin table of commands; each lives beside what it shows."""

import os
import sys
from typing import Annotated

import typer

from harness.errors import HaikugateError
from harness.visible import one_line

INTERRUPTED = 130

app = typer.Typer(
    help="Certify that an LLM inference engine really does what it claims.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
engines = typer.Typer(help="Engine clients.", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        from harness.environment import harness_version

        typer.echo(f"haikugate {harness_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Certify that an LLM inference engine really does what it claims."""


@engines.command("list")
def list_engines() -> None:
    """List the kinds of engine API that an installed client speaks."""
    from importlib.metadata import entry_points

    from harness.clients import ENTRY_POINTS

    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        typer.echo(f"{entry.name:12} {entry.value}")


@app.command()
def config() -> None:
    """Print what the environment sets: folders, key, run id."""
    from harness.keys import KEY_VARIABLE
    from harness.models import cache_folder

    key = os.environ.get(KEY_VARIABLE, "")
    shown = "(PEM in the variable)" if key.startswith("-----BEGIN") else key
    rows = {
        "HAIKUGATE_CACHE_DIR": str(cache_folder()),
        "HAIKUGATE_PROOF_DIR": os.environ.get("HAIKUGATE_PROOF_DIR") or "proofs",
        "HAIKUGATE_RUN_ID": os.environ.get("HAIKUGATE_RUN_ID") or "(time and random)",
        KEY_VARIABLE: shown or "(none: runs are signed by an ephemeral key)",
    }
    for name, value in rows.items():
        typer.echo(f"{name:24} {value}")


def _assemble() -> None:
    from harness import bundle_commands, key_commands, model_commands
    from harness.calibrate_command import calibrate
    from harness.certify import certify, option_lines
    from harness.doctor import doctor
    from harness.fleet_command import EXAMPLE, fleet
    from harness.gate_commands import app as gates
    from harness.run_command import run
    from harness.selftest_command import selftest

    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=passing_on, epilog=option_lines())(certify)
    shown = (bundle_commands.verify, bundle_commands.report)
    for command in (*shown, run, selftest, calibrate, doctor):
        app.command()(command)
    app.command(epilog=EXAMPLE)(fleet)
    app.add_typer(model_commands.app, name="models")
    app.add_typer(key_commands.app, name="keys")
    app.add_typer(engines, name="engines")
    app.add_typer(gates, name="gates")


_assemble()


def main() -> None:
    """Run a command; an error of ours is one line and its exit code."""
    try:
        code = app(prog_name="haikugate", standalone_mode=False)
    except typer.TyperException as error:
        if message := " ".join(error.format_message().split()):  # none where help was shown
            typer.echo(f"haikugate: {one_line(message.rstrip('.'))}; see --help", err=True)
        sys.exit(error.exit_code)
    except HaikugateError as error:
        typer.echo(f"haikugate: {one_line(error)}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
