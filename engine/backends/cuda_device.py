"""The CUDA device: found, checked and described; CuPy is imported here and only when asked for."""

import re
from dataclasses import dataclass
from typing import Any

from engine.errors import DeviceError
from kernels.compile import nvrtc_version
from kernels.context import DeviceLimits
from kernels.driver import driver_version
from kernels.errors import KernelError

MIN_COMPUTE_CAPABILITY = (8, 0)
_DEVICE = re.compile(r"cuda(?::(\d{1,3}))?")
_ARCHITECTURES = ((10, 0), (9, 0), (8, 9), (8, 6), (8, 0))


@dataclass(frozen=True)
class CudaDevice:
    """One usable GPU; `index` as CUDA counts, memory in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    limits: DeviceLimits
    total_bytes: int
    runtime_version: int
    driver_version: int

    def facts(self) -> dict[str, Any]:
        """What /health and bench report of the device."""
        return {
            "name": self.name,
            "sm": self.limits.architecture,
            "n_multiprocessors": self.limits.n_multiprocessors,
            "total_bytes": self.total_bytes,
            "cuda_runtime_version": _dotted(self.runtime_version),
            "cuda_driver_version": _dotted(self.driver_version),
        }


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def parse_device(device: str) -> int:
    """The index in `cuda` or `cuda:N`; raises DeviceError for anything else."""
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise DeviceError(f"--device: wanted cuda:N, got {device!r}")
    return int(match[1] or 0)


def import_cupy() -> Any:
    """CuPy, imported at first use; raises DeviceError where it or its libraries are missing."""
    try:
        import cupy
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(
            f"CuPy cannot be imported ({reason}); install haikugate[cuda13] or haikugate[cuda12]"
        ) from None
    return cupy


def check_versions(driver: int, runtime: int) -> None:
    """Raise DeviceError where the driver supports an older CUDA than the toolkit's major."""
    if driver // 1000 < runtime // 1000:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {_dotted(driver)}, the toolkit is "
            f"{_dotted(runtime)}: update the driver or install haikugate[cuda{driver // 1000}]"
        )


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raise DeviceError for a GPU older than compute capability 8.0."""
    if capability < MIN_COMPUTE_CAPABILITY:
        major, minor = capability
        raise DeviceError(
            f"{name} has compute capability {major}.{minor}, 8.0 or newer is needed (Ampere)"
        )


def architecture_of(capability: tuple[int, int]) -> str:
    """The newest architecture we compile for that runs on this compute capability.

    Machine code of one major version runs on later minor versions of it only; a newer major is
    compiled for itself.
    """
    for major, minor in _ARCHITECTURES:
        if major == capability[0] and minor <= capability[1]:
            return f"sm_{major}{minor}"
    return f"sm_{capability[0]}{capability[1]}"


def open_device(device: str) -> CudaDevice:
    """Make the device current and describe it; raises DeviceError with one line on any fault.

    What a process does once happens here: CuPy, CUDA's context and NVRTC are there afterwards.
    """
    index = parse_device(device)
    try:
        driver = driver_version()
    except KernelError as error:
        raise DeviceError(f"--device {device}: {error}") from None
    cupy = import_cupy()
    runtime = cupy.cuda.runtime
    try:
        check_versions(driver, runtime.runtimeGetVersion())
        n_devices = runtime.getDeviceCount()
        if index >= n_devices:
            raise DeviceError(f"--device {device}: this machine has {n_devices} CUDA device(s)")
        runtime.setDevice(index)
        properties = runtime.getDeviceProperties(index)
    except runtime.CUDARuntimeError as error:
        raise DeviceError(f"--device {device}: {error}") from None
    name = properties["name"].decode()
    capability = (properties["major"], properties["minor"])
    check_capability(name, capability)
    try:
        nvrtc_version()
    except KernelError as error:
        raise DeviceError(f"--device {device}: {error}") from None
    limits = DeviceLimits(
        architecture_of(capability),
        properties["multiProcessorCount"],
        properties["sharedMemPerBlockOptin"],
    )
    return CudaDevice(
        index, name, capability, limits, properties["totalGlobalMem"],
        runtime.runtimeGetVersion(), driver,
    )  # fmt: skip
