"""A model's forward pass as data: adapters write it once, every backend executes it.

An adapter calls the `Builder` in the order of the model's equations; the result is a `Program`, a
straight line of operations over float32 activations of shape [tokens, width]. A backend never asks
which architecture it runs, and an adapter never asks on which device.
"""

from dataclasses import dataclass
from typing import Literal

RopePairs = Literal["adjacent", "half"]
Gate = Literal["silu", "clamped_swiglu"]


@dataclass(frozen=True)
class Value:
    """Columns [offset, offset + width) of activation buffer `buffer`, shape [tokens, width]."""

    buffer: int
    offset: int
    width: int

    def columns(self, start: int, stop: int) -> "Value":
        """The sub-range [start, stop) of these columns, no copy."""
        if not 0 <= start < stop <= self.width:
            raise ValueError(f"columns [{start}, {stop}) are outside a value of width {self.width}")
        return Value(self.buffer, self.offset + start, stop - start)


@dataclass(frozen=True)
class Embed:
    """out[t] = table[token_id[t]]; table is a GGUF tensor name, [vocab, width], any type."""

    out: Value
    table: str


@dataclass(frozen=True)
class AddPosition:
    """x[t] += table[position[t]], in place (GPT-2's learned positions); table [context, width]."""

    x: Value
    table: str


@dataclass(frozen=True)
class RmsNorm:
    """out = x / sqrt(mean(x²) + eps) · weight."""

    out: Value
    x: Value
    weight: str
    eps: float


@dataclass(frozen=True)
class LayerNorm:
    """out = (x - mean) / sqrt(var + eps) · weight + bias."""

    out: Value
    x: Value
    weight: str
    bias: str
    eps: float


@dataclass(frozen=True)
class Linear:
    """out = x · weightᵀ + bias; weight [out.width, x.width] in any block format, bias of out."""

    out: Value
    x: Value
    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class Rope:
    """Rotate each head of x in place by position · inverse_frequencies[i] (radians a position).

    `adjacent` rotates (x[2i], x[2i+1]), `half` rotates (x[i], x[i + n]), n = len(frequencies);
    dimensions past 2n stay as they are. cos and sin are multiplied by `magnitude` (YaRN, else 1).
    """

    x: Value
    n_heads: int
    head_dim: int
    pairs: RopePairs
    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Append k, v of this layer to the KV cache, then causal grouped-query attention.

    q [tokens, n_heads·head_dim], k and v [tokens, n_kv_heads·head_dim], out like q. Query position
    p sees keys in (p - window, p] where window is set, else [0, p]. `sinks` names a tensor
    [n_heads] of logits that take part in the softmax denominator only.
    """

    out: Value
    q: Value
    k: Value
    v: Value
    layer: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    sinks: str | None = None


@dataclass(frozen=True)
class GatedActivation:
    """silu: out = gate·σ(gate)·up; clamped_swiglu: min(g,7)·σ(1.702·min(g,7))·(clamp(u,±7)+1)."""

    out: Value
    gate: Value
    up: Value
    kind: Gate


@dataclass(frozen=True)
class Gelu:
    """out = 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""

    out: Value
    x: Value


@dataclass(frozen=True)
class MixtureOfExperts:
    """out = Σ over the top_k experts e of softmax(chosen router logits)[e] · ffn_e(x).

    router [n_experts, width] (+ bias); gate, up [n_experts, hidden, width], down [n_experts, width,
    hidden], each with a bias [n_experts, ·]; the activation is `kind`. Ties: the lower expert wins.
    """

    out: Value
    x: Value
    router: str
    router_bias: str
    gate: str
    gate_bias: str
    up: str
    up_bias: str
    down: str
    down_bias: str
    n_experts: int
    top_k: int
    hidden: int
    kind: Gate


@dataclass(frozen=True)
class Add:
    """out = x + y (out may be x)."""

    out: Value
    x: Value
    y: Value


Op = (
    Embed | AddPosition | RmsNorm | LayerNorm | Linear | Rope | Attention
    | GatedActivation | Gelu | MixtureOfExperts | Add
)  # fmt: skip


@dataclass(frozen=True)
class KvShape:
    """What one layer keeps for one position: n_kv_heads · head_dim keys and as many values."""

    n_layers: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Program:
    """The whole forward pass.

    `body` runs for every token of a chunk; `head` (final norm and output matrix) only for the rows
    whose logits are wanted, reading `head_input` and leaving `logits` [rows, vocab]. `widths[b]` is
    the width of activation buffer b.
    """

    body: tuple[Op, ...]
    head: tuple[Op, ...]
    widths: tuple[int, ...]
    head_input: Value
    logits: Value
    kv: KvShape


class Builder:
    """Collects the operations of one forward pass; each call returns the value it defines."""

    def __init__(self) -> None:
        self._ops: list[Op] = []
        self._widths: list[int] = []

    def value(self, width: int) -> Value:
        """A fresh activation buffer of this width."""
        self._widths.append(width)
        return Value(len(self._widths) - 1, 0, width)

    def emit(self, op: Op) -> Value:
        """Append an operation and return what it writes (`out`, or `x` where it works in place)."""
        self._ops.append(op)
        return op.x if isinstance(op, AddPosition | Rope) else op.out

    def take(self) -> tuple[Op, ...]:
        """The operations since the last take: an adapter calls it once for body, once for head."""
        ops, self._ops = tuple(self._ops), []
        return ops

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of every buffer made so far."""
        return tuple(self._widths)
