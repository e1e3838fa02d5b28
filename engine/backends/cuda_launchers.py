"""The probe of G1-KERNEL-API: how the kernels' launchers are declared, and what they refuse.

Each launcher is called once as meant and then, for every array it takes, with that array's dtype,
address or shape spoiled, on a stand-in that only counts launches: no GPU is needed.
"""

import ctypes
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import kernels
from kernels import (
    attention,
    driver,
    elementwise,
    embed,
    experts_float,
    gemm,
    gemv,
    matrix,
    moe,
    norm,
    read,
    sample,
)
from kernels.arrays import DeviceArray
from kernels.context import DeviceLimits, Kernel
from kernels.driver import LaunchShape

ADDRESS = 4096
LAYER_BYTES = 1 << 20
SPOILS = ("dtype", "address", "shape")
_OTHER_DTYPE = {"f32": "f16", "f16": "f32", "i32": "f32", "u64": "f64", "f64": "f32"}


@dataclass
class _Counter:
    """Where launchers send their work; it counts."""

    limits: DeviceLimits = field(default_factory=lambda: DeviceLimits("sm_90", 132, 232448))
    launched: int = 0

    def launch(self, kernel: Kernel, shape: LaunchShape, arguments: ctypes.Structure) -> None:
        self.launched += 1


def unread(dtype: str, *shape: int) -> DeviceArray:
    """An array that the launcher at hand does not read, and so need not check."""
    return DeviceArray(ADDRESS, dtype, shape)


@dataclass
class _Arrays:
    """Makes the arrays of one call; the one numbered `at` is spoiled as `spoil` says.

    `made` notes for each array the spoils that must be refused.
    """

    at: int = -1
    spoil: str = ""
    made: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, dtype: str, *shape: int, spoils: tuple[str, ...] = SPOILS) -> DeviceArray:
        array = DeviceArray(ADDRESS, dtype, shape)
        self.made.append(spoils)
        if len(self.made) - 1 != self.at:
            return array
        if self.spoil == "dtype":
            return replace(array, dtype=_OTHER_DTYPE[dtype])
        if self.spoil == "address":
            return replace(array, pointer=ADDRESS + 1)
        step = -1 if spoils == ("shape",) else 1
        return replace(array, shape=(*shape[:-1], shape[-1] + step))

    def any_length(self, array: DeviceArray) -> DeviceArray:
        """The same array, of which any length is right."""
        return self(array.dtype, *array.shape, spoils=("dtype", "address"))

    def weights(self, type_name: str, rows: int, k: int, n: int = 1) -> matrix.PackedMatrix:
        """A packed matrix; its memory can only be too small."""
        size = matrix.matrix_bytes(type_name, rows, k, 2) * n
        tiles = self("u8", size, spoils=("shape",))
        return matrix.PackedMatrix(type_name, rows, k, 2, tiles, n)

    def layer(self, *read: str) -> attention.AttentionLayer:
        """4 heads of 64 over 2; the launcher reads the position, and what `read` names."""
        shape = attention.AttentionShape(4, 2, 64, 1.0)
        table, pages = (unread("f32", 128, 32, 2), unread("u64", 8))
        return attention.AttentionLayer(
            shape,
            attention.Rotation("half", self.any_length(table) if "table" in read else table),
            attention.KvPages(self.any_length(pages) if "pages" in read else pages, LAYER_BYTES, 0),
            self("i32", 1),
            self("f32", 4) if "sinks" in read else unread("f32", 4),
        )

    def projections(self, tokens: int) -> attention.Projections:
        """Projections of that layer."""
        return attention.Projections(
            self("f32", tokens, 256), self("f32", tokens, 128), self("f32", tokens, 128)
        )

    def splits(self) -> attention.Splits:
        """Splits of that layer."""
        return attention.Splits(self("f32", 4, 8, 64), self("f32", 4, 8, 2), 64, 8)

    def routing(self, *read: str) -> moe.Routing:
        """Five tokens routed to 2 of 8 experts; the launcher reads all but perhaps `experts`."""
        experts = self("i32", 10) if "experts" in read else unread("i32", 10)
        return moe.Routing(experts, self("f32", 10), self("i32", 10), self("i32", 9), 8, 2)

    def seen_only(self) -> sample.Sampler:
        """A sampler of a vocabulary of 64 that only notes tokens."""
        return sample.Sampler(
            unread("f32", 1, 64),
            (unread("f32", 4), unread("i32", 4)),
            self("i32", 2),
            *(unread("i32", 7), unread("i32", 3), unread("u64", 4)),
        )

    def sampler(self) -> sample.Sampler:
        """The sampler of that vocabulary."""
        return sample.Sampler(
            self("f32", 1, 64),
            (self("f32", 4), self("i32", 4)),
            *(self("i32", 2), self("i32", 7), self("i32", 3), self("u64", 4)),
        )


def _gemv(run: _Counter, a: _Arrays) -> None:
    segment = gemv.Segment(a.weights("Q4_K", 64, 512), a("f32", 1, 64), a("f32", 64))
    gemv.Gemv(
        (segment,),
        a("f32", 1, 512),
        "NORM",
        "STORE",
        gemv.GemvTuning(2, 4, 1),
        norm=gemv.NormInput(a("f32", 512), 1e-5),
    ).launch(run)


def _grouped(run: _Counter, a: _Arrays) -> None:
    spec = gemm.GroupedGemm(
        a.weights("MXFP4", 64, 512, 8),
        a("f32", 8, 64),
        a.routing(),
        *(5, "STORE", "EXPERT_IN"),
    )
    gemm.grouped_gemm(run, a("f16", 5, 512), a("f32", 10, 64), spec)


