"""Which chunks become a padded graph, and how prompts are cut for them, over a fake device."""

import pytest

from engine.backends.cuda_tail import TailGraphs
from kernels.context import DeviceLimits, KernelContext
from tests.unit.fake_cuda import FakeStream
from tests.unit.test_cuda_runtime import cupy, go_on, load  # noqa: F401


@pytest.fixture
def queued() -> list[int]:
    return []


def tails(queued: list[int]) -> TailGraphs:
    context = KernelContext(DeviceLimits("sm_90", 132, 232_448))
    return TailGraphs(FakeStream(), context, queued.append, context_length=1000)


@pytest.mark.parametrize(("n_tokens", "rows"), [(1, 8), (8, 8), (9, 16), (32, 32), (33, 63)])
def test_a_tail_is_padded_to_the_next_graph(queued: list[int], n_tokens: int, rows: int) -> None:
    graphs = tails(queued)
    assert graphs.launch(64, n_tokens)
    assert graphs.launch(128, n_tokens)
    assert queued == [rows, rows]  # recorded, then captured, once


@pytest.mark.parametrize(("first", "n_tokens"), [(0, 64), (64, 4096), (3, 5), (960, 33)])
def test_other_chunks_are_left(queued: list[int], first: int, n_tokens: int) -> None:
    assert not tails(queued).launch(first, n_tokens)
    assert queued == []


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(
    ("lengths", "chunks"),
    [
        ((32,), [(0, 32)]),
        ((64,), [(0, 64)]),
        ((130,), [(0, 128), (128, 2)]),
        ((128, 70), [(0, 128), (128, 64), (192, 6)]),
        ((100, 60), [(0, 64), (64, 36), (100, 28), (128, 32)]),
    ],
)
def test_what_follows_the_last_whole_page_is_a_chunk_of_its_own(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], chunks: list[tuple[int, int]]
) -> None:
    runtime, seen = load(), list[tuple[int, int]]()

    def launch(_: TailGraphs, first: int, n_tokens: int) -> bool:
        seen.append((first, n_tokens))
        return True

    monkeypatch.setattr(TailGraphs, "launch", launch)
    sequence = runtime.open_sequence()
    for length in lengths:
        runtime.prefill(sequence, [1] * length, go_on)
    sequence.close()
    runtime.close()
    assert seen == chunks
