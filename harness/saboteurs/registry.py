"""Every saboteur by name; the control is the honest proxy they all derive from."""

from collections.abc import Iterator

from harness.saboteurs import (
    answers,
    deviation,
    identity,
    model_file,
    moments,
    parameters,
    prompt,
    sampling,
    state,
    stream_shape,
)
from harness.saboteurs.proxy import Saboteur

MODULES = (
    answers,
    deviation,
    identity,
    model_file,
    state,
    moments,
    parameters,
    prompt,
    sampling,
    stream_shape,
)
"""In the order of the matrix; of those that one check must catch, the first is the quick one."""


def _saboteurs() -> Iterator[type[Saboteur]]:
    for module in MODULES:
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, Saboteur) and "name" in vars(found):
                yield found


CONTROL = Saboteur
SABOTEURS = {saboteur.name: saboteur for saboteur in _saboteurs() if saboteur.name != CONTROL.name}
