"""Judges by the id of their check: every module of this package brings a table `JUDGES`."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from harness.errors import ChecklistError
from harness.observation import Judge


def _all_judges() -> dict[str, Judge]:
    judges: dict[str, Judge] = {}
    for module in sorted(info.name for info in iter_modules(__path__)):
        table: Mapping[str, Judge] = getattr(import_module(f"{__name__}.{module}"), "JUDGES", {})
        for name in judges.keys() & table.keys():
            raise ChecklistError(f"harness/judges/{module}.py: {name} has a judge already")
        judges.update(table)
    return judges


JUDGES: Mapping[str, Judge] = _all_judges()
