"""The event-stream decoder: the specification's examples, every split point, hostile input."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.observation import Chunk
from harness.sse import Event, EventDecoder, decode_events

STREAM = (
    b'\xef\xbb\xbfevent: started\r\ndata: {"a":1}\r\n\r\n'
    b": comment\n\nid: 7\nevent:token\ndata:caf\xc3\xa9\ndata: \xf0\x9f\x8f\xb3\xef\xb8\x8f\n\n"
    b"retry: 1500\rdata\r\rdata:  two spaces\r\n\n"
)
EVENTS = [
    Event('{"a":1}', "started"),
    Event("café\n🏳️", "token", "7"),
    Event("", "message", "7"),
    Event(" two spaces", "message", "7"),
]


def decode(pieces: list[bytes], *, strict: bool = False) -> list[Event]:
    decoder = EventDecoder(strict=strict)
    events = [event for piece in pieces for event in decoder.push(piece)]
    decoder.close()
    return events


def push_forever(decoder: EventDecoder, piece: bytes) -> None:
    for _ in range(1 << 20):
        decoder.push(piece)


def test_whole_stream() -> None:
    assert decode([STREAM], strict=True) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_every_split_point_gives_the_same_events(cut: int) -> None:
    assert decode([STREAM[:cut], STREAM[cut:]], strict=True) == EVENTS


def test_byte_by_byte() -> None:
    assert decode([STREAM[i : i + 1] for i in range(len(STREAM))], strict=True) == EVENTS


def test_every_pair_of_split_points() -> None:
    for first in range(0, len(STREAM), 3):
        for second in range(first, len(STREAM)):
            pieces = [STREAM[:first], STREAM[first:second], STREAM[second:]]
            assert decode(pieces, strict=True) == EVENTS


def test_an_event_comes_out_with_its_last_byte() -> None:
    decoder = EventDecoder()
    assert decoder.push(b"data: x\r\n\r") == [Event("x")]
    assert decoder.push(b"\ndata: y\n\n") == [Event("y")]


def test_retry_takes_digits_only() -> None:
    decoder = EventDecoder()
    decoder.push(b"retry: 12a\n\nretry: \n\nretry: \xd9\xa1\n\n")
    assert decoder.retry_ms is None
    decoder.push(b"retry: 12\n")
    assert decoder.retry_ms == 12
    decoder.push(b"retry: " + b"9" * 5000 + b"\n")
    assert decoder.retry_ms == int("9" * 18)


def test_specification_examples() -> None:
    assert decode([b"data: YHOO\ndata: +2\ndata: 10\n\n"]) == [Event("YHOO\n+2\n10")]
    assert decode([b"data\n\ndata\ndata\n\ndata:"]) == [Event(""), Event("\n")]
    assert decode([b"data:test\n\ndata: test\n\n"]) == [Event("test")] * 2


def test_id_with_nul_is_ignored_and_bom_is_only_stripped_once() -> None:
    assert decode([b"id: 3\nid: a\0b\ndata: x\n\n"]) == [Event("x", last_event_id="3")]
    assert decode([b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n"]) == []


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"data: \xff\n\n", "not UTF-8"),
        (b"data: \xed\xa0\x80\n\n", "not UTF-8"),
        (b"data: a\0b\n\n", "NUL"),
        (b"data: x\n", "ends inside an event"),
        (b"data: x\n\nda", "ends inside an event"),
        (b"event: end\n", "ends inside an event"),
        (b"event: end\n\n", "no data"),
        (b"dater: x\n\n", "unknown field"),
        (b" data: x\n\n", "unknown field"),
    ],
)
def test_strict_refuses(stream: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        decode([stream], strict=True)
    decode([stream])


def test_an_endless_line_is_refused_without_keeping_it() -> None:
    decoder = EventDecoder(max_line_bytes=1000)
    with pytest.raises(ProtocolError, match="wanted at most 1000 bytes"):
        push_forever(decoder, b"data" * 25)


def test_an_endless_event_is_refused() -> None:
    decoder = EventDecoder(max_event_bytes=1000)
    with pytest.raises(ProtocolError, match="an event of more than 1000 bytes"):
        push_forever(decoder, b"data: x\n")


def test_comments_do_not_end_an_event_but_count_against_its_size() -> None:
    assert decode([b"data: a\n: keep-alive\ndata: b\n\n"], strict=True) == [Event("a\nb")]
    decoder = EventDecoder(max_event_bytes=100)
    with pytest.raises(ProtocolError):
        decoder.push(b": comment\n" * 50)


def test_decode_events_dates_each_event_by_its_last_chunk() -> None:
    chunks = [Chunk(10, b"data: a\n"), Chunk(20, b"\ndata: b\n\ndata: c"), Chunk(30, b"\n\n")]
    timed = decode_events(chunks)
    assert [(event.arrival_ns, event.event.data) for event in timed] == [
        (20, "a"),
        (20, "b"),
        (30, "c"),
    ]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_any_cuts(stream: bytes, cuts: list[int]) -> None:
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut <= len(stream))})
    pieces = [stream[a:b] for a, b in pairwise(bounds)]
    assert decode(pieces) == decode([stream])
