"""The probe of G1-CUDA-CONTEXT: what kind of memory each allocation of a loaded model is."""

from typing import Any

from engine.backends import LoadOptions
from engine.backends.cuda import CudaRuntime
from engine.errors import DeviceError, InvalidRequest
from engine.loading import load_model
from engine.probe import Case, ProbeOptions

N_PROMPT = 70


def cases(options: ProbeOptions) -> list[Case]:
    """One case an allocation, while a sequence is open; raises DeviceError without a GPU."""
    if options.device == "cpu":
        raise DeviceError("probe cuda-memory looks at a GPU's memory: --device cuda:N")
    if options.model is None:
        raise InvalidRequest("model", "probe cuda-memory needs --model")
    model = load_model(options.model, LoadOptions(device=options.device))
    try:
        return _while_running(model.runtime)
    finally:
        model.close()


def _while_running(runtime: Any) -> list[Case]:
    assert isinstance(runtime, CudaRuntime)
    sequence = runtime.open_sequence()
    try:
        runtime.prefill(sequence, [1] * N_PROMPT, lambda: None)
        return [dict(one) for one in runtime.allocations()]
    finally:
        sequence.close()
