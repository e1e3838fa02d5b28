"""A command that takes each option once, and tells a usage error in one line."""

import sys
from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand


class StrictCommand(TyperCommand):
    """Refuses an option that is given twice and is not a list: which one was meant?"""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; BadParameter where an option comes twice."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, count in Counter(order).items():
            if count > 1 and not parameter.multiple and parameter.nargs != -1:
                name = max(parameter.opts, key=len)
                raise typer.BadParameter(f"{name}: given {count} times, wanted once", ctx=ctx)
        return list(super().parse_args(ctx, args))


def run(app: typer.Typer, name: str) -> None:
    """Run the command line; a usage error is one line on stderr and exit code 2."""
    try:
        code = app(prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        if message := " ".join(error.format_message().split()):  # none where help was shown
            typer.echo(f"{name}: {message.rstrip('.')}; see --help", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
