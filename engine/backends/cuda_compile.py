"""The probe of G1-KERNEL-COMPILE: each kernel source through NVRTC for each architecture."""

from typing import Any, Protocol

from engine.errors import DeviceError
from kernels.compile import ARCHITECTURES, nvrtc_version
from kernels.errors import KernelCompileError
from kernels.variants import compile_all


class _Options(Protocol):
    @property
    def architectures(self) -> tuple[str, ...]: ...


def cases(options: _Options) -> list[dict[str, Any]]:
    """One case a source and architecture: ok, cubin_bytes, seconds, error; `sm_NN` or all five.

    Raises DeviceError where NVRTC is not installed.
    """
    try:
        major, minor = nvrtc_version()
    except KernelCompileError as error:
        raise DeviceError(str(error)) from None
    results = compile_all(options.architectures or ARCHITECTURES)
    return [{**result, "nvrtc_version": f"{major}.{minor}"} for result in results]
