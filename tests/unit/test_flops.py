"""Operation counts against sums worked by hand from the published shapes."""

from engine.flops import decode_flops, prefill_flops
from engine.program import Attention, Builder, KvShape, Linear, MixtureOfExperts, Program, Value


def _program(ops: list[object], head_cols: int = 8, vocab: int = 100) -> Program:
    build = Builder()
    for op in ops:
        build.emit(op)  # type: ignore[arg-type]
    x, logits = Value(0, 0, head_cols), Value(1, 0, vocab)
    return Program(
        body=build.take(),
        head=(Linear(logits, x, "output.weight"),),
        widths=(head_cols, vocab),
        head_input=x,
        logits=logits,
        kv=KvShape(1, 1, 4),
    )


def _attention(window: int | None = None) -> Attention:
    q = Value(0, 0, 8)
    return Attention(q, q, q.columns(0, 4), q.columns(4, 8), 0, 2, 1, 4, 0.5, window)


def test_a_matrix_costs_two_operations_a_weight_and_token() -> None:
    program = _program([Linear(Value(1, 0, 12), Value(0, 0, 8), "w")])
    assert prefill_flops(program, 5) == 5 * 2 * 12 * 8 + 2 * 100 * 8
    assert decode_flops(program, 5, 4) == 3 * (2 * 12 * 8 + 2 * 100 * 8)


def test_attention_counts_the_keys_that_each_query_sees() -> None:
    # Queries at positions 0, 1, 2 see 1 + 2 + 3 keys; 2 heads of 4, two products each.
    program = _program([_attention()])
    assert prefill_flops(program, 3) == 4 * 2 * 4 * 6 + 2 * 100 * 8


def test_a_window_bounds_the_keys() -> None:
    # With a window of 2 they see 1 + 2 + 2.
    program = _program([_attention(window=2)])
    assert prefill_flops(program, 3) == 4 * 2 * 4 * 5 + 2 * 100 * 8


def test_only_the_chosen_experts_count() -> None:
    x = Value(0, 0, 8)
    names = {n: n for n in ("router", "gate", "up", "down")}
    biases = {f"{n}_bias": n for n in names}
    moe = MixtureOfExperts(
        x, x, **names, **biases, n_experts=32, top_k=4, hidden=16, kind="clamped_swiglu"
    )
    router, expert = 2 * 32 * 8, 2 * (8 * 16 + 8 * 16 + 16 * 8)
    assert prefill_flops(_program([moe]), 1) == router + 4 * expert + 2 * 100 * 8


def test_the_first_token_comes_with_the_prefill() -> None:
    assert decode_flops(_program([_attention()]), 10, 1) == 0
