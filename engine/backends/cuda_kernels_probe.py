"""The probe of G1-KERNEL-*: every kernel on random odd shapes beside float64, fifty times each."""

import os
from collections.abc import Iterator
from typing import Any, Protocol

from engine.backends.cuda_device import import_cupy, open_device
from engine.backends.cuda_probe_arrays import Arena, Measurement, measured
from engine.backends.cuda_probe_attention import attention_measurements
from engine.backends.cuda_probe_linears import Linears
from engine.backends.cuda_probe_rows import row_measurements
from engine.backends.cuda_probe_sample import Draws
from engine.errors import DeviceError
from kernels.context import KernelContext
from kernels.errors import KernelError

_MOST_COMPILERS = 16


class _Options(Protocol):
    @property
    def device(self) -> str: ...

    @property
    def seed(self) -> int: ...


def cases(options: _Options) -> list[dict[str, Any]]:
    """One case a measurement: names, repeats, error and reference norms; raises DeviceError."""
    if options.device == "cpu":
        raise DeviceError("probe kernels measures a GPU's kernels: --device cuda:N")
    device = open_device(options.device)
    threads = min(_MOST_COMPILERS, os.cpu_count() or 1)
    context = KernelContext(device.limits, n_threads=threads)
    cupy = import_cupy()
    arena = Arena(cupy)
    try:
        compiled = list(_compiled(context, arena, options.seed))
        found = [measured(cupy, context, one) for one in compiled]
        return [*found, *Draws(context, arena, options.seed).cases()]
    except KernelError as error:
        raise DeviceError(f"probe kernels: {error}") from error
    finally:
        context.close()


def _compiled(context: KernelContext, arena: Arena, seed: int) -> Iterator[Measurement]:
    """All measurements, their kernels compiled together before the first runs."""
    everything = [
        *Linears(context, arena, seed).all(),
        *row_measurements(arena, seed),
        *attention_measurements(context, arena, seed),
    ]
    with context.recording() as kernels:
        for one in everything:
            one.launch(context)
    context.prepare(kernels)
    yield from everything
