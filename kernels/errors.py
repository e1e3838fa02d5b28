"""The kernels' errors.

KernelError
├── KernelArgumentError   a launcher was given a wrong shape, dtype or layout
├── KernelCompileError    NVRTC is missing or refused a source
└── KernelLaunchError     the driver is missing, too old, or a call to it failed
"""

OUT_OF_MEMORY = 2
"""CUDA's status for memory that cannot be had, from the driver and from the runtime."""


class KernelError(Exception):
    """An error of the kernels: where, wanted, got, in one line."""


class KernelArgumentError(KernelError, ValueError):
    """A launcher was given a wrong shape, dtype or layout."""


class KernelCompileError(KernelError):
    """NVRTC is missing or refused a source."""


class KernelLaunchError(KernelError):
    """The driver is missing, too old, or a call to it failed with this `status` of CUDA."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
