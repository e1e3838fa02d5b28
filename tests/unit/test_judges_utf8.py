"""Judges of text beyond ASCII: what they pass, and that each rule can fail."""

from dataclasses import replace
from typing import Any

import pytest

from harness.judges import JUDGES
from harness.observation import Chunk, Exchange, Observation, Verdict
from tests.unit.recorded import events, exchange, in_one_piece, stream

ERROR = Verdict.ERROR
GROUPS = ("emoji", "cjk", "arabic", "hindi", "thai", "combining", "mixed")


def judged(name: str, **named: Any) -> Any:
    seen = {k: tuple(v) for k, v in named.items() if v and isinstance(v[0], Exchange)}
    facts = {k: v for k, v in named.items() if k not in seen}
    limits = {"min_prompts": 7, "min_joined": 1}
    observation = Observation(f"G4-UTF8-{name}", "t", 1, seen, facts)
    return JUDGES[f"G4-UTF8-{name}"](observation, limits)


def fails(found: Any, says: str, verdict: Verdict = Verdict.FAIL) -> None:
    assert (found.verdict, says in found.message) == (verdict, True), found


def told(*texts: str, dropped: int = 0, prompt: str = "p") -> Exchange:
    sent = {"prompt": prompt, "max_tokens": 9, "temperature": 0.0, "seed": 1}
    said = events(texts, sent)
    return stream([*said[:-1], ("end", {**said[-1][1], "dropped_bytes": dropped})], sent)


def back(*texts: str, dropped: int = 0, ids: list[int] | None = None) -> Exchange:
    sent = {"ids": [100 + i for i in range(len(texts))] if ids is None else ids}
    answer = {"text": "".join(texts), "dropped_bytes": dropped}
    return exchange("/detokenize", answer, sent=sent)


def tokens(text: str, ids: tuple[int, ...] = (1,)) -> Exchange:
    return exchange("/tokenize", {"ids": list(ids)}, sent={"text": text})


def whole(text: str, **sent: Any) -> Exchange:
    asked = {"prompt": "p", "max_tokens": 9, "temperature": 0.0, "seed": 1, **sent}
    return in_one_piece(text, 1, **asked)


def texts(**changed: Any) -> dict[str, list[Any]]:
    text = "é🚀"
    named: dict[str, list[Any]] = {
        "groups": list(GROUPS),
        "tokenized": [tokens(text)] * 7,
        "round_trips": [back(text, ids=[1])] * 7,
        "streams": [told("a", text)] * 7,
        "detokenized": [back("a", text)] * 7,
        "whole": [whole("a" + text)],
    }
    for name, value in changed.items():
        named[name] = [value, *named[name][1:]]
    return named


@pytest.mark.parametrize("name", ["EMOJI", "STREAM-EQUALS-FULL"])
def test_a_stream_is_what_its_ids_say(name: str) -> None:
    assert judged(name, **texts()).verdict == Verdict.PASS
    fails(judged(name, **texts(detokenized=back("a", "é"))), "its ids say 'aé'")
    fails(judged(name, **texts(detokenized=back("é🚀"))), "other tokens", ERROR)


def test_texts_survive_tokens_and_back() -> None:
    decomposed = texts(tokenized=tokens("e\u0301🚀"))
    assert judged("EMOJI", **decomposed).verdict == Verdict.PASS
    fails(judged("EMOJI", **texts(round_trips=back("e", ids=[1]))), "became 'e'")
    lossy = back("é🚀", ids=[1], dropped=2)
    fails(judged("EMOJI", **texts(round_trips=lossy)), "2 bytes were dropped")
    fails(judged("EMOJI", **texts(round_trips=back("é🚀", ids=[7]))), "other tokens", ERROR)
    plain = texts(streams=told("ok"), detokenized=back("ok"))
    fails(judged("EMOJI", **plain), "no answer of the group emoji", ERROR)


def test_every_script_comes_through() -> None:
    assert judged("SCRIPTS", **texts()).verdict == Verdict.PASS
    fails(judged("SCRIPTS", **texts(groups="emoji") | {"groups": ["emoji"]}), "1 prompts, wanted 7")
    others = texts() | {"groups": ["emoji", *GROUPS[:-1]]}
    fails(judged("SCRIPTS", **others), "no prompt of mixed")
    lost = texts()
    lost["round_trips"][3] = back("?", ids=[1])
    fails(judged("SCRIPTS", **lost), "became '?'")


def test_valid_bytes() -> None:
    assert judged("VALID", **texts()).verdict == Verdict.PASS
    fails(judged("VALID", **texts(streams=told("a", "\ud83d"))), "half of a surrogate pair")
    good = told("é")
    broken = replace(good, chunks=(Chunk(1, b'event: token\ndata: {"t": "\xc3"}\n\n'),))
    fails(judged("VALID", **texts(streams=broken)), "UTF-8")
    fails(judged("VALID", streams=[told("plain")]), "beyond ASCII", ERROR)


def test_no_replacement_character() -> None:
    assert judged("NOREPLACEMENT", **texts()).verdict == Verdict.PASS
    fails(judged("NOREPLACEMENT", **texts(streams=told("a", "\ufffd"))), "token 1: U+FFFD")
    comment = told("a")
    raw = replace(comment, chunks=(Chunk(1, ": \ufffd\n".encode()), *comment.chunks))
    fails(judged("NOREPLACEMENT", **texts(streams=raw)), "bytes of U+FFFD")
    fails(judged("NOREPLACEMENT", **texts(whole=whole("\ufffd"))), "without a stream has U+FFFD")


def test_the_stream_is_the_whole_answer() -> None:
    fails(judged("STREAM-EQUALS-FULL", **texts(whole=whole("aé"))), "without a stream 'aé'")
    other = whole("aé🚀", prompt="q")
    fails(judged("STREAM-EQUALS-FULL", **texts(whole=other)), "without a stream only", ERROR)
    hot = whole("aé🚀", temperature=1.0)
    fails(judged("STREAM-EQUALS-FULL", **texts(whole=hot)), "more than the stream", ERROR)


def split(**changed: Any) -> dict[str, Any]:
    named = {
        "streams": [told("", "🚀"), told("", dropped=2)],
        "detokenized": [back("", "🚀"), back("", dropped=2)],
        "singles": [back("", dropped=2)],
        "cut": [told("", dropped=2)],
    }
    return named | changed


def test_split_characters() -> None:
    assert judged("SPLIT", **split()).numbers["joined"] == 1
    fails(judged("SPLIT", **split(singles=[back("x")])), "text of their own were silent")
    fails(judged("SPLIT", **split(singles=[back("")])), "no silent token is part")
    unsplit = split(streams=[told("🚀")], detokenized=[back("🚀")])
    fails(judged("SPLIT", **unsplit), "0 characters were joined", ERROR)
    fails(judged("SPLIT", **split(detokenized=[back("", "x"), back("")])), "its ids say 'x'")


def test_held_back_bytes() -> None:
    assert judged("BUFFER", **split()).numbers["dropped"] == 2
    uncounted = split(detokenized=[back("", "🚀"), back("", dropped=1)])
    fails(judged("BUFFER", **uncounted), "dropped 2 bytes, its ids have 1")
    fails(judged("BUFFER", **split(cut=[told("")])), "reports dropped bytes")
    fails(judged("BUFFER", **split(cut=[told("x")])), "not cut within a character", ERROR)
