"""What Numba needs to compile this backend: a disk cache that always works, and small LLVM pieces.

Kernels are `cfunc`s with one signature, called by address, so the interpreter of the instruction
table never depends on which kernels a model uses and only those are compiled.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.caching import Cache, IndexDataCacheFile
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from engine.errors import DeviceError

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
F16 = ir.HalfType()

KERNEL = types.void(types.uintp, types.intp, types.intp, types.uintp, types.uintp)
"""kernel(instruction address, first unit, end unit, state address, thread scratch address)."""


def _source_digest() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("cpu*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


_SOURCES_AT_IMPORT = _source_digest()


def _cache_dir() -> Path:
    """A folder for these very sources: Numba itself does not see that a callee has changed."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(config.CACHE_DIR) if config.CACHE_DIR else Path(root) / "haikugate" / "jit"
    path = folder / _SOURCES_AT_IMPORT
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="haikugate-jit-"))


config.CACHE_DIR = str(_cache_dir())


def require_unchanged_sources() -> None:
    """DeviceError if the sources changed since this module was imported; call it after the last.

    Half of the old kernels with half of the new ones would not fail, they would corrupt memory.
    """
    if _source_digest() != _SOURCES_AT_IMPORT:
        raise DeviceError("the CPU kernels' sources changed while they were read: start again")


def _save_alone(self: IndexDataCacheFile, key: Any, data: Any) -> None:
    """Save under a lock between processes.

    Numba picks a file name from the index, writes the index, then the file: two processes that do
    so at once for two kernels of one function would leave one kernel under the other's key.
    """
    with open(os.path.join(self._cache_path, "lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _save(self, key, data)


_save = IndexDataCacheFile.save
IndexDataCacheFile.save = _save_alone


def _load_alone(self: Cache, signature: Any, target: Any) -> Any:
    """Load machine code without all that Numba needs to make some: most of an engine's start.

    Where nothing is kept Numba's compiler reads the rest itself.
    """
    rtsys.initialize(target)
    with self._guard_against_spurious_io_errors():
        return self._load_overload(signature, target)


Cache.load_overload = _load_alone


def host_features() -> frozenset[str]:
    """The CPU features that Numba generates code for, e.g. `avx2`; empty for a generic target."""
    if config.CPU_NAME == "generic":
        named = (config.CPU_FEATURES or "").split(",")
        return frozenset(name[1:] for name in named if name.startswith("+"))
    found = llvmlite.binding.get_host_cpu_features()
    return frozenset(name for name, present in found.items() if present)


FEATURES = host_features()


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """The LLVM vector type of `count` elements."""
    return ir.VectorType(element, count)


def constant(kind: ir.VectorType, number: float) -> ir.Constant:
    """A vector with the same number in every lane."""
    return ir.Constant(kind, [number] * kind.count)


def pointer(b: ir.IRBuilder, base: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
    """The address `base + offset` bytes as a pointer to `kind`."""
    step = I64(offset) if isinstance(offset, int) else offset
    return b.inttoptr(b.add(base, step), kind.as_pointer())


def load(b: ir.IRBuilder, base: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
    """Load `kind` from `base + offset` bytes, any alignment that is a multiple of its element."""
    value = b.load(pointer(b, base, offset, kind))
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    value.align = element.width // 8 if isinstance(element, ir.IntType) else 4
    return value


def store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, offset: ir.Value | int) -> None:
    """Store a float vector at `base + offset` bytes."""
    b.store(value, pointer(b, base, offset, value.type)).align = 4


def splat(b: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """A vector with a scalar in every lane."""
    kind = vector(value.type, count)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return b.shuffle_vector(first, first, constant(vector(I32, count), 0))


def call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def multiply_add(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x·y + z, fused only where the target has the instruction, so a host always rounds alike."""
    if "fma" in FEATURES or "neon" in FEATURES:
        return call(b, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])
    return b.fadd(b.fmul(x, y), z)


def prefetch(b: ir.IRBuilder, base: ir.Value, offset: int) -> None:
    """Ask for the cache line at `base + offset` bytes."""
    address = pointer(b, base, offset, I8)
    call(b, "llvm.prefetch.p0", ir.VoidType(), [address, I32(0), I32(3), I32(1)])


@intrinsic
def call_kernel(typing: Any, address, instruction, first, end, state, scratch):  # type: ignore[no-untyped-def]
    """Call the kernel at `address` (see KERNEL)."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 5)
        b.call(b.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    word = types.intp
    return types.void(types.uintp, types.uintp, word, word, types.uintp, types.uintp), generate


def _typed_pointer(element: Any) -> Callable[..., Any]:
    @intrinsic
    def cast(typing: Any, address):  # type: ignore[no-untyped-def]
        def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return b.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.uintp), generate

    cast_any: Callable[..., Any] = cast
    return cast_any


as_f32 = _typed_pointer(types.float32)
as_i64 = _typed_pointer(types.int64)


@intrinsic
def atomic_add(typing: Any, address, amount):  # type: ignore[no-untyped-def]
    """Add to the int64 at `address`; returns what was there before."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        target = b.inttoptr(arguments[0], I64.as_pointer())
        return b.atomic_rmw("add", target, arguments[1], "acq_rel")

    return types.int64(types.uintp, types.int64), generate


@intrinsic
def atomic_load(typing: Any, address):  # type: ignore[no-untyped-def]
    """Read the int64 at `address`, seeing everything written before it was stored."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return b.load_atomic(b.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.uintp), generate


@intrinsic
def atomic_replace(typing: Any, address, expected, value):  # type: ignore[no-untyped-def]
    """Write `value` if the int64 at `address` is `expected`; returns whether it was."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        target = b.inttoptr(arguments[0], I64.as_pointer())
        pair = b.cmpxchg(target, arguments[1], arguments[2], "acq_rel", "acquire")
        return b.extract_value(pair, 1)

    return types.boolean(types.uintp, types.int64, types.int64), generate


@intrinsic
def atomic_store(typing: Any, address, value):  # type: ignore[no-untyped-def]
    """Write the int64 at `address` after everything written before."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        b.store_atomic(arguments[1], b.inttoptr(arguments[0], I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.uintp, types.int64), generate


@intrinsic
def pause(typing: Any):  # type: ignore[no-untyped-def]
    """Tell the core that this is a spin loop."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        if "sse2" in FEATURES:
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), generate


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Where an array's first element lies."""
    return int(array.ctypes.data)
