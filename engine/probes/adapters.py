"""The table of adapters, the interface they keep, and what the factory says to strangers."""

import inspect
from dataclasses import replace
from typing import Any

from engine.adapters import ADAPTERS, InferenceAdapter, adapter_for
from engine.config import ModelConfig
from engine.errors import EngineError
from engine.gguf import GGUFFile
from engine.probe import Case, ProbeOptions

_UNKNOWN = "no-such-architecture"


def cases(options: ProbeOptions) -> list[Case]:
    """One case an architecture, and where a model is given one for it and for a stranger."""
    found = [_adapter(name, adapter) for name, adapter in ADAPTERS.items()]
    if options.model is not None:
        with GGUFFile.open(options.model) as file:
            config = ModelConfig.from_file(file)
        found += [_factory(config), _factory(replace(config, architecture=_UNKNOWN))]
    return found


def _adapter(architecture: str, adapter: InferenceAdapter) -> Case:
    wanted = [name for name in vars(InferenceAdapter) if not name.startswith("_")]
    return {
        "architecture": architecture,
        "adapter": adapter.name,
        "architectures": list(adapter.architectures),
        "interface": {name: hasattr(adapter, name) for name in wanted},
        "program_parameters": list(inspect.signature(adapter.program).parameters),
    }


def _factory(config: ModelConfig) -> Case:
    outcome: dict[str, Any] = {"adapter": None, "code": None, "message": None}
    try:
        outcome["adapter"] = adapter_for(config).name
    except EngineError as error:
        outcome |= {"code": error.code, "message": error.message}
    return {"factory_of": config.architecture, "known": sorted(ADAPTERS), **outcome}