Call = Callable[[_Counter, _Arrays], Any]
CALLS: dict[str, Call] = {
    "norm.norm": lambda run, a: norm.norm(
        run, a("f32", 3, 8), (a("f32", 8), a("f32", 8)), (a("f32", 3, 8), a("f16", 3, 8)), 1e-5
    ),
    "elementwise.elementwise": lambda run, a: elementwise.elementwise(
        run, "add", (a("f32", 2, 8), a("f32", 2, 8)), (a("f32", 2, 8), a("f16", 2, 8))
    ),
    "embed.embed": lambda run, a: embed.embed(
        run, a("f32", 3, 512), a.weights("Q4_K", 9, 512), a("i32", 3)
    ),
    "embed.add_position": lambda run, a: embed.add_position(
        run, a("f32", 3, 512), a.weights("Q4_K", 9, 512), a("i32", 1)
    ),
    "gemm.gemm": lambda run, a: gemm.gemm(
        run,
        a("f16", 3, 512),
        (gemm.GemmOutput(a.weights("Q4_K", 64, 512), a("f32", 3, 64), a("f32", 64)),),
    ),
    "gemm.grouped_gemm": _grouped,
    "gemm.gemm_float": lambda run, a: gemm.gemm_float(
        run, a("f32", 3, 512), a.weights("F16", 64, 512), a("f32", 3, 64), a("f32", 64)
    ),
    "gemv.Gemv.launch": _gemv,
    "experts_float.experts_float": lambda run, a: experts_float.experts_float(
        run,
        a("f32", 5, 512),
        (a.weights("F16", 64, 512, 8), a("f32", 8, 64)),
        a("f32", 10, 32),
        *(a.routing(), "SILU"),
    ),
    "matrix.pack_rows": lambda run, a: matrix.pack_rows(
        run,
        a("u8", 8, 288, spoils=("shape",)),
        a.weights("Q4_K", 8, 512),
        matrix.RowPlacement(),
    ),
    "moe.route": lambda run, a: moe.route(run, a("f32", 5, 8), a.routing("experts")),
    "moe.combine": lambda run, a: moe.combine(run, a("f32", 10, 16), a("f32", 5, 16), 2, add=False),
    "attention.rope_table": lambda run, a: attention.rope_table(
        run, a("f64", 32), a("f32", 128, 32, 2), 1.0
    ),
    "attention.rope_append": lambda run, a: attention.rope_append(
        run, a.projections(3), a("f16", 3, 256), a.layer("table", "pages")
    ),
    "attention.attention_prefill": lambda run, a: attention.attention_prefill(
        run, a("f16", 3, 256), (a("f32", 3, 256), a("f16", 3, 256)), a.layer("pages", "sinks")
    ),
    "attention.attention_decode": lambda run, a: attention.attention_decode(
        run, a.projections(1), a.splits(), a.layer("table", "pages"), 4
    ),
    "attention.attention_merge": lambda run, a: attention.attention_merge(
        run, a.splits(), a("f32", 1, 256), a.layer("sinks")
    ),
    "read.read_words": lambda run, a: read.read_words(run, a("i32", 16, 4), a("i32", 132 * 2048)),
    "sample.Sampler.sample": lambda run, a: a.sampler().sample(run),
    "sample.Sampler.mark_seen": lambda run, a: a.seen_only().mark_seen(
        run, a.any_length(unread("i32", 5))
    ),
}
"""One call as meant for each launcher."""


def cases(_options: object) -> list[dict[str, Any]]:
    """Cases of kind `launcher`, `call`, `spoiled` and `device_error`."""
    return [*_declared(), *_called(), *_device_errors()]


def _declared() -> Iterator[dict[str, Any]]:
    """How each public function that takes a launcher is documented and typed."""
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"kernels.{info.name}")
        for name, function in _functions(module):
            signature = inspect.signature(function)
            if "launcher" not in signature.parameters:
                continue
            untyped = [
                parameter.name
                for parameter in signature.parameters.values()
                if parameter.annotation is inspect.Parameter.empty and parameter.name != "self"
            ]
            returns = signature.return_annotation is not inspect.Signature.empty
            yield {
                "kind": "launcher",
                "launcher": f"{info.name}.{name}",
                "documentation": inspect.getdoc(function) or "",
                "untyped": untyped + ([] if returns else ["return"]),
            }


def _functions(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The module's own public functions, and the public methods of its own classes."""
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(member):
            yield name, member
        elif inspect.isclass(member) and not getattr(member, "_is_protocol", False):
            for inner, method in vars(member).items():
                if inspect.isfunction(method) and not inner.startswith("_"):
                    yield f"{name}.{inner}", method


def _called() -> Iterator[dict[str, Any]]:
    for name, call in CALLS.items():
        arrays = _Arrays()
        yield {"kind": "call", "launcher": name, **_outcome(call, arrays)}
        for at, spoils in enumerate(arrays.made):
            for spoil in spoils:
                yield {
                    "kind": "spoiled",
                    "launcher": name,
                    "array": at,
                    "spoil": spoil,
                    **_outcome(call, _Arrays(at, spoil)),
                }


def _outcome(call: Call, arrays: _Arrays) -> dict[str, Any]:
    run, error, message = _Counter(), "", ""
    try:
        call(run, arrays)
    except Exception as failure:  # what kind it is, is what the probe tells
        error, message = type(failure).__name__, str(failure)
    return {"launched": run.launched, "error": error, "message": message}


def _device_errors() -> Iterator[dict[str, Any]]:
    """What a call to the driver becomes that ends with this status."""
    for status in (0, 1, 2, 700, 719):
        error, message = "", ""
        try:
            driver.check(status, "cuLaunchKernel")
        except Exception as failure:
            error, message = type(failure).__name__, str(failure)
        yield {"kind": "device_error", "status": status, "error": error, "message": message}
