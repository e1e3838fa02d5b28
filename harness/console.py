"""Standard output of the commands that print tables."""

from rich.console import Console

PIPED_COLUMNS = 1000


def standard_output() -> Console:
    """Standard output; where it is no terminal, lines stay whole, so that names can be found."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    return console
