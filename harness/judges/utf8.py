"""Judges of text beyond ASCII: valid, whole, equal however it is asked for."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Final

from harness.judges.rule import (
    Unseen,
    body,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import (
    Stream,
    asked,
    finished,
    is_native,
    read_stream,
    read_whole,
)
from harness.observation import Exchange, Finding, Judge, Limits, Observation

REPLACEMENT: Final = "\ufffd"
EMOJI: Final = "emoji"


def _same_text(got: str, wanted: str) -> bool:
    """Equal but for composition: a tokenizer may normalize what it is given."""
    return unicodedata.normalize("NFC", got) == unicodedata.normalize("NFC", wanted)


def _detokenized(seen: Exchange, answer: Exchange) -> tuple[Stream, Mapping[str, object]]:
    """A stream, and what /detokenize says of its very ids; both say the same text."""
    stream, whole = finished(seen), body(answer)
    if request(answer)["ids"] != stream.ids:
        raise Unseen("/detokenize was asked about other tokens than those that were streamed")
    need(
        whole["text"] == stream.text,
        f"the stream says {stream.text!r:.60}, its ids say {whole['text']!r:.60}",
    )
    return stream, whole


def _come_through(observation: Observation, wanted: Mapping[str, bool]) -> dict[str, int]:
    """Texts survive tokens and back, answers are what their ids say; counts them by group.

    `wanted` says of a group whether its answers must show a character beyond the basic plane,
    or else beyond ASCII: a group whose answers show none has shown nothing.
    """
    groups = fact(observation, "groups")
    answers = _answers(observation)
    if len(groups) != len(answers):
        raise Unseen(f"{len(answers)} answers to {len(groups)} prompts")
    counted: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for group, stream in zip(groups, answers, strict=True):
        if group not in wanted:
            continue
        beyond = 0x10000 if wanted[group] else 0x80
        counted[group] += 1
        shown[group] += any(ord(character) >= beyond for character in stream.text)
    for group in wanted:
        if not shown[group]:
            raise Unseen(f"no answer of the group {group} has such a character")
    return dict(counted)


def _answers(observation: Observation) -> list[Stream]:
    """Every stream; where the API tokenizes, so do its ids and its prompt come through."""
    streams = exchanges(observation, "streams")
    if not is_native(streams[0]):
        return [finished(seen) for seen in streams]
    tokenized, backs = exchanges(observation, "tokenized"), exchanges(observation, "round_trips")
    for prompt, back in zip(tokenized, backs, strict=True):
        _round_trip(prompt, back)
    answers = exchanges(observation, "detokenized")
    return [_detokenized(*row)[0] for row in zip(streams, answers, strict=True)]


def _round_trip(tokenized: Exchange, back: Exchange) -> None:
    text, ids = str(request(tokenized)["text"]), body(tokenized)["ids"]
    if request(back)["ids"] != ids:
        raise Unseen("/detokenize was asked about other tokens than /tokenize gave")
    got = body(back)
    need(_same_text(str(got["text"]), text), f"{text!r:.60} became {got['text']!r:.60}")
    need(got["dropped_bytes"] == 0, f"{text!r:.60}: {got['dropped_bytes']} bytes were dropped")


@judge
def emoji(observation: Observation, limits: Limits) -> Finding:
    """Emoji survive tokens and back, and answers show whole ones."""
    counted = _come_through(observation, {EMOJI: True})
    return passed(f"{counted[EMOJI]} texts of emoji came through")


@judge
def scripts(observation: Observation, limits: Limits) -> Finding:
    """So do all the scripts; the prompts, emoji among them, are as many as wanted."""
    groups = fact(observation, "groups")
    least = limit(limits, "min_prompts")
    need(len(groups) >= least, f"{len(groups)} prompts, wanted {least:.0f}")
    needed = {"cjk", "arabic", "hindi", "thai", "combining", "mixed"}
    missing = needed - set(groups)
    need(not missing, f"no prompt of {', '.join(sorted(missing))}")
    counted = _come_through(observation, dict.fromkeys(sorted(set(groups) - {EMOJI}), False))
    return passed(f"{len(groups)} prompts, {len(counted)} scripts came through")


@judge
def valid(observation: Observation, limits: Limits) -> Finding:
    """Each stream's bytes are UTF-8, each token's text is whole characters, no half of a pair."""
    streams = exchanges(observation, "streams")
    total = beyond = 0
    for number, seen in enumerate(streams, 1):
        stream = read_stream(seen)
        for index, token in enumerate(stream.tokens):
            halves = any("\ud800" <= character <= "\udfff" for character in token.text)
            need(not halves, f"stream {number}, token {index}: half of a surrogate pair")
        total += len(seen.body)
        beyond += not stream.text.isascii()
    if not beyond:
        raise Unseen("no stream has a character beyond ASCII")
    return passed(f"{total} bytes of {len(streams)} streams are valid UTF-8")


@judge
def no_replacement(observation: Observation, limits: Limits) -> Finding:
    """No U+FFFD, neither as bytes nor as an escape."""
    streams = exchanges(observation, "streams")
    for number, seen in enumerate(streams, 1):
        stream = read_stream(seen)
        at = next((i for i, t in enumerate(stream.tokens) if REPLACEMENT in t.text), None)
        need(at is None, f"stream {number}, token {at}: U+FFFD")
        need(REPLACEMENT.encode() not in seen.body, f"stream {number}: bytes of U+FFFD")
    whole = observation.exchanges.get("whole", ())
    for seen in whole:
        need(REPLACEMENT not in read_whole(seen).text, "an answer without a stream has U+FFFD")
    return passed(f"no U+FFFD in {len(streams)} streams and {len(whole)} whole answers")


@judge
def stream_equals_full(observation: Observation, limits: Limits) -> Finding:
    """The concatenated stream is the answer without a stream, and what its ids say."""
    streams = exchanges(observation, "streams")
    if is_native(streams[0]):
        answers = exchanges(observation, "detokenized")
        said = [_detokenized(*row)[0] for row in zip(streams, answers, strict=True)]
    else:
        said = [finished(seen) for seen in streams]
    by_prompt = {
        asked(seen)["prompt"]: (asked(seen), stream.text)
        for seen, stream in zip(streams, said, strict=True)
    }
    whole = exchanges(observation, "whole")
    for seen in whole:
        sent = asked(seen)
        if sent["prompt"] not in by_prompt:
            raise Unseen("a prompt was asked without a stream only")
        streamed, text = by_prompt[sent["prompt"]]
        if any(sent[name] != streamed[name] for name in ("max_tokens", "temperature", "seed")):
            raise Unseen("the two requests differ in more than the stream")
        got = read_whole(seen).text
        need(got == text, f"streamed {text!r:.60}, without a stream {got!r:.60}")
    return passed(f"{len(streams)} streams equal their ids, {len(whole)} their whole answers")


@judge
def split(observation: Observation, limits: Limits) -> Finding:
    """Characters split over tokens: parts stay silent, and the last one brings the whole."""
    rows = zip(
        exchanges(observation, "streams"), exchanges(observation, "detokenized"), strict=True
    )
    joined = 0
    for seen, answer in rows:
        stream, _ = _detokenized(seen, answer)
        texts = [token.text for token in stream.tokens]
        joined += sum(
            a == "" and any(ord(c) > 0x7F for c in b) for a, b in itertools.pairwise(texts)
        )
    least = limit(limits, "min_joined")
    if joined < least:
        raise Unseen(f"{joined} characters were joined from several tokens, wanted {least:.0f}")
    parts = [body(seen) for seen in exchanges(observation, "singles")]
    kept = [str(part["text"]) for part in parts if part["text"] != ""]
    need(not kept, f"tokens with text of their own were silent: {kept[:3]}")
    need(any(part["dropped_bytes"] for part in parts), "no silent token is part of a character")
    return passed(f"{joined} characters joined from several tokens", joined=joined)


@judge
def buffer(observation: Observation, limits: Limits) -> Finding:
    """Bytes of an unfinished character are counted and not emitted, wherever the answer ends."""
    rows = zip(
        exchanges(observation, "streams"), exchanges(observation, "detokenized"), strict=True
    )
    dropped = 0
    for seen, answer in rows:
        stream, whole = _detokenized(seen, answer)
        assert stream.end is not None
        got, wanted = stream.end["dropped_bytes"], whole["dropped_bytes"]
        need(got == wanted, f"the stream dropped {got} bytes, its ids have {wanted} to drop")
        dropped += got
    cut = [finished(seen) for seen in exchanges(observation, "cut")]
    for stream in cut:
        assert stream.end is not None
        if stream.tokens[-1].text:
            raise Unseen("an answer was not cut within a character")
    held = [stream for stream in cut if stream.end and stream.end["dropped_bytes"] > 0]
    need(bool(held), "no answer that was cut within a character reports dropped bytes")
    return passed(
        f"{len(held)} answers cut within a character, {dropped} bytes held back and counted",
        dropped=dropped,
    )


JUDGES: Final[Mapping[str, Judge]] = {
    "G4-UTF8-EMOJI": emoji,
    "G4-UTF8-SCRIPTS": scripts,
    "G4-UTF8-SPLIT": split,
    "G4-UTF8-BUFFER": buffer,
    "G4-UTF8-VALID": valid,
    "G4-UTF8-NOREPLACEMENT": no_replacement,
    "G4-UTF8-STREAM-EQUALS-FULL": stream_equals_full,
}
