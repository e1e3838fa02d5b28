"""Probe `kernels-compile`: every kernel source through NVRTC, no GPU needed."""

from engine.probe import Case, ProbeOptions


def cases(options: ProbeOptions) -> list[Case]:
    """One case a compilation, for the given architectures or for all that are supported."""
    from kernels.compile import ARCHITECTURES, compile_all

    return compile_all(options.architectures or ARCHITECTURES)
