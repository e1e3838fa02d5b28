"""The probe of continued answers as it runs, against toy models that round like a GPU, or cheat."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.clients.native import NativeClient
from harness.clients.openai import OpenAIClient
from harness.near_tie import follow_up, parting
from harness.observation import Chunk, Exchange, Finding, Verdict
from harness.transport import Endpoint
from suites import test_genuine
from tests.probe_run import check_of, judged, observed
from tests.unit.recorded import MS, SSE, events, exchange, stream, usage

CHECK = "G4-GENUINE-PREFIX"
NONCES = [f"nonce {number}" for number in range(12)]
Shown = list[tuple[int, float]]


def digest(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(str(ids).encode()).digest()


@dataclass
class Model:
    """Its best tokens follow from all ids before them. One place in `tie_every` is a near-tie.

    There `rounds` says whether the length of what was prefilled chooses, as on a GPU; `gap_nats`
    is how far apart the two are. `drops` is a cheat: prompts of token ids lose their last one.
    """

    tie_every: int = 1 << 16
    gap_nats: float = 0.01
    drops: bool = False
    broken: bytes = b""
    bodies: list[Mapping[str, Any]] = field(default_factory=list)

    def best(self, ids: Sequence[int], prefilled: int) -> Shown:
        drawn = digest(ids)
        first, second = 3 + drawn[0] % 50, 60 + drawn[1] % 50
        tied = int.from_bytes(drawn[2:4], "big") % self.tie_every == 0
        shown = [(first, -0.7), (second, -0.7 - self.gap_nats if tied else -3.0)]
        return shown[::-1] if tied and digest([*ids, prefilled])[0] % 2 else shown

    def answer(self, body: Mapping[str, Any]) -> list[Shown]:
        self.bodies.append(body)
        text = body.get("prompt")
        given = body.get("prompt_ids", text) if not isinstance(text, str) else encoded(text)
        ids = list(given[:-1] if self.drops and not isinstance(text, str) else given)
        told, prefilled = [], len(ids)
        for _ in range(body["max_tokens"]):
            told.append(self.best(ids, prefilled))
            ids.append(told[-1][0][0])
        return told

    def is_follow_up(self, body: Mapping[str, Any]) -> bool:
        return bool(body.get("logprobs") == 2)


def encoded(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@dataclass
class Native:
    """The native API before a toy model, in the place of a client's HTTP."""

    model: Model

    def exchange(self, method: str, path: str, body: bytes = b"", headers: Any = ()) -> Exchange:
        sent = json.loads(body)
        if path == "/tokenize":
            return exchange(path, {"ids": encoded(sent["text"])}, sent=sent)
        told = self.model.answer(sent)
        rows = events(["x"] * len(told), sent, ids=[shown[0][0] for shown in told])
        for (_, token), shown in zip(rows[1:], told, strict=False):
            if "logprobs" in sent:
                top = [{"id": id_, "logprob": nats} for id_, nats in in_order(shown)]
                token.update(logprob=shown[0][1], top=top)
        return spoiled(self.model, sent, stream(rows, sent))


def in_order(shown: Shown) -> Shown:
    return sorted(shown, key=lambda one: one[1], reverse=True)


def spoiled(model: Model, sent: Mapping[str, Any], answer: Exchange) -> Exchange:
    if not model.broken or not model.is_follow_up(sent):
        return answer
    return replace(answer, chunks=(Chunk(MS, model.broken),))


@dataclass
class OpenAI:
    """The OpenAI API before a toy model; tokens are spelled `token_id:…`."""

    model: Model

    def exchange(self, method: str, path: str, body: bytes = b"", headers: Any = ()) -> Exchange:
        sent = json.loads(body)
        told = self.model.answer(sent)
        shown = {
            "tokens": [spelled(one[0][0]) for one in told],
            "token_logprobs": [one[0][1] for one in told],
            "top_logprobs": [{spelled(id_): nats for id_, nats in one} for one in told],
        }
        pieces = [
            {"choices": [{"index": 0, "text": "x", "finish_reason": None, "logprobs": shown}]},
            {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]},
            {"choices": [], "usage": usage(3, len(told))},
        ]
        frames = [f"data: {json.dumps(one)}\n\n" for one in pieces] + ["data: [DONE]\n\n"]
        chunks = tuple(Chunk(MS + n, frame.encode()) for n, frame in enumerate(frames))
        answer = replace(exchange(path, sent=sent, headers=SSE), chunks=chunks)
        return spoiled(self.model, sent, answer)


def spelled(id_: int) -> str:
    return f"token_id:{id_}"


@dataclass
class Engine:
    """What the probe has of a running engine."""

    client: NativeClient | OpenAIClient


def engine_of(api: str, model: Model) -> Engine:
    endpoint = Endpoint("http://engine")
    client = NativeClient(endpoint) if api == "native" else OpenAIClient(endpoint)
    wire = Native(model) if api == "native" else OpenAI(model)
    client.http = wire  # type: ignore[assignment]
    if isinstance(client, OpenAIClient):
        client.model = "m"
    return Engine(client)


