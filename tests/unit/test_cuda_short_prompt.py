"""Which prompts become a padded graph, and which kernels each prompt takes, over a fake device."""

import pytest

from engine.backends.cuda_short_prompt import ShortPromptGraphs
from kernels.context import DeviceLimits, KernelContext
from tests.unit.fake_cuda import LAUNCHES, FakeStream
from tests.unit.test_cuda_runtime import cupy, go_on, load  # noqa: F401


@pytest.fixture
def queued() -> list[int]:
    return []


def graphs_of(queued: list[int], context_length: int = 1000) -> ShortPromptGraphs:
    context = KernelContext(DeviceLimits("sm_90", 132, 232_448))
    return ShortPromptGraphs(FakeStream(), context, queued.append, context_length)


@pytest.mark.parametrize(("n_tokens", "rows"), [(1, 8), (8, 8), (9, 16), (32, 32), (33, 63)])
def test_a_prompt_is_padded_to_the_next_graph(queued: list[int], n_tokens: int, rows: int) -> None:
    graphs = graphs_of(queued)
    assert graphs.launch(n_tokens)
    assert graphs.launch(n_tokens)
    assert queued == [rows]  # noted, and captured, once


@pytest.mark.parametrize(("n_tokens", "context_length"), [(64, 1000), (4096, 8192), (33, 62)])
def test_other_prompts_are_left(queued: list[int], n_tokens: int, context_length: int) -> None:
    assert not graphs_of(queued, context_length).launch(n_tokens)
    assert queued == []


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(
    ("lengths", "few"),
    [((32,), True), ((63,), True), ((64,), False), ((130,), False), ((128, 6), False)],
)
def test_only_a_prompt_without_a_whole_page_takes_the_kernels_of_few_rows(
    lengths: tuple[int, ...], few: bool
) -> None:
    runtime = load("Q8_0")
    sequence = runtime.open_sequence()
    for length in lengths[:-1]:
        runtime.prefill(sequence, [1] * length, go_on)
    LAUNCHES.clear()
    runtime.prefill(sequence, [1] * lengths[-1], go_on)
    assert any(name.startswith("gemm_few_") for name in LAUNCHES) == few
    assert any(name.startswith("gemm_warpgroup_Q8_0") for name in LAUNCHES) != few
    sequence.close()
    runtime.close()
