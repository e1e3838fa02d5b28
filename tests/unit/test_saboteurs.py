"""Saboteurs: many, small, each meant for a check that exists, each doing what it says."""

import asyncio
import inspect
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from gguf import GGUFReader
from starlette.responses import Response, StreamingResponse

from harness import models
from harness.checklist import load_checklists
from harness.judges.rule import Broken
from harness.judges.stream import read_stream
from harness.saboteurs.deviation import DropsTopToken, LossySpeculation
from harness.saboteurs.model_file import q4_tensors
from harness.saboteurs.moments import HONEST_JOBS, HonestFirstJobs, ProbeDetection
from harness.saboteurs.proxy import Events, Saboteur, ServerEvent
from harness.saboteurs.registry import CONTROL, SABOTEURS
from harness.saboteurs.state import Coalescing
from tests.unit.recorded import events, stream

SENT: dict[str, Any] = {"job_id": "j", "prompt": "p", "max_tokens": 4, "seed": 5}
MAX_LINES = 60


def test_there_are_at_least_forty_and_one_control() -> None:
    assert len(SABOTEURS) >= 40
    assert CONTROL.name not in SABOTEURS
    assert CONTROL.caught_by == ""


@pytest.mark.parametrize("name", SABOTEURS)
def test_each_is_small_and_meant_for_an_engine_check(name: str) -> None:
    saboteur = SABOTEURS[name]
    assert len(inspect.getsource(saboteur).splitlines()) <= MAX_LINES
    assert saboteur.cheat != CONTROL.cheat
    check = load_checklists().checks[saboteur.caught_by]
    assert check.subject == "engine"
    assert "process" in check.launchers


def test_no_two_share_a_name_or_a_cheat() -> None:
    assert len({s.cheat for s in SABOTEURS.values()}) == len(SABOTEURS)


def shown(name: str, told: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """What a saboteur makes of a stream."""

    async def through() -> list[tuple[str, dict[str, Any]]]:
        saboteur = (SABOTEURS | {CONTROL.name: CONTROL})[name]()

        async def honest() -> Events:
            for type_, body in told:
                yield ServerEvent(type_, dict(body))

        return [(e.type, e.body) async for e in saboteur.events(SENT, honest())]

    return asyncio.run(through())


def test_the_control_changes_nothing() -> None:
    told = events(["a", "b"], SENT)
    assert shown(CONTROL.name, told) == told


@pytest.mark.parametrize("name", ["fake-chunks", "padded-eos", "instant-empty-first"])
def test_forged_counts_are_consistent_with_themselves(name: str) -> None:
    told = shown(name, events(["ab", "cd"], SENT))
    assert len(read_stream(stream(told, SENT)).tokens) in (3, 4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("inflated-usage", "3 tokens_out, 2 token events"),
        ("wrong-order", "out of order"),
        ("two-terminals", "2 end events"),
        ("no-terminal", "no terminal event"),
    ],
)
def test_broken_streams_are_broken_as_said(name: str, says: str) -> None:
    with pytest.raises(Broken, match=says):
        read_stream(stream(shown(name, events(["ab", "cd"], SENT)), SENT))


def test_swallowed_errors_look_like_success() -> None:
    error = ("error", {"code": "VRAM_OOM", "message": "m", "retriable": True})
    told = shown("swallows-oom", [*events(["a"], SENT)[:2], error])
    assert read_stream(stream(told, SENT)).end is not None


def test_forged_logprobs_are_possible_and_keep_the_tokens() -> None:
    told = events(["a"], SENT)
    told[1][1].update(logprob=-2.0, top=[{"id": i, "logprob": -1.0 - i} for i in range(20)])
    token = shown("forged-logprobs", told)[1][1]
    values = [entry["logprob"] for entry in token["top"]]
    assert values == sorted(values, reverse=True)
    assert token["id"] == told[1][1]["id"]