def probed(api: str, nonce: str, model: Model) -> tuple[Finding, list[Mapping[str, Any]]]:
    """The finding on one run of the probe, and the follow-ups that it sent."""
    fixtures = {"engine": lambda: engine_of(api, model), "nonce": lambda: nonce}
    seen = observed(test_genuine.test_answers_continue_themselves, [CHECK], fixtures)[CHECK]
    found = judged(check_of(CHECK), seen, "cpu")
    return found, [body for body in model.bodies if model.is_follow_up(body)]


@pytest.mark.parametrize("api", ["native", "openai"])
def test_where_nothing_parts_nothing_more_is_asked(api: str) -> None:
    for nonce in NONCES:
        model = Model()
        found, asked = probed(api, nonce, model)
        assert (found.verdict, found.numbers, asked) == (Verdict.PASS, {}, []), found
        assert len(model.bodies) == (12 if api == "native" else 18)


@pytest.mark.parametrize("api", ["native", "openai"])
def test_near_ties_pass_up_to_two_of_them(api: str) -> None:
    verdicts: dict[int, set[Verdict]] = {}
    for nonce in NONCES:
        for tie_every in (400, 100, 50, 20):
            found, asked = probed(api, nonce, Model(tie_every))
            verdicts.setdefault(len(asked), set()).add(found.verdict)
    for parted, reached in verdicts.items():
        assert reached == {Verdict.PASS if parted <= 2 else Verdict.FAIL}, verdicts
    assert {0, 1, 2, 3} <= verdicts.keys()


@pytest.mark.parametrize("api", ["native", "openai"])
def test_the_ordinary_requests_stay_as_they_are(api: str) -> None:
    told = [Model(), Model(tie_every=20)]
    for model in told:
        probed(api, NONCES[0], model)
    plain = [[one for one in model.bodies if not model.is_follow_up(one)] for model in told]
    names = ("max_tokens", "temperature", "seed", "logprobs")
    kept = [[{name: one.get(name) for name in names} for one in bodies] for bodies in plain]
    assert kept[0] == kept[1]
    assert len(told[1].bodies) > len(plain[1])
    assert told[1].bodies[: len(plain[1])] == plain[1]


@pytest.mark.parametrize("api", ["native", "openai"])
def test_a_flip_with_a_margin_fails(api: str) -> None:
    runs = [probed(api, nonce, Model(100, gap_nats=0.3)) for nonce in NONCES]
    assert {found.verdict for found, asked in runs if asked} == {Verdict.FAIL}
    assert any("0.3 nats apart" in found.message for found, _ in runs)


@pytest.mark.parametrize("api", ["native", "openai"])
@pytest.mark.parametrize("tie_every", [1, 20, 1 << 16])
def test_prompts_without_their_last_id_fail(api: str, tie_every: int) -> None:
    for nonce in NONCES:
        drops = Model(tie_every, drops=api == "native")
        if api == "openai":
            drops = Forgetful(tie_every, drops=True)
        found, _ = probed(api, nonce, drops)
        assert found.verdict == Verdict.FAIL, found


class Forgetful(Model):
    """Drops an id of those prompts alone that go on from an answer."""

    def answer(self, body: Mapping[str, Any]) -> list[Shown]:
        before = [one.get("prompt") for one in self.bodies]
        self.drops = any(_goes_on(body.get("prompt"), one) for one in before)
        return super().answer(body)


def _goes_on(prompt: Any, before: Any) -> bool:
    lists = isinstance(prompt, list) and isinstance(before, list)
    return lists and len(before) < len(prompt) and prompt[: len(before)] == before


@pytest.mark.parametrize("api", ["native", "openai"])
@pytest.mark.parametrize("broken", [b"{", b"data: \0", b"data: []\n\n", b"data: {}\n\n", b"\xff"])
def test_garbage_in_the_place_of_a_near_tie_fails(api: str, broken: bytes) -> None:
    parted = 0
    for nonce in NONCES:
        found, asked = probed(api, nonce, Model(100, broken=broken))
        assert found.verdict == (Verdict.FAIL if asked else Verdict.PASS), found
        parted += bool(asked)
    assert parted


def test_completions_part_where_both_have_a_token() -> None:
    assert parting([1, 2, 3], [1, 4]) == 1
    assert parting([1, 2], [1, 2, 3]) is None
    assert parting([], [1]) is None


def test_a_follow_up_keeps_the_rest_of_its_request() -> None:
    rest = {"job_id": "j", "prompt_ids": [1, 2], "seed": 3, "max_tokens": 9, "temperature": 0.0}
    assert follow_up(rest, [5, 6]) == {
        "prompt_ids": [1, 2, 5, 6],
        "seed": 3,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 2,
    }
