"""The OpenAI API read by the judges' own reader: what it passes, and what it refuses."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from harness.errors import ProtocolError
from harness.judges import JUDGES
from harness.judges.completion import spelled_ids
from harness.judges.rule import Broken, Unseen
from harness.judges.stream import asked, finished, identical, parts_at, read_stream, read_whole
from harness.observation import Chunk, Exchange, Finding, Observation, Verdict
from tests.unit.recorded import MS, SSE, exchange, run, usage

Chunked = dict[str, Any]
ROUTES = {False: "/v1/completions", True: "/v1/chat/completions"}


def choice(text: str, chat: bool = False, **more: Any) -> Chunked:
    said = {"delta": {"content": text}} if chat else {"text": text}
    return {"choices": [{"index": 0, **said, "finish_reason": None, "logprobs": None, **more}]}


def logprobs(*tokens: str, chat: bool = False, **more: Any) -> Chunked:
    if chat:
        rows = [{"token": t, "logprob": -0.5, "top_logprobs": [], **more} for t in tokens]
        return {"content": rows}
    return {"tokens": list(tokens), "token_logprobs": [-0.5] * len(tokens), **more}


def told(
    chunks: Sequence[Chunked | str], chat: bool = False, at_ms: float = 0, **sent: Any
) -> Exchange:
    frames = [one if isinstance(one, str) else f"data: {json.dumps(one)}" for one in chunks]
    start = int(at_ms * MS)
    body = {"user": f"job at {at_ms}", "prompt": "p", "max_tokens": 8, "stream": True, **sent}
    return Exchange(
        method="POST",
        path=ROUTES[chat],
        request_headers=(),
        request_body=json.dumps(body).encode(),
        sent_ns=start,
        status=200,
        response_headers=SSE,
        head_ns=start,
        chunks=tuple(
            Chunk(start + (i + 1) * MS, f"{frame}\n\n".encode()) for i, frame in enumerate(frames)
        ),
        closed_ns=start + (len(frames) + 1) * MS,
    )


def ending(tokens: int, chat: bool = False, reason: str = "length") -> list[Chunked | str]:
    counts = {"choices": [], "usage": usage(3, tokens)}
    return [choice("", chat, finish_reason=reason), counts, "data: [DONE]"]


def completion(*texts: str, chat: bool = False, reason: str = "length", **sent: Any) -> Exchange:
    pieces: list[Chunked | str] = [choice(text, chat) for text in texts]
    at_ms = sent.pop("at_ms", 0)
    return told([*pieces, *ending(len(texts), chat, reason)], chat, at_ms, **sent)


@pytest.mark.parametrize("chat", [False, True])
def test_text_usage_and_reason_are_read(chat: bool) -> None:
    stream = finished(completion("a", "b", chat=chat), reason="length")
    assert (stream.text, stream.tokens_out, stream.prompt_tokens) == ("ab", 2, 3)
    assert stream.said == ["a", "b"]
    assert [token.arrival_ns for token in stream.tokens] == [MS, 2 * MS]
    assert stream.terminal_ns == 3 * MS


def test_without_ids_asking_for_them_is_no_evidence() -> None:
    with pytest.raises(Unseen, match="--tokenizer"):
        print(finished(completion("a")).ids)


@pytest.mark.parametrize(
    "chunk",
    [
        choice("ab", token_ids=[5, 6], logprobs=logprobs("a", "b")),
        choice("ab", logprobs=logprobs("a", "b", token_ids=[5, 6])),
        choice("ab", logprobs=logprobs("token_id:5", "token_id:6")),
    ],
)
def test_token_ids_are_read_where_they_are_told(chunk: Chunked) -> None:
    assert finished(told([chunk, *ending(2)])).ids == [5, 6]


def test_chat_tells_ids_beside_the_logprob_of_each_token() -> None:
    chunk = choice("a", True, logprobs=logprobs("a", chat=True, token_id=5))
    stream = finished(told([chunk, *ending(1, True)], True))
    assert (stream.ids, stream.tokens[0].raw["logprob"]) == ([5], -0.5)


def test_a_named_tokenizer_spells_ids() -> None:
    chunk = choice("ab", logprobs=logprobs("a", "b"))
    stream = finished(told([chunk, *ending(2)]))
    assert spelled_ids(stream, {"a": 5, "b": 6}) == [5, 6]
    with pytest.raises(Unseen, match="no single token 'b'"):
        spelled_ids(stream, {"a": 5})


def test_alternatives_come_best_first_whatever_the_order_of_the_object() -> None:
    chunk = choice("a", logprobs=logprobs("a", top_logprobs=[{"b": -1.0, "a": -0.5}]))
    token = finished(told([chunk, *ending(1)])).tokens[0]
    assert [row["id"] for row in token.raw["top"]] == ["a", "b"]


def test_a_stop_sequence_ends_with_stop() -> None:
    finished(completion("a", reason="stop"), reason="stop_sequence")
    with pytest.raises(Broken, match="wanted finish_reason 'stop', got 'length'"):
        finished(completion("a"), reason="stop_sequence")


PIECE = choice("a")


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([PIECE, *ending(1)[:-1]], "does not end with"),
        ([PIECE, *ending(1), PIECE], "frames after"),
        ([PIECE, ending(1)[1], "data: [DONE]"], "0 finish reasons"),
        ([PIECE, ending(1)[0], *ending(1)], "2 finish reasons"),
        ([PIECE, ending(1)[0], PIECE, *ending(1)[1:]], "text after the finish reason"),
        ([PIECE, ending(1)[0], "data: [DONE]"], "no usage came"),
        ([PIECE, PIECE, *ending(1)], "2 tokens came, usage says 1"),
        ([PIECE, *ending(1, reason="bored")], "unknown finish_reason 'bored'"),
        ([{"choices": [{}, {}]}, *ending(1)], "2 choices, wanted one"),
        ([{"object": "chunk"}, *ending(1)], "a chunk without choices"),
        ([choice("a", logprobs=logprobs("a", "b", token_ids=[1])), *ending(2)], "as many token"),
        ([choice("a", logprobs=logprobs("a", token_ids=[-1])), *ending(1)], "are no counts"),
        ([choice("a", logprobs={"tokens": ["a"]}), *ending(1)], "lacks the field"),
        (["event: token\ndata: {}", *ending(0)], "`data:` frames alone"),
        (["data: [", *ending(0)], "wanted JSON"),
        ([PIECE, {"error": {"message": "no"}}, PIECE], "a chunk after an error"),
    ],
)
def test_what_the_api_forbids_is_broken(chunks: list[Chunked | str], says: str) -> None:
    with pytest.raises((Broken, ProtocolError), match=says.replace("[", r"\[")):
        read_stream(told(chunks))


def test_a_count_that_is_not_the_sum_is_broken() -> None:
    counts = {"choices": [], "usage": {**usage(3, 1), "total_tokens": 9}}
    with pytest.raises(Broken, match="not the sum"):
        read_stream(told([PIECE, ending(1)[0], counts, "data: [DONE]"]))


def test_an_error_ends_the_stream_and_is_no_answer() -> None:
    seen = told([PIECE, {"error": {"message": "out of memory", "code": "VRAM_OOM"}}])
    assert (read_stream(seen).error or {})["code"] == "VRAM_OOM"
    with pytest.raises(Broken, match="the job failed"):
        finished(seen)


@pytest.mark.parametrize("content", [b"data: \xff\n\n", b"data: {}\0\n\n"])
def test_hostile_bytes_are_refused(content: bytes) -> None:
    seen = told([PIECE])
    with pytest.raises(ProtocolError):
        read_stream(Exchange(**{**vars(seen), "chunks": (Chunk(1, content),)}))


def test_requests_are_read_as_fields_of_the_contract() -> None:
    assert asked(completion("a", prompt=[1, 2], logprobs=3, at_ms=7)) == {
        "prompt_ids": [1, 2],
        "max_tokens": 8,
        "logprobs": 3,
        "job_id": "job at 7",
    }
    chat = completion("a", chat=True, messages=[], logprobs=True, top_logprobs=4)
    assert asked(chat)["logprobs"] == 4


def test_answers_in_one_piece() -> None:
    said = {"choices": [{"message": {"content": "ab"}}], "usage": usage(3, 2)}
    whole = read_whole(exchange("/v1/chat/completions", said, sent={}))
    assert (whole.text, whole.tokens_out) == ("ab", 2)


def test_a_route_that_nobody_reads_is_no_evidence() -> None:
    strange = Exchange(**{**vars(completion("a")), "path": "/v7/answers"})
    with pytest.raises(Unseen, match="no installed client reads"):
        read_stream(strange)


def test_two_apis_are_compared_by_their_text() -> None:
    assert parts_at(finished(run(["a", "b"])), finished(completion("ab"))) is None
    assert parts_at(finished(run(["a", "b"])), finished(completion("ac"))) == 1


def test_identical_completions() -> None:
    identical([completion("a", "b"), completion("a", "b", at_ms=9)], "greedy")
    with pytest.raises(Broken, match="run 2 differs from run 1 at token 1"):
        identical([completion("a", "b"), completion("a", "c", at_ms=9)], "greedy")
    with pytest.raises(Broken, match="the requests themselves differ"):
        identical([completion("a"), completion("a", at_ms=9, prompt="q")], "greedy")


# the judges, by what such an engine shows


def judged(check: str, limits: dict[str, float] | None = None, **named: Any) -> Finding:
    seen = {k: tuple(v) for k, v in named.items() if isinstance(v, list) and _recorded(v)}
    facts = {k: v for k, v in named.items() if k not in seen}
    return JUDGES[check](Observation(check, "test", 1, seen, facts), limits or {})


def _recorded(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], Exchange)


def fails(found: Finding, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


def seeded(text: str, seed: int, at_ms: float) -> Exchange:
    return completion(*text, seed=seed, temperature=1.0, at_ms=at_ms)


def test_an_ignored_seed_fails() -> None:
    answers = {1: "ab", 2: "cd", 3: "ef", 4: "gh"}
    honest = [seeded(text, seed, seed) for seed, text in answers.items()]
    assert judged("G4-GENUINE-SEED", jobs=[*honest, seeded("ab", 1, 9)]).verdict == Verdict.PASS
    fails(judged("G4-GENUINE-SEED", jobs=[*honest, seeded("xy", 1, 9)]), "the seed is ignored")
    constant = [seeded("ab", seed, seed) for seed in (1, 2, 3, 4, 1)]
    fails(judged("G4-GENUINE-SEED", jobs=constant), "4 seeds gave 1 answers")


def test_a_control_that_gives_one_answer_fails() -> None:
    runs = [seeded(text, n, n) for n, text in enumerate(["ab", "cd", "ef", "gh"])]
    assert judged("G4-DETERMINISM-CONTROL", runs=runs).verdict == Verdict.PASS
    same = [seeded("ab", n, n) for n in range(4)]
    fails(judged("G4-DETERMINISM-CONTROL", runs=same), "gave only 1 completions")


def test_inflated_usage_fails() -> None:
    named = choice("ab", logprobs=logprobs("a", "b"))
    assert judged("G4-GENUINE-COUNT", jobs=[told([named, *ending(2)])]).verdict == Verdict.PASS
    ended = told([named, *ending(3, reason="stop")])
    assert judged("G4-GENUINE-COUNT", jobs=[ended]).verdict == Verdict.PASS
    fails(judged("G4-GENUINE-COUNT", jobs=[told([named, *ending(4)])]), "usage says 4 tokens")
    unnamed = judged("G4-GENUINE-COUNT", jobs=[completion("a")])
    fails(unnamed, "without its logprob", Verdict.ERROR)


@pytest.mark.parametrize(("got", "says"), [(2, ""), (1, "after 1 of 2"), (3, "3 tokens for")])
def test_a_length_that_is_not_exact_fails(got: int, says: str) -> None:
    found = judged("G4-GENUINE-LENGTH", jobs=[completion(*"abc"[:got], max_tokens=2)])
    assert (says in found.message, found.verdict == Verdict.PASS) == (True, not says), found


def test_an_answer_cut_short_goes_on_when_asked_on() -> None:
    ended = completion("a", reason="stop")
    silent = told(ending(1, reason="stop"), prompt="pa")
    named = {"jobs": [ended], "continued": [silent]}
    assert judged("G4-GENUINE-LENGTH", **named).verdict == Verdict.PASS
    more = completion("b", reason="stop", prompt="pa")
    fails(judged("G4-GENUINE-LENGTH", **named | {"continued": [more]}), "it was cut")


def test_a_stop_sequence_that_is_emitted_fails() -> None:
    free = [completion("abc", "def")]
    cut = [completion("ab", reason="stop", stop=["cd"])]
    assert judged("G4-GENUINE-STOP", free=free, stopped=cut).verdict == Verdict.PASS
    late = [completion("abcd", reason="stop", stop=["cd"])]
    fails(judged("G4-GENUINE-STOP", free=free, stopped=late), "wanted the answer up to")


def prefix(rest: list[int], **more: Any) -> Finding:
    ids = {"token_ids": [5, 6]}
    whole = told([choice("ab", logprobs=logprobs("a", "b", **ids)), *ending(2)], prompt=[1, 2])
    told_rest = logprobs("b", token_ids=rest)
    after = told([choice("b", logprobs=told_rest), *ending(1)], prompt=[1, 2, 5])
    return judged("G4-GENUINE-PREFIX", wholes=[whole], rests=[after], vocabulary={})


def test_an_answer_that_does_not_continue_itself_fails() -> None:
    assert prefix([6]).verdict == Verdict.PASS
    fails(prefix([7]), "differs 0 later")


def rescored(replay: Exchange, kind: str = "greedy", **sent: Any) -> Finding:
    health = exchange("/health", {"model_sha256": "ab", "device": "cpu"})
    named = {"jobs": [completion("a", "b", at_ms=3)], "replays": [replay]}
    limits = {"min_tokens": 1}
    facts = {"kinds": [kind], "model_sha256": "ab"}
    return judged("G4-GENUINE-RESCORE", limits, reference_health=[health], **named, **facts)


def test_another_models_answer_is_not_the_references() -> None:
    assert rescored(completion("a", "b")).verdict == Verdict.PASS
    fails(rescored(completion("x", "y")), "likely cause: other model")
    fails(rescored(completion("x", "y"), "chat"), "part from the reference's replay")


def test_the_draws_of_another_api_are_the_engines_own() -> None:
    assert rescored(completion("x"), "sampled").verdict == Verdict.PASS


def test_a_replay_of_something_else_is_no_evidence() -> None:
    fails(rescored(completion("a", "b", prompt="q")), "something else", Verdict.ERROR)


def test_text_beyond_ascii_comes_through_without_tokens() -> None:
    named = {"groups": ["emoji", "emoji"], "streams": [completion("🚀"), completion("ok")]}
    assert judged("G4-UTF8-EMOJI", **named).verdict == Verdict.PASS
    named["streams"] = [completion("ok"), completion("ok")]
    fails(judged("G4-UTF8-EMOJI", **named), "has such a character", Verdict.ERROR)
    broken = judged("G4-UTF8-NOREPLACEMENT", streams=[completion("\ufffd")])
    fails(broken, "U+FFFD")


def test_a_stream_that_is_not_the_whole_answer_fails() -> None:
    same = {"max_tokens": 8, "temperature": 0.0, "seed": 1}
    streams = [completion("a", "b", **same)]
    answer = {"choices": [{"text": "ab"}], "usage": usage(3, 2)}
    whole = [exchange("/v1/completions", answer, sent={"prompt": "p", **same})]
    for check in ("G4-UTF8-STREAM-EQUALS-FULL", "G4-GENUINE-STREAM"):
        assert judged(check, streams=streams, whole=whole).verdict == Verdict.PASS
        changed = {**answer, "choices": [{"text": "ac"}]}
        other = [exchange("/v1/completions", changed, sent={"prompt": "p", **same})]
        assert judged(check, streams=streams, whole=other).verdict == Verdict.FAIL
