"""Embedding, linears and experts as the kernel probe launches them, beside float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.backends.cuda_probe_arrays import (
    FLOATS,
    QUANTIZED,
    Arena,
    Float64s,
    Measurement,
    Output,
    Raw,
    dequantized,
    random_rows,
    whole_width,
)
from engine.quants import BLOCK_FORMATS
from kernels.context import KernelContext, Launcher
from kernels.embed import add_position, embed
from kernels.experts_float import experts_float
from kernels.gemm import FEW_TOKENS, GemmOutput, GroupedGemm, gemm, gemm_float, grouped_gemm
from kernels.gemv import Gemv, GemvTuning, NormInput, Segment
from kernels.moe import Routing, combine, route

EPS = 1e-5
N_EXPERTS, N_CHOSEN = 8, 3

Floats = NDArray[np.float32]


def silu_gated(gate: Float64s, up: Float64s) -> Float64s:
    """SwiGLU in float64."""
    return np.asarray(gate / (1 + np.exp(-gate)) * up)


def clamped_gated(gate: Float64s, up: Float64s) -> Float64s:
    """GPT-OSS's clamped SwiGLU in float64."""
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return np.asarray(gate / (1 + np.exp(-1.702 * gate)) * (up + 1))


GateName = Literal["SILU", "CLAMPED"]
GATES: dict[GateName, Callable[[Float64s, Float64s], Float64s]] = {
    "SILU": silu_gated,
    "CLAMPED": clamped_gated,
}


