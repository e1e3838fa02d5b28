import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.channel import Channel
from engine.errors import Cancelled, InternalError, OutOfMemory
from engine.generate import End, Failed, GenerationRequest, Metrics, Started, Token, generate
from engine.sampler import SamplingParams
from engine.stop import StopMatcher
from tests.unit.engine_fakes import EOS, ByteTokenizer, FakeRuntime


def run(runtime: FakeRuntime, **fields: Any) -> list[Any]:
    wanted: dict[str, Any] = {
        "max_tokens": 12,
        "sampling": SamplingParams(seed=1),
        "prompt_ids": (1, 2),
    }
    events: list[Any] = []
    request = GenerationRequest(**(wanted | fields))
    generate(runtime, ByteTokenizer(), request, lambda: None, events.append)
    return events


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def test_events_come_in_order_and_end_once() -> None:
    events = run(FakeRuntime())
    assert [type(e) for e in events] == [Started, *[Token] * 12, Metrics, End]
    assert [e.index for e in events if isinstance(e, Token)] == list(range(12))
    assert events[-1].finish_reason == "length"
    assert text_of(events) == "hello world "


def test_started_tells_what_prefill_reused() -> None:
    assert run(FakeRuntime(), cache_prompt=True)[0] == Started(1, 2, 7)


def test_the_end_token_is_an_event_and_ends_the_text() -> None:
    events = run(FakeRuntime(script=[*b"hi", EOS, *b"no"]))
    assert [e.token_id for e in events if isinstance(e, Token)] == [*b"hi", EOS]
    assert events[-1].finish_reason == "stop"
    assert text_of(events) == "hi"


@pytest.mark.parametrize("stop", ["o w", "hello", "world "])
def test_matched_text_is_never_emitted(stop: str) -> None:
    events = run(FakeRuntime(), stop=(stop,))
    assert events[-1].finish_reason == "stop_sequence"
    assert text_of(events) == "hello world ".partition(stop)[0]


def test_text_that_only_began_a_stop_is_emitted_at_the_end() -> None:
    assert text_of(run(FakeRuntime(), stop=("world!",), max_tokens=11)) == "hello world"
    assert text_of(run(FakeRuntime(script=[*b"hello wor", EOS]), stop=("world",))) == "hello wor"


def test_an_unfinished_character_is_dropped_and_counted() -> None:
    events = run(FakeRuntime(script=list("aé😀".encode())[:-1]), max_tokens=6)
    assert text_of(events) == "aé"
    assert events[-1].dropped_bytes == 3


def test_the_sequence_is_closed_whatever_happens() -> None:
    error = OutOfMemory("KV cache", required_bytes=2, available_bytes=1)
    runtime = FakeRuntime(error_at={3: error})
    with pytest.raises(OutOfMemory):
        run(runtime)
    assert runtime.open_sequences == 0


@settings(max_examples=10_000, deadline=None)
@given(
    script=st.lists(st.integers(0, 255), min_size=1, max_size=24),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_stream_equals_whole_text_cut_at_the_stop(script: list[int], stop: list[str]) -> None:
    events = run(FakeRuntime(script=script), max_tokens=len(script), stop=tuple(stop))
    tokens = [event for event in events if isinstance(event, Token)]
    whole, _ = ByteTokenizer().decode([token.token_id for token in tokens])
    cuts = [at for one in stop if (at := whole.find(one)) >= 0]
    assert text_of(events) == (whole[: min(cuts)] if cuts else whole)
    assert "�" not in text_of(events) or "�" in whole
    assert (events[-1].finish_reason == "stop_sequence") == bool(cuts)


@given(st.text(alphabet="ab", max_size=20), st.lists(st.text("ab", min_size=1), max_size=3))
def test_the_matcher_does_not_care_how_text_is_cut(text: str, stops: list[str]) -> None:
    def outcome(pieces: list[str]) -> tuple[str, bool]:
        matcher, emitted = StopMatcher(stops), ""
        for piece in pieces:
            out, matched = matcher.push(piece)
            emitted += out
            if matched:
                return emitted, True
        return emitted + matcher.flush(), False

    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    by_character = outcome(list(text))
    assert by_character[1] == bool(ends)
    assert not any(stop in by_character[0] for stop in stops) or not ends


def test_a_reader_too_far_behind_cancels_the_job_but_gets_its_terminal_event() -> None:
    async def scenario() -> list[Any]:
        channel = Channel(asyncio.get_running_loop(), capacity=3)
        for index in range(3):
            channel.put(Token(index, 1, "x"))
        with pytest.raises(Cancelled, match="3 events behind"):
            channel.put(Token(3, 1, "x"))
        channel.put(Failed(InternalError("x")))
        return await channel.take()

    events = asyncio.run(scenario())
    assert len(events) == 4
    assert isinstance(events[-1], Failed)
