"""The answers of /v1/completions and /v1/chat/completions, decoded anew from the recorded bytes.

A stream is `data:` frames: chunks with at most one choice, one finish reason, counts of tokens
where they were asked for, `[DONE]` last. Token ids are read where logprobs or the chunk tell them.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from harness.judges.completion import UNKNOWN_ID, Dialect, Stream, TokenEvent, Whole
from harness.judges.rule import body, fields, json_object, need, request, where
from harness.observation import Exchange, Json
from harness.sse import decode_events

DONE: Final = "[DONE]"
FINISH_REASONS: Final = ("stop", "length")
_SPELLED: Final = re.compile(r"token_id:[0-9]{1,9}")
_USAGE: Final = {"prompt_tokens": "count", "completion_tokens": "count", "total_tokens": "count"}
_SAME: Final = ("max_tokens", "temperature", "top_p", "seed", "stop", "messages")
Table = Mapping[str, Json]


def _asked(seen: Exchange) -> dict[str, Any]:
    """The request's fields by the names of the engine's contract."""
    sent = request(seen)
    named: dict[str, Any] = {name: sent[name] for name in _SAME if name in sent}
    if "prompt" in sent:
        named["prompt" if isinstance(sent["prompt"], str) else "prompt_ids"] = sent["prompt"]
    if "logprobs" in sent:
        wanted = sent["logprobs"]
        named["logprobs"] = sent.get("top_logprobs", 0) if wanted is True else wanted
    if "user" in sent:
        named["job_id"] = sent["user"]
    return named


def _stream(chat: bool, seen: Exchange) -> Stream:
    tokens: list[TokenEvent] = []
    finishes: list[tuple[str, int]] = []
    usage: Table | None = None
    error: Table | None = None
    frames = [(timed.arrival_ns, timed.event) for timed in decode_events(seen.chunks)]
    types = {event.type for _, event in frames} - {"message"}
    need(not types, f"{where(seen)}: wanted `data:` frames alone, got event {sorted(types)[:1]}")
    for number, (at_ns, event) in enumerate(frames):
        if event.data == DONE:
            need(number == len(frames) - 1, f"{where(seen)}: frames after {DONE}")
            continue
        chunk = json_object(event.data.encode("utf-8", errors="surrogatepass"), where(seen))
        need(error is None, f"{where(seen)}: a chunk after an error")
        if "error" in chunk:
            error = _error(chunk["error"], where(seen))
            finishes.append(("error", at_ns))
            continue
        usage = chunk.get("usage") or usage
        for choice in _choices(chunk, where(seen)):
            pieces = _pieces(choice, at_ns, chat, where(seen))
            ended = finishes and any(piece.text for piece in pieces)
            need(not ended, f"{where(seen)}: text after the finish reason")
            tokens += pieces
            if choice.get("finish_reason") is not None:
                finishes.append((choice["finish_reason"], at_ns))
    done = bool(frames) and frames[-1][1].data == DONE
    need(done or error is not None, f"{where(seen)}: the stream does not end with {DONE}")
    need(len(finishes) == 1, f"{where(seen)}: {len(finishes)} finish reasons, wanted one")
    (reason, at_ns) = finishes[0]
    if error is None:
        _check_end(reason, usage, tokens, seen)
    end = None if error is not None else {"finish_reason": reason}
    return Stream(None, tuple(tokens), None, end, error, at_ns, usage)


def _check_end(reason: str, usage: Table | None, tokens: list[TokenEvent], seen: Exchange) -> None:
    place = where(seen)
    need(reason in FINISH_REASONS, f"{place}: unknown finish_reason {reason!r}")
    need(usage is not None, f"{place}: no usage came, stream_options.include_usage asked for it")
    counts = _usage(usage, place)
    total = counts["completion_tokens"]
    need(len(tokens) <= total, f"{place}: {len(tokens)} tokens came, usage says {total}")


def _usage(usage: Json, place: str) -> Table:
    need(isinstance(usage, dict), f"{place}: usage is no object")
    fields(usage, _USAGE, f"{place}: usage")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    need(usage["total_tokens"] == total, f"{place}: usage: total_tokens is not the sum")
    counts: Table = usage
    return counts


def _error(error: Json, place: str) -> Table:
    need(isinstance(error, dict), f"{place}: error is no object")
    fields(error, {"message": "text"}, f"{place}: error")
    return {"code": "", **error}


def _choices(chunk: Table, place: str) -> list[Table]:
    choices = chunk.get("choices")
    need(isinstance(choices, list), f"{place}: a chunk without choices")
    assert isinstance(choices, list)
    need(len(choices) <= 1, f"{place}: {len(choices)} choices, wanted one")
    need(all(isinstance(choice, dict) for choice in choices), f"{place}: a choice is no object")
    return choices


def _pieces(choice: Table, at_ns: int, chat: bool, place: str) -> list[TokenEvent]:
    """The tokens that a choice's logprobs name; else its text as one piece, if it has any."""
    payload = choice.get("delta", {}) if chat else choice
    need(isinstance(payload, dict), f"{place}: delta is no object")
    text = (payload.get("content") if chat else payload.get("text")) or ""
    need(isinstance(text, str), f"{place}: text is no string: {text!r:.60}")
    told = _object(choice.get("logprobs") or {}, f"{place}: logprobs")
    rows = _chat_rows(told, place) if chat else _completion_rows(told, place)
    ids = _ids(choice, told, rows, place)
    if not rows and not text and not ids:
        return []
    if not rows:
        rows, ids = [{"id": text}], ids if len(ids) == 1 else []
    texts = [text] + [""] * (len(rows) - 1)
    known = ids or [UNKNOWN_ID] * len(rows)
    return [
        TokenEvent(piece, token_id, at_ns, row)
        for piece, token_id, row in zip(texts, known, rows, strict=True)
    ]