class Linears:
    """Measurements over one context and arena, from one random source."""

    def __init__(self, context: KernelContext, arena: Arena, seed: int) -> None:
        self.context, self.arena = context, arena
        self.rng = np.random.default_rng([seed, 1])

    def all(self) -> Iterator[Measurement]:
        """Every measurement of this file."""
        for number, name in enumerate(BLOCK_FORMATS):
            yield self._embed(name, (1, 2, 4)[number % 3])
            yield self._gemv_normed(name)
            yield self._gemv_added(name)
        for name in QUANTIZED:
            yield self._gemm(name, (77, 300, 800), "many")
            yield self._gemm(name, (64, 130, 512), "middle")
            yield self._gemm(name, (1, 130, 512), "few")
        yield self._gemm("Q4_K", (250, 8400, 256), "wide")
        yield self._gemm("Q6_K", (1000, 4200, 256), "large")
        for name in FLOATS:
            yield self._gemm_float(name, 135)
        yield self._gemm_float("F32", 35)
        for epilogue in GATES:
            yield from self._gated(epilogue)
        yield self._three_at_once()
        yield self._best()
        yield self._route()
        for tokens in (61, 130):
            yield self._experts(tokens)
        for name in FLOATS:
            yield self._exact_experts(name)

    def _normals(self, *shape: int) -> Floats:
        return self.rng.standard_normal(shape).astype(np.float32)

    def _embed(self, name: str, tile_rows: int) -> Measurement:
        arena, rows, k = self.arena, 37, whole_width(name, 800)
        raw = random_rows(self.rng, name, rows, k)
        table = arena.packed(self.context, name, [raw], (rows, k, tile_rows))
        ids = self.rng.integers(0, rows, 19).astype(np.int32)
        out, array = arena.poisoned((19, k))
        at, position = arena.put(ids), arena.put(np.array([5], np.int32))
        weights = dequantized(name, raw)

        def launch(to: Launcher) -> None:
            embed(to, out, table, at)
            add_position(to, out, table, position)

        want = Output(array, weights[ids] + weights[5:24])
        return Measurement("EMBED", f"{name} {rows}x{k}", (name, "position"), launch, (want,))

    def _gemv_normed(self, name: str) -> Measurement:
        arena, rows, k = self.arena, 301, whole_width(name, 2880)
        raw = random_rows(self.rng, name, rows, k)
        matrix = arena.packed(self.context, name, [raw], (rows, k, 1))
        x, gain, bias = self._normals(1, k), self._normals(k), self._normals(rows)
        out, array = arena.poisoned((1, rows))
        spec = Gemv(
            (Segment(matrix, out, arena.put(bias)),), arena.put(x), "NORM", "STORE",
            GemvTuning(1, 8, 2, early_tiles=3), norm=NormInput(arena.put(gain), EPS),
        )  # fmt: skip
        x64 = x.astype(np.float64)
        normed = x64 / np.sqrt((x64**2).mean() + EPS) * gain
        want = Output(array, normed @ dequantized(name, raw).T + bias)
        return Measurement("GEMV", f"{name} {rows}x{k}", (name, "norm"), spec.launch, (want,))

    def _gemv_added(self, name: str) -> Measurement:
        arena, rows, k = self.arena, 1153, whole_width(name, 896)
        raw = random_rows(self.rng, name, rows, k)
        matrix = arena.packed(self.context, name, [raw], (rows, k, 2))
        x, start = self._normals(1, k), self._normals(1, rows)
        out, array = arena.poisoned((1, rows))
        tuning = GemvTuning(2, 16, 1, early_tiles=0)
        spec = Gemv((Segment(matrix, out),), arena.put(x), "PLAIN", "ADD", tuning)
        want = Output(array, start + x.astype(np.float64) @ dequantized(name, raw).T, start)
        return Measurement("GEMV", f"{name} {rows}x{k}", (name, "add"), spec.launch, (want,))

    def _gemm(self, name: str, shape: tuple[int, int, int], size: str) -> Measurement:
        (m, n, k), arena = shape, self.arena
        k = whole_width(name, k)
        raw = random_rows(self.rng, name, n, k)
        matrix = arena.packed(self.context, name, [raw], (n, k, 2))
        x, bias = self._normals(m, k).astype(np.float16), self._normals(n)
        out, array = arena.poisoned((m, n))
        x_at, output = arena.put(x), GemmOutput(matrix, out, arena.put(bias))
        want = Output(array, x.astype(np.float64) @ dequantized(name, raw).T + bias)
        return Measurement(
            "GEMM", f"{name} {m}x{n}x{k}", (name, size),
            lambda to: gemm(to, x_at, (output,)), (want,),
        )  # fmt: skip

    def _gemm_float(self, name: str, n: int) -> Measurement:
        arena, m, k = self.arena, 67, 100
        raw = random_rows(self.rng, name, n, k)
        matrix = arena.packed(self.context, name, [raw], (n, k, 4))
        x = self._normals(m, k)
        out, array = arena.poisoned((m, n))
        x_at = arena.put(x)
        want = Output(array, x.astype(np.float64) @ dequantized(name, raw).T)
        return Measurement(
            "GEMM", f"{name} {m}x{n}x{k}", (name,),
            lambda to: gemm_float(to, x_at, matrix, out), (want,),
        )  # fmt: skip

    def _gated(self, epilogue: GateName) -> Iterator[Measurement]:
        arena, rows, k = self.arena, 3074, 1280
        raw = random_rows(self.rng, "Q4_K", rows, k)
        matrix = arena.packed(self.context, "Q4_K", [raw], (rows, k, 2))
        x = self._normals(3, k).astype(np.float16)
        both = x.astype(np.float64) @ dequantized("Q4_K", raw).T
        want = GATES[epilogue](both[:, ::2], both[:, 1::2])
        one, one_array = arena.poisoned((1, rows // 2))
        half, half_array = arena.poisoned((3, rows // 2), "f2")
        x_one, x_half = arena.put(x[:1].astype(np.float32)), arena.put(x)
        spec = Gemv((Segment(matrix, one),), x_one, "PLAIN", epilogue, GemvTuning(2, 16, 1))
        name, covers = f"Q4_K {rows}x{k} {epilogue}", (epilogue,)
        yield Measurement("GEMV", name, covers, spec.launch, (Output(one_array, want[:1]),))
        yield Measurement(
            "GEMM", name, covers,
            lambda to: gemm(to, x_half, (GemmOutput(matrix, half),), epilogue),
            (Output(half_array, want),),
        )  # fmt: skip

    def _three_at_once(self) -> Measurement:
        arena, k, types = self.arena, 896, ("Q5_0", "Q5_0", "Q8_0")
        x = self._normals(1, k)
        segments, outputs = [], []
        for name, rows in zip(types, (896, 128, 129), strict=True):
            raw = random_rows(self.rng, name, rows, k)
            out, array = arena.poisoned((1, rows))
            segments.append(Segment(arena.packed(self.context, name, [raw], (rows, k, 1)), out))
            outputs.append(Output(array, x.astype(np.float64) @ dequantized(name, raw).T))
        spec = Gemv(tuple(segments), arena.put(x), "PLAIN", "STORE", GemvTuning(1, 9, 1))
        return Measurement("GEMV", "three matrices", ("segments",), spec.launch, tuple(outputs))

    def _best(self) -> Measurement:
        """Logits, of which two rows are equal and largest, and the argmax by block."""
        arena, k, rows = self.arena, 576, 4099
        raw = random_rows(self.rng, "Q8_0", rows, k)
        raw[4000] = raw[17]
        matrix = arena.packed(self.context, "Q8_0", [raw], (rows, k, 4))
        x = np.asarray(dequantized("Q8_0", raw)[17:18], np.float32)
        grid = self.context.limits.n_multiprocessors
        out, array = arena.poisoned((1, rows))
        (value, _), (index, _) = arena.poisoned((grid,)), arena.poisoned((grid,), "i4")
        gain = arena.put(np.ones(k, np.float32))
        spec = Gemv(
            (Segment(matrix, out),), arena.put(x), "NORM", "LOGITS", GemvTuning(4, 16, 2),
            norm=NormInput(gain, EPS), best=(value, index),
        )  # fmt: skip
        x64 = x.astype(np.float64)
        normed = x64 / np.sqrt((x64**2).mean() + EPS)
        want = Output(array, normed @ dequantized("Q8_0", raw).T)
        return Measurement("GEMV", "logits", ("logits",), spec.launch, (want,))

    def _routing(self, tokens: int) -> tuple[Routing, tuple[Any, Any]]:
        arena, n = self.arena, tokens * N_CHOSEN
        (experts, chosen), (share, shares) = arena.poisoned((n,), "i4"), arena.poisoned((n,))
        entries, first = arena.poisoned((n,), "i4")[0], arena.poisoned((N_EXPERTS + 1,), "i4")[0]
        return Routing(experts, share, entries, first, N_EXPERTS, N_CHOSEN), (chosen, shares)

    def _router_logits(self, tokens: int) -> Floats:
        """Random logits, in which two experts are always equal."""
        logits = self._normals(tokens, N_EXPERTS)
        logits[:, 3] = logits[:, 5]
        return logits

    def _route(self) -> Measurement:
        logits = self._router_logits(61)
        routing, (chosen, shares) = self._routing(61)
        at = self.arena.put(logits)
        best, share = chosen_experts(logits.astype(np.float64))
        outputs = (
            Output(chosen, best.reshape(-1).astype(np.float64)),
            Output(shares, share.reshape(-1)),
        )
        return Measurement(
            "MOE", "route 61 tokens", ("route", "ties"), lambda to: route(to, at, routing), outputs
        )

    def _exact_experts(self, name: str) -> Measurement:
        """Experts of float weights, activations in float32."""
        arena, tokens, k, hidden = self.arena, 61, 100, 72
        raws = [
            [random_rows(self.rng, name, rows, width) for _ in range(N_EXPERTS)]
            for rows, width in ((2 * hidden, k), (k, hidden))
        ]
        gate_up = arena.packed(self.context, name, raws[0], (2 * hidden, k, 2))
        down = arena.packed(self.context, name, raws[1], (k, hidden, 1))
        x, logits = self._normals(tokens, k), self._router_logits(tokens)
        biases = [self._normals(N_EXPERTS, n) for n in (2 * hidden, k)]
        routing, _ = self._routing(tokens)
        (h, _), (y, _) = (arena.poisoned((tokens * N_CHOSEN, n)) for n in (hidden, k))
        out, array = arena.poisoned((tokens, k))
        at, x_at, bias_at = arena.put(logits), arena.put(x), [arena.put(b) for b in biases]

        def launch(to: Launcher) -> None:
            route(to, at, routing)
            experts_float(to, x_at, (gate_up, bias_at[0]), h, routing, "CLAMPED")
            experts_float(to, h, (down, bias_at[1]), y, routing, "WEIGHTED")
            combine(to, y, out, N_CHOSEN, add=False)

        model = ExpertsModel(name, raws, biases)
        want = model.output(x.astype(np.float64), logits.astype(np.float64))
        covers = ("experts", f"exact {name}")
        return Measurement("MOE", f"{name} experts", covers, launch, (Output(array, want),))

    def _experts(self, tokens: int) -> Measurement:
        arena, k, hidden = self.arena, 96, 160
        raws = [
            [random_rows(self.rng, "MXFP4", rows, width) for _ in range(N_EXPERTS)]
            for rows, width in ((2 * hidden, k), (k, hidden))
        ]
        gate_up = arena.packed(self.context, "MXFP4", raws[0], (2 * hidden, k, 2))
        down = arena.packed(self.context, "MXFP4", raws[1], (k, hidden, 2))
        x = self._normals(tokens, k).astype(np.float16)
        logits = self._router_logits(tokens)
        biases = [self._normals(N_EXPERTS, n) for n in (2 * hidden, k)]
        routing, _ = self._routing(tokens)
        n = tokens * N_CHOSEN
        h, _ = arena.poisoned((n, hidden), "f2")
        y, _ = arena.poisoned((n, k))
        out, array = arena.poisoned((tokens, k))
        first = GroupedGemm(gate_up, arena.put(biases[0]), routing, tokens, "CLAMPED", "EXPERT_IN")
        last = GroupedGemm(down, arena.put(biases[1]), routing, tokens, "STORE", "EXPERT_OUT")
        at, x_at = arena.put(logits), arena.put(x)

        def launch(to: Launcher) -> None:
            route(to, at, routing)
            grouped_gemm(to, x_at, h, first)
            grouped_gemm(to, h, y, last)
            combine(to, y, out, N_CHOSEN, add=False)

        model = ExpertsModel("MXFP4", raws, biases)
        want = model.output(x.astype(np.float64), logits.astype(np.float64))
        covers = ("route", "experts", "combine", "ties", "few" if tokens < FEW_TOKENS else "many")
        return Measurement(
            "MOE", f"MXFP4 experts, {tokens} tokens", covers, launch, (Output(array, want),)
        )


def chosen_experts(logits: Float64s) -> tuple[NDArray[np.int64], Float64s]:
    """The best experts of each token, the lower first among equals, and their softmax."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :N_CHOSEN]
    taken = np.take_along_axis(logits, best, axis=1)
    grown = np.exp(taken - taken.max(1, keepdims=True))
    return best, grown / grown.sum(1, keepdims=True)


@dataclass(frozen=True)
class ExpertsModel:
    """Experts in float64: rows of gate and up, and of down, of each, and the two biases."""

    type: str
    raws: list[list[Raw]]
    biases: list[Floats]

    def output(self, x: Float64s, logits: Float64s) -> Float64s:
        """Σ over the chosen experts of share · down(clamped(gate_up(x)))."""
        best, shares = chosen_experts(logits)
        gate_up, down = ([dequantized(self.type, raw) for raw in one] for one in self.raws)
        out = np.zeros_like(x)
        for token, (experts, weights) in enumerate(zip(best, shares, strict=True)):
            for expert, share in zip(experts, weights, strict=True):
                both = gate_up[expert] @ x[token] + self.biases[0][expert]
                hidden = clamped_gated(both[::2], both[1::2])
                out[token] += share * (down[expert] @ hidden + self.biases[1][expert])
        return out
