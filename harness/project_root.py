"""The project's root, where pytest would look for it elsewhere.

pytest reads its settings before a plug-in's options exist, so it takes the path in `--model
/data/model.gguf` for a folder of tests and looks for the project beside it.
"""

from collections.abc import Sequence
from pathlib import Path

SETTINGS = ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")


def arguments_with_settings(
    arguments: Sequence[str], here: Path, path_options: Sequence[str]
) -> list[str] | None:
    """The command line with the settings of the folder it was typed in.

    None where there is nothing to mend: no path stands apart from its option, or no settings here.
    """
    if not set(arguments) & set(path_options):
        return None
    for name in SETTINGS:
        if (here / name).is_file():
            return [f"--config-file={name}", *arguments]
    return None
