"""The judge of the OpenAI API: what the official client read of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    fields,
    judge,
    need,
    passed,
    request_header,
)
from harness.observation import Finding, Json, Judge, Limits, Observation

_USAGE: Final = {"prompt_tokens": "count", "completion_tokens": "count", "total_tokens": "count"}
NAMED: Final = "X-Stainless-Package-Version"
MIN_REQUESTS: Final = 7
_ERRORS: Final = {"refused": ("BadRequestError", 400), "unknown": ("NotFoundError", 404)}


@judge
def official_client(observation: Observation, limits: Limits) -> Finding:
    """Completions and chat, whole and streamed alike, with usage; errors of the right class."""
    _was_official(observation)
    texts = {}
    for kind in ("completion", "chat"):
        whole = fact(observation, kind)
        texts[kind] = _whole(whole, kind)
        _streamed(fact(observation, f"{kind}_stream"), whole, kind)
        need(whole["model"] == fact(observation, "model"), f"{kind}: names {whole['model']!r}")
    again = body(exchange(observation, "raw"))["choices"][0]["text"]
    need(again == texts["completion"], "completion: the client read another text than was sent")
    for name, (kind, status) in _ERRORS.items():
        error = observation.facts.get(name)
        need(error is not None, f"{name}: the client raised nothing, wanted {kind}")
        assert isinstance(error, dict)
        got = (error["kind"], error["status"])
        need(got == (kind, status), f"{name}: the client raised {got}, wanted {(kind, status)}")
        fields(error, {"message": "text", "body": "object"}, name)
        fields(error["body"], {"message": "text", "type": "text"}, name)
    param = fact(observation, "refused")["param"]
    need(param == "temperature", f"refused: param is {param!r}, wanted 'temperature'")
    return passed(f"openai {fact(observation, 'client_version')}: completions, chat, stream, usage")


def _was_official(observation: Observation) -> None:
    """Every recorded request was made by the official client, which names itself."""
    wire = exchanges(observation, "wire")
    if len(wire) < MIN_REQUESTS or not all(request_header(one, NAMED) for one in wire):
        raise Unseen(f"the official client was not seen to make {MIN_REQUESTS} requests")


def _whole(answer: Mapping[str, Json], kind: str) -> str:
    need(len(answer["choices"]) == 1, f"{kind}: {len(answer['choices'])} choices, wanted one")
    choice = answer["choices"][0]
    need(choice["finish_reason"] in ("stop", "length"), f"{kind}: {choice['finish_reason']!r}")
    text = choice["message"]["content"] if kind == "chat" else choice["text"]
    need(isinstance(text, str) and bool(text.strip()), f"{kind}: the text is empty")
    _usage(answer.get("usage"), kind)
    return str(text)


def _streamed(chunks: Sequence[Any], whole: Mapping[str, Json], kind: str) -> None:
    need(len(chunks) > 2, f"{kind}: {len(chunks)} chunks are no stream")
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    pieces = [c["delta"]["content"] if kind == "chat" else c["text"] for c in choices]
    text, wanted = "".join(piece or "" for piece in pieces), _whole(whole, kind)
    need(text == wanted, f"{kind}: the stream says another text than the whole answer")
    ends = [c["finish_reason"] for c in choices if c["finish_reason"] is not None]
    need(
        ends == [whole["choices"][0]["finish_reason"]],
        f"{kind}: the stream's finish reasons are {ends}",
    )
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    need(len(usage) == 1, f"{kind}: {len(usage)} chunks with usage, wanted one")
    need(not chunks[-1]["choices"], f"{kind}: usage does not stand in a last chunk of its own")
    _usage(usage[0], kind)
    for name in _USAGE:
        need(usage[0][name] == whole["usage"][name], f"{kind}: the stream's {name} differs")


def _usage(usage: Any, kind: str) -> None:
    need(isinstance(usage, dict), f"{kind}: no usage")
    fields(usage, _USAGE, f"{kind}: usage")
    need(0 < usage["completion_tokens"] <= 12, f"{kind}: {usage['completion_tokens']} tokens")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    need(usage["total_tokens"] == total, f"{kind}: total_tokens is not the sum")


JUDGES: Final[Mapping[str, Judge]] = {"G1-API-OPENAI": official_client}
