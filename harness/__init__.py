"""haikugate certifies LLM inference engines; its public names, loaded when first used."""

from importlib import import_module
from typing import Any

_HOMES = {
    "run_experiment": "harness.measure",
    "ExperimentConfig": "harness.experiment",
    "ExperimentResult": "harness.experiment",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """The public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
