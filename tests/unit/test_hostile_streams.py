"""Streams of an engine that means harm, at the bounds that a run really has."""

from dataclasses import replace

import pytest

from harness.errors import ProtocolError
from harness.judges import JUDGES
from harness.observation import Chunk, Observation, Verdict
from harness.sse import MAX_EVENT_BYTES, MAX_LINE_BYTES, EventDecoder
from tests.unit.recorded import run

GIGABYTE, PIECE_BYTES = 1 << 30, 1 << 16


LINE = b": " + b"x" * 1000 + b"\n"


def pushed_until_refused(decoder: EventDecoder, piece: bytes) -> int:
    """Push the piece for ever; how many bytes were taken."""
    for taken in range(0, GIGABYTE, len(piece)):
        try:
            decoder.push(piece)
        except ProtocolError:
            return taken
    raise AssertionError("a gigabyte was taken")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("piece", "bound"),
    [
        pytest.param(b"x" * PIECE_BYTES, MAX_LINE_BYTES, id="a line of 1 GB"),
        pytest.param(LINE * 64, MAX_EVENT_BYTES, id="comments for ever"),
        pytest.param(LINE.replace(b": ", b"data: ") * 64, MAX_EVENT_BYTES, id="one event for ever"),
        pytest.param(b"\0" * PIECE_BYTES, MAX_LINE_BYTES, id="NULs for ever"),
    ],
)
def test_a_gigabyte_is_refused_at_the_bound(piece: bytes, bound: int, strict: bool) -> None:
    assert pushed_until_refused(EventDecoder(strict=strict), piece) <= 1.1 * bound


@pytest.mark.parametrize(
    "poison", [b"data: a\0b\n\n", b": x\0\n", b"\0", b"event: token\ndata: {}\0\n\n"]
)
def test_a_stream_with_nuls_fails_its_check(poison: bytes) -> None:
    good = run(["a", "b"])
    middle = Chunk(good.chunks[1].arrival_ns, poison)
    bad = replace(good, chunks=(*good.chunks[:2], middle, *good.chunks[2:]))
    for seen, wanted in ((good, Verdict.PASS), (bad, Verdict.FAIL)):
        found = JUDGES["G1-HTTP-SSE"](
            Observation("G1-HTTP-SSE", "t", 1, {"streams": (seen,)}, {}), {}
        )
        assert found.verdict == wanted, found.message