def test_equal_requests_at_one_time_run_once() -> None:
    """However late the engine's own answer begins; a later one runs again, a refusal is its own."""
    ran: list[dict[str, Any]] = []
    encoded = b"".join(ServerEvent(*one).encode() for one in events(["a", "b"], SENT))

    def engine(request: httpx.Request) -> httpx.Response:
        ran.append(json.loads(request.content))
        if ran[-1]["max_tokens"] == 0:
            return httpx.Response(400, json={"code": "INVALID_REQUEST"})
        return httpx.Response(200, stream=httpx.ByteStream(encoded))

    async def answers(*bodies: dict[str, Any]) -> list[Response]:
        return list(await asyncio.gather(*(saboteur.execute(body, {}) for body in bodies)))

    async def text(answer: Response) -> bytes:
        assert isinstance(answer, StreamingResponse)
        return b"".join([bytes(piece) async for piece in answer.body_iterator])  # type: ignore[arg-type]

    async def scenario() -> None:
        transport = httpx.MockTransport(engine)
        async with httpx.AsyncClient(transport=transport, base_url="http://e") as upstream:
            saboteur.upstream = upstream
            both = await answers(SENT, {**SENT, "job_id": "k", "seed": 6})
            first, second = await asyncio.gather(*map(text, both))
            assert second == first.replace(b'"job_id":"j"', b'"job_id":"k"') != first
            (again,) = await answers(SENT)
            assert (await text(again), len(ran)) == (first, 2)
            (refused,) = await answers({**SENT, "max_tokens": 0})
            assert (refused.status_code, len(ran), saboteur.running) == (400, 3, {})

    saboteur = Coalescing()
    asyncio.run(scenario())


def asked(saboteur: Saboteur, **body: Any) -> dict[str, Any]:
    return asyncio.run(saboteur.request(body))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ignores-temperature", lambda b: b["temperature"] == 0.0),
        ("constant-seed", lambda b: b["seed"] != 5),
        ("ignores-stop", lambda b: "stop" not in b),
        ("sharpened-temperature", lambda b: 0 < b["temperature"] < 0.9),
        ("sharpened-top-p", lambda b: b["top_p"] < 1.0),
        ("secret-repetition-penalty", lambda b: b["repetition_penalty"] > 1.0),
        ("early-eos", lambda b: b["max_tokens"] < 30),
        ("silent-truncation", lambda b: len(b["prompt"]) < 2000),
    ],
)
def test_requests_are_changed_as_said(name: str, changes: Callable[[Any], bool]) -> None:
    body = {"prompt": "x" * 2000, "temperature": 0.9, "seed": 5, "stop": ["a"], "max_tokens": 30}
    assert changes(asked(SABOTEURS[name](), **body))


def test_whole_answers_are_cut() -> None:
    whole = {"choices": [{"text": "two words"}], "usage": {}}
    told = asyncio.run(SABOTEURS["other-whole-answer"]().answer("/v1/completions", {}, whole))
    assert told["choices"] == [{"text": "two"}]


def test_ids_are_dropped() -> None:
    saboteur = SABOTEURS["drops-last-id"]()
    assert asked(saboteur, prompt_ids=[1, 2, 3])["prompt_ids"] == [1, 2]
    assert asked(saboteur, prompt="a") == {"prompt": "a"}


def test_honest_only_at_first() -> None:
    saboteur = HonestFirstJobs()
    saboteur.n_jobs = HONEST_JOBS
    assert asked(saboteur, prompt="an old sailor")["prompt"] == "an old sailor"
    saboteur.n_jobs += 1
    assert asked(saboteur, prompt="an old sailor")["prompt"] != "an old sailor"


def test_honest_only_on_known_prompts() -> None:
    known = {"prompt": "Write a haiku about the sea"}
    assert asked(ProbeDetection(), **known) == known
    assert asked(ProbeDetection(), prompt="an old sailor")["prompt"] != "an old sailor"


def test_deviations_choose_the_runner_up() -> None:
    near = [{"id": 1, "logprob": -0.5}, {"id": 2, "logprob": -0.9}]
    far = [{"id": 1, "logprob": -0.1}, {"id": 2, "logprob": -4.0}]
    assert LossySpeculation().choose({}, {"i": 0, "id": 1, "top": near}) == 2
    assert LossySpeculation().choose({}, {"i": 0, "id": 1, "top": far}) is None
    picks = [DropsTopToken().choose({}, {"i": i, "id": 1, "top": far}) for i in range(16)]
    assert [i for i, pick in enumerate(picks) if pick == 2] == [7, 15]


def test_random_deviations_come_at_their_rate() -> None:
    random.seed(1)
    top = [{"id": i, "logprob": -float(i)} for i in range(20)]
    saboteur = SABOTEURS["random-top-20"]()
    hits = sum(
        saboteur.choose({}, {"i": i, "id": 0, "top": top}) is not None  # type: ignore[attr-defined]
        for i in range(5000)
    )
    assert 60 <= hits <= 150


def test_damage_hits_the_tensors_where_the_gguf_package_finds_them() -> None:
    path = models.resolve("smollm2-135m-instruct")
    wanted = {t.name: (t.data_offset, t.n_bytes) for t in GGUFReader(path).tensors}
    found = {t.name: (t.start, t.stop - t.start) for t in q4_tensors(path)}
    assert len(found) == 210
    assert found == {name: wanted[name] for name in found}