def _object(value: Json, place: str) -> Table:
    need(isinstance(value, dict), f"{place}: wanted an object, got {value!r:.60}")
    table: Table = value
    return table


def _list(value: Json, place: str) -> list[Json]:
    """A list that may be left out."""
    need(value is None or isinstance(value, list), f"{place}: wanted a list, got {value!r:.60}")
    return list(value or ())


def _completion_rows(told: Table, place: str) -> list[Table]:
    if not told:
        return []
    fields(told, {"tokens": "list", "token_logprobs": "list"}, f"{place}: logprobs")
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    need(isinstance(tops, list), f"{place}: logprobs: top_logprobs is no list")
    need(
        len(told["tokens"]) == len(told["token_logprobs"]) == len(tops),
        f"{place}: logprobs: its lists differ in length",
    )
    rows: list[Table] = []
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True):
        row = {"id": token, "logprob": logprob}
        fields(row, {"id": "string", "logprob": "number"}, f"{place}: logprobs")
        named = _object(top or {}, f"{place}: logprobs: a token's alternatives")
        fields(named, dict.fromkeys(named, "number"), f"{place}: logprobs")
        best = sorted(named.items(), key=lambda entry: entry[1], reverse=True)
        rows.append({**row, "top": [{"id": name, "logprob": value} for name, value in best]})
    return rows


def _chat_rows(told: Table, place: str) -> list[Table]:
    rows: list[Table] = []
    place = f"{place}: logprobs"
    for entry in _list(told.get("content"), place):
        tops = _list(_object(entry, place).get("top_logprobs"), place)
        named = [_object(one, place) for one in (entry, *tops)]
        for one in named:
            fields(one, {"token": "string", "logprob": "number"}, place)
        own, *top = ({"id": _spelling(one), "logprob": one["logprob"]} for one in named)
        rows.append({**own, "top": top, "token": entry["token"], "token_id": entry.get("token_id")})
    return rows


def _spelling(entry: Table) -> str:
    """What tells a token apart: its bytes where they are told, for its text may be cut."""
    told = entry.get("bytes")
    return str(entry["token"]) if told is None else f"bytes:{told}"


def _ids(choice: Table, told: Table, rows: list[Table], place: str) -> list[int]:
    """The ids that the chunk, its logprobs, or the tokens' spellings give; none if they do not."""
    found = choice.get("token_ids") or told.get("token_ids") or [r.get("token_id") for r in rows]
    need(isinstance(found, list), f"{place}: token ids are no list: {found!r:.60}")
    if not found or found[0] is None:
        spelled = [str(row.get("token", row["id"])) for row in rows]
        if not spelled or not all(_SPELLED.fullmatch(one) for one in spelled):
            return []
        found = [int(one.rpartition(":")[2]) for one in spelled]
    valid = all(type(one) is int and one >= 0 for one in found)
    need(valid, f"{place}: token ids are no counts: {found[:3]}")
    need(not rows or len(found) == len(rows), f"{place}: as many token ids as tokens wanted")
    return list(found)


def _whole(chat: bool, seen: Exchange) -> Whole:
    answer = body(seen)
    choices = _choices(answer, where(seen))
    need(len(choices) == 1, f"{where(seen)}: no choice")
    payload = choices[0].get("message") if chat else choices[0]
    text = (payload or {}).get("content" if chat else "text")
    need(isinstance(text, str), f"{where(seen)}: text is no string: {text!r:.60}")
    return Whole(str(text), _usage(answer.get("usage"), where(seen))["completion_tokens"])


COMPLETIONS: Final = Dialect(_asked, partial(_stream, False), partial(_whole, False))
CHAT: Final = Dialect(_asked, partial(_stream, True), partial(_whole, True))
