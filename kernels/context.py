"""The kernels of one device: declared by launchers, compiled together, launched on one stream."""

import ctypes
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from kernels.compile import Unit, cached_cubin
from kernels.driver import Function, LaunchShape, Module
from kernels.errors import KernelLaunchError


@dataclass(frozen=True)
class DeviceLimits:
    """What launchers adapt to: `sm_NN`, multiprocessors, shared memory a block may have."""

    architecture: str
    n_multiprocessors: int
    shared_bytes: int

    @property
    def has_dependent_launch(self) -> bool:
        """Programmatic dependent launch exists from sm_90 on."""
        return int(self.architecture.removeprefix("sm_")) >= 90

    @property
    def has_clusters(self) -> bool:
        """Blocks can form clusters and reach each other's shared memory from sm_90 on."""
        return self.has_dependent_launch


@dataclass(frozen=True)
class Kernel:
    """One entry of one source; `code` defines it where it is a template variant.

    `others` are what the same launch takes for other numbers of rows: compiled with it, but loaded
    when they are launched.
    """

    source: str
    entry: str
    code: str = ""
    others: "tuple[Kernel, ...]" = field(default=(), compare=False)

    @property
    def unit(self) -> Unit:
        """What must be compiled to get this entry."""
        return Unit(self.source, (self.code,) if self.code else ())


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for."""

    kernel: Kernel
    shape: LaunchShape
    arguments: ctypes.Structure
    dependent: bool


class Launcher(Protocol):
    """Where the typed launchers send their work."""

    limits: DeviceLimits

    def launch(self, kernel: Kernel, shape: LaunchShape, arguments: ctypes.Structure) -> None: ...


@dataclass
class KernelContext:
    """Compiled kernels of the current device and the stream they are launched on.

    `dependent` launches each kernel so that it may overlap the end of the one before (decode
    graphs on sm_90 and later).
    """

    limits: DeviceLimits
    stream: int = 0
    dependent: bool = False
    n_threads: int = 4
    _functions: dict[Kernel, Function] = field(default_factory=dict)
    _modules: dict[Unit, Module] = field(default_factory=dict)
    _in_use: set[Unit] = field(default_factory=set)
    _outlived: list[Module] = field(default_factory=list)
    _cubins: dict[Unit, bytes] = field(default_factory=dict)
    _recorded: list[Kernel] | None = None
    _noted: list[Launch] | None = None

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile (in parallel) and load what is not loaded yet; their `others` are compiled."""
        wanted = [kernel for kernel in dict.fromkeys(kernels) if kernel not in self._functions]
        needed = dict.fromkeys(one.unit for kernel in wanted for one in (kernel, *kernel.others))
        units = [one for one in needed if one not in self._modules and one not in self._cubins]
        self._cubins.update(zip(units, self._compiled(units), strict=True))
        for kernel in wanted:
            self._functions[kernel] = self._function_of(kernel)

    def _function_of(self, kernel: Kernel) -> Function:
        """The entry of a module; one that a full device refused is not asked for it again.

        The driver would hand it out then, and no launch of it would ever succeed (CUDA error 999).
        """
        module = self._module(kernel.unit)
        try:
            function = module.function(kernel.entry)
        except KernelLaunchError:
            del self._modules[kernel.unit]
            if kernel.unit in self._in_use:
                self._in_use.remove(kernel.unit)
                self._outlived.append(module)
            else:
                module.unload()
            raise
        self._in_use.add(kernel.unit)
        return function

    def _module(self, unit: Unit) -> Module:
        if unit not in self._modules:
            self._modules[unit] = Module(self._cubins.pop(unit))
        return self._modules[unit]

    def _compiled(self, units: list[Unit]) -> list[bytes]:
        """Machine code by unit; no threads are started where there is nothing to share out."""
        if len(units) < 2:
            return [cached_cubin(unit, self.limits.architecture) for unit in units]
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(lambda unit: cached_cubin(unit, self.limits.architecture), units))

    @contextmanager
    def recording(self) -> Iterator[list[Kernel]]:
        """Collect the kernels that would be launched inside."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @contextmanager
    def noting(self) -> Iterator[list[Launch]]:
        """Collect the launches asked for inside, for `queue`, instead of queueing them."""
        outer, self._noted = self._noted, []
        try:
            yield self._noted
        finally:
            self._noted = outer

    @contextmanager
    def serialized(self) -> Iterator[None]:
        """Launches inside wait for whatever was queued before: for kernels that do not wait."""
        dependent, self.dependent = self.dependent, False
        try:
            yield
        finally:
            self.dependent = dependent

    def launch(self, kernel: Kernel, shape: LaunchShape, arguments: ctypes.Structure) -> None:
        """Queue a kernel on the stream; raises KernelLaunchError."""
        if self._recorded is not None:
            self._recorded.append(kernel)
            return
        dependent = self.dependent and self.limits.has_dependent_launch
        self.repeat([Launch(kernel, shape, arguments, dependent)])

    def repeat(self, launches: list[Launch]) -> None:
        """Queue launches that were put together before, or note them inside `noting`."""
        if self._noted is not None:
            self._noted += launches
        else:
            self.queue(launches)

    def queue(self, launches: Iterable[Launch]) -> None:
        """Queue launches as they were noted; raises KernelLaunchError."""
        for one in launches:
            function = self._function(one.kernel)
            function.launch(one.shape, one.arguments, self.stream, dependent=one.dependent)

    def _function(self, kernel: Kernel) -> Function:
        function = self._functions.get(kernel)
        if function is None:
            self.prepare([kernel])
            function = self._functions[kernel]
        return function

    def close(self) -> None:
        """Unload every module."""
        self._functions.clear()
        self._cubins.clear()
        for module in (*self._modules.values(), *self._outlived):
            module.unload()
        self._modules.clear()
        self._in_use.clear()
        self._outlived.clear()
