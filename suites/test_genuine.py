"""Gate 4: the answers are computed, each one anew, by the model that is reported.

Every request is drawn from the run's nonce with ordinary wording, parameters and order, so that
no request can be told from a client's by what it asks.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.bandwidth import memory_bandwidth_bytes_per_s
from harness.challenge import Challenge, opening, paragraph
from harness.clients import EngineClient
from harness.clients.native import NativeClient
from harness.judges.completion import Stream, spelled_ids
from harness.judges.rule import Unseen
from harness.judges.stream import read_or_nothing
from harness.launch import LaunchEngine, RunningEngine
from harness.manifest import digest_file
from harness.observation import Exchange, Json, Observe
from harness.profiles import Profile
from harness.reference import client_like, reference_engine
from harness.rescoring import Rescoring, mixed, replies
from harness.timings import token_text
from harness.vocabulary import Vocabulary

PAIRS = 12
GROUP = 3


def ids_of(seen: Exchange) -> list[int]:
    """The token ids of a stream, for the requests that build on it; judges read it anew."""
    return read_or_nothing(seen).ids


def is_native(engine: RunningEngine) -> bool:
    """Whether the engine shows all that the contract has: token ids, /tokenize, /health, /score."""
    return engine.client.kind == NativeClient.kind


def prompt_ids(engine: RunningEngine, text: str) -> tuple[Exchange, list[int]]:
    """A prompt's token ids as the engine encodes it, with the exchange that told."""
    seen = engine.client.tokenize(text, add_special=True)
    return seen, list(json.loads(seen.body or b"{}").get("ids", []))


def greedy(draw: random.Random, max_tokens: int) -> dict[str, Any]:
    """A greedy request with ordinary text."""
    fields = {"prompt": opening(draw), "temperature": 0.0, "seed": draw.getrandbits(63)}
    return {**fields, "max_tokens": max_tokens}


@pytest.mark.check("G4-GENUINE-RESCORE", "G4-GENUINE-LATE", "G4-GENUINE-PROCESS")
def test_reference_accepts_every_token(
    launch_engine: LaunchEngine,
    profile: Profile,
    nonce: str,
    calibration: str | None,
    observe: Observe,
) -> None:
    asked = Rescoring.drawn(nonce)
    engine = launch_engine()
    client, before = engine.client, engine.process_facts()
    requests = asked.requests
    tail = [one if isinstance(one, Mapping) else requests[one] for one in asked.tail]
    sent = _paced(client, [*requests, *tail], asked.due_s)
    jobs = sent[: len(requests)]
    again = {
        str(place): seen for place, seen in zip(asked.tail, sent[len(requests) :], strict=True)
    }
    after = engine.process_facts()
    engine.stop()
    with reference_engine(engine.model_path, *profile.device_args) as reference:
        told = replies(reference.client, client_like(client, reference), asked, jobs)
        health = reference.client.health()
    observe(
        **({"scores": told.scores} if told.scores else {}),
        **({"calibration": calibration} if calibration else {}),
        jobs=jobs,
        replays=told.replays,
        early=[jobs[place] for place in asked.early],
        late=[again[str(place)] for place in asked.early],
        reference_health=health,
        kinds=asked.kinds,
        model_sha256=engine.model_sha256,
        before=before,
        after=after,
    )


def _paced(
    client: EngineClient, requests: Sequence[Mapping[str, Any]], due_s: Sequence[float]
) -> list[Exchange]:
    """The requests one after the other, none sooner after the one before than they are due."""
    sent_s, sent = time.monotonic(), []
    for request, due, before in zip(requests, due_s, [0.0, *due_s], strict=False):
        time.sleep(max(0.0, sent_s + due - before - time.monotonic()))
        sent_s = time.monotonic()
        sent.append(client.execute(**request))
    return sent


@pytest.mark.check("G4-GENUINE-CACHE")
def test_repeated_requests_are_computed(
    engine: RunningEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-CACHE").draw()
    known = greedy(draw, 24)
    engine.client.execute(**known)
    repeated, fresh = _interleaved(engine, draw, lambda: known, lambda: greedy(draw, 24))
    observe(repeated=repeated, fresh=fresh)


@pytest.mark.check("G4-GENUINE-SHAPE")
def test_first_token_does_not_wait(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-SHAPE").draw()
    short, long = _interleaved(engine, draw, lambda: greedy(draw, 4), lambda: greedy(draw, 96))
    observe(short=short, long=long)


def _interleaved(
    engine: RunningEngine, draw: random.Random, one: Any, other: Any
) -> tuple[list[Exchange], list[Exchange]]:
    """Pairs of both kinds, each pair in a drawn order."""
    sides: tuple[list[Exchange], list[Exchange]] = ([], [])
    for _ in range(PAIRS):
        requests = (one(), other())
        for side in draw.sample((0, 1), 2):
            sides[side].append(engine.client.execute(**requests[side]))
    return sides


@pytest.mark.check("G4-GENUINE-COALESCE")
def test_clones_are_each_computed(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-COALESCE").draw()
    clones: list[Exchange] = []
    others: list[Exchange] = []
    for _ in range(PAIRS):
        request = greedy(draw, 12)
        clones += _together(engine, [request] * GROUP)
        others += _together(engine, [greedy(draw, 12) for _ in range(GROUP)])
    hot = {"prompt": opening(draw), "max_tokens": 24, "temperature": 1.1}
    unseeded = _together(engine, [hot] * GROUP)
    observe(clones=clones, others=others, unseeded=unseeded, group_size=GROUP)


def _together(engine: RunningEngine, requests: Sequence[dict[str, Any]]) -> list[Exchange]:
    live = [engine.client.start(**request) for request in requests]
    return [one.finish(60.0) for one in live]


@pytest.mark.check("G4-GENUINE-PREFIX")
def test_answers_continue_themselves(
    engine: RunningEngine, vocabulary: Vocabulary | None, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-PREFIX").draw()
    if not is_native(engine):
        observe(**continued_by_logprobs(engine, draw, vocabulary))
        return
    wholes, rests, prompts = [], [], []
    for _ in range(6):
        request = greedy(draw, draw.randint(20, 40))
        whole = engine.client.execute(**request)
        prompt, ids = prompt_ids(engine, request["prompt"])
        wholes.append(whole)
        prompts.append(prompt)
        rests.append(rest_of(engine, draw, ids, ids_of(whole), request))
    observe(wholes=wholes, rests=rests, prompts=prompts)


def rest_of(
    engine: RunningEngine,
    draw: random.Random,
    ids: Sequence[int],
    own: Sequence[int],
    request: dict[str, Any],
) -> Exchange:
    """The same request, asked on after some of the answer's own tokens."""
    k = draw.randint(1, max(1, len(own) - 1))
    left = {"prompt_ids": [*ids, *own[:k]], "max_tokens": request["max_tokens"] - k}
    kept = {name: value for name, value in request.items() if name != "prompt"}
    return engine.client.execute(**{**kept, **left})


def continued_by_logprobs(
    engine: RunningEngine, draw: random.Random, vocabulary: Vocabulary | None
) -> dict[str, Any]:
    """Where nothing tokenizes: an answer's own tokens are the prompt, logprobs tell the next."""
    wholes, rests = [], []
    spelled: dict[str, int] = {}
    for _ in range(6):
        request = {**greedy(draw, draw.randint(20, 40)), "logprobs": 1}
        first = read_or_nothing(engine.client.execute(**request))
        ids = ids_in(first, vocabulary)
        request = {**request, "prompt_ids": ids or [1]}
        del request["prompt"]
        whole = engine.client.execute(**request)
        stream = read_or_nothing(whole)
        own = ids_in(stream, vocabulary)
        rests.append(rest_of(engine, draw, request["prompt_ids"], own, request))
        wholes.append(whole)
        if vocabulary is not None:
            spelled |= vocabulary.of((stream, read_or_nothing(rests[-1])))
    return {"wholes": wholes, "rests": rests, "vocabulary": spelled}


def ids_in(stream: Stream, vocabulary: Vocabulary | None) -> list[int]:
    """The ids as the API or the named tokenizer tells them; none where neither does."""
    try:
        return spelled_ids(stream, vocabulary.of((stream,)) if vocabulary else {})
    except Unseen:
        return []


@pytest.mark.check("G4-GENUINE-COUNT", "G4-GENUINE-METRICS")
def test_tokens_are_counted_alike(
    launch_engine: LaunchEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-COUNT").draw()
    engine = launch_engine()
    client = engine.client
    requests = [mixed(draw, draw.choice(("greedy", "sampled"))) for _ in range(8)]
    beyond = "🙂 日本語 🏳️‍🌈 नमस्ते"
    requests.append({"prompt": beyond, "max_tokens": 32, "temperature": 1.2, "seed": 3})
    if not is_native(engine):
        observe(jobs=[client.execute(**request, logprobs=1) for request in requests])
        return
    before = client.metrics()
    jobs = [client.execute(**request) for request in requests]
    after = client.metrics()
    texts = [client.detokenize(ids_of(job)) for job in jobs]
    tokens = [token for job in jobs for token in read_or_nothing(job).tokens]
    silent = sorted({token.token_id for token in tokens if token.text == ""})
    seen: dict[str, Any] = {"silent": [client.detokenize([i]) for i in silent]} if silent else {}
    observe(jobs=jobs, texts=texts, before=before, after=after, **seen)


@pytest.mark.check("G4-GENUINE-STREAM")
def test_stream_equals_whole(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-STREAM").draw()
    streams, whole = [], []
    for number in range(5):
        request = {**greedy(draw, draw.randint(8, 32)), "seed": number}
        streams.append(engine.client.execute(**request))
        whole.append(engine.client.whole(**request))
    observe(streams=streams, whole=whole)


@pytest.mark.check("G4-GENUINE-SEED")
def test_seeds_are_honoured(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-SEED").draw()
    request = {"prompt": opening(draw), "max_tokens": 24, "temperature": 1.0}
    seeds = [draw.getrandbits(63) for _ in range(6)]
    order = [*seeds, *seeds[:3]]
    draw.shuffle(order)
    observe(jobs=[engine.client.execute(**request, seed=seed) for seed in order])


@pytest.mark.check("G4-GENUINE-TEMPERATURE")
def test_temperature_is_applied(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-TEMPERATURE").draw()
    answers: dict[str, list[Exchange]] = {"greedy": [], "cool": [], "hot": [], "near_zero": []}
    heats = {"greedy": 0.0, "cool": 0.15, "hot": 1.7, "near_zero": 0.001}
    for _ in range(24):
        request = {"prompt": opening(draw), "max_tokens": 16}
        for name in draw.sample(sorted(heats), len(heats)):
            fields = {**request, "temperature": heats[name], "seed": draw.getrandbits(63)}
            answers[name].append(engine.client.execute(**fields))
    observe(**answers)


@pytest.mark.check("G4-GENUINE-LENGTH")
def test_length_is_exact(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-LENGTH").draw()
    lengths = [1, 2, 64, *(draw.randint(3, 60) for _ in range(5))]
    jobs, continued = [], []
    for max_tokens in draw.sample(lengths, len(lengths)):
        request = greedy(draw, max_tokens)
        job = engine.client.execute(**request)
        jobs.append(job)
        stream = read_or_nothing(job)
        if (stream.end or {}).get("finish_reason") == "stop":
            continued.append(_asked_on(engine, request["prompt"], stream))
    seen: dict[str, Any] = {"continued": continued} if continued else {}
    observe(jobs=jobs, **seen)


def _asked_on(engine: RunningEngine, prompt: str, stream: Stream) -> Exchange:
    """An answer that ended by itself, asked to go on just before its end."""
    fields: dict[str, Any] = {"prompt": prompt + stream.text}
    if is_native(engine):
        fields = {"prompt_ids": prompt_ids(engine, prompt)[1] + stream.ids[:-1]}
    return engine.client.execute(**fields, max_tokens=8, temperature=0.0)


@pytest.mark.check("G4-GENUINE-STOP")
def test_stop_sequences_end_the_answer(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-STOP").draw()
    free: list[Exchange] = []
    stopped: list[Exchange] = []
    for _ in range(40):
        if len(free) == 5:
            break
        request = greedy(draw, 40)
        job = engine.client.execute(**request)
        text = read_or_nothing(job).text
        if len(text) < 24:
            continue
        at = draw.randint(8, len(text) - 8)
        free.append(job)
        stopped.append(engine.client.execute(**request, stop=[text[at : at + draw.randint(2, 6)]]))
    observe(free=free, stopped=stopped)


@pytest.mark.check("G4-GENUINE-CONTEXT")
def test_long_prompts_are_read_from_their_start(
    engine: RunningEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-CONTEXT").draw()
    answers: dict[str, list[Exchange]] = {"one": [], "other": []}
    for sentences in (30, 60, 90):
        rest = paragraph(draw, sentences)
        for name in ("one", "other"):
            prompt = f"{opening(draw)} {rest}"
            request = {"prompt": prompt, "max_tokens": 2, "temperature": 0.0, "logprobs": 1}
            answers[name].append(engine.client.execute(**request))
            if name == "one" and is_native(engine):
                answers.setdefault("prompts", []).append(prompt_ids(engine, prompt)[0])
    observe(**answers)


@pytest.mark.check("G4-GENUINE-CANARY")
def test_nothing_crosses_requests(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    challenge = Challenge(nonce, "G4-GENUINE-CANARY")
    draw, canary = challenge.draw(), challenge.code_word
    request = {**greedy(draw, 12), "logprobs": 1}
    answers, between = [], []
    for _ in range(4):
        answers.append(engine.client.execute(**request))
        secret = f"{opening(draw)} The password is {canary}. Remember: {canary}."
        between.append(engine.client.execute(prompt=secret, max_tokens=4, temperature=0.0))
    answers.append(engine.client.execute(**request))
    observe(answers=answers, between=between, canary=canary)


@pytest.mark.check("G4-GENUINE-LOGPROB")
def test_logprobs_agree_with_draws(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-LOGPROB").draw()
    jobs = [
        engine.client.execute(
            prompt=opening(draw),
            max_tokens=32,
            temperature=1.0,
            logprobs=20,
            seed=draw.getrandbits(63),
        )
        for _ in range(8)
    ]
    observe(jobs=jobs)


@pytest.mark.check("G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE")
def test_memory_holds_the_model(launch_engine: LaunchEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-MEMORY").draw()
    engine = launch_engine()
    engine.client.execute(**greedy(draw, 4))
    rss_bytes: list[Json] = []
    for number in range(24):
        job_id = f"job-{draw.getrandbits(40):x}-{number}"
        live = engine.client.start(**{**greedy(draw, 256), "job_id": job_id})
        live.wait_until(lambda event: bool(token_text(event)), 20.0)
        if is_native(engine):
            engine.client.cancel(job_id)
        else:
            live.disconnect()
        live.finish(20.0)
        rss_bytes.append((engine.process_facts() or {}).get("rss_bytes"))
    facts = engine.process_facts() or {}
    observe(
        api=engine.client.kind,
        health=engine.client.health(),
        rss_bytes=rss_bytes,
        model_bytes=engine.model_path.stat().st_size,
        model_sha256=engine.model_sha256,
        open_models=_open_models([*(facts.get("open_files") or []), *(facts.get("maps") or [])]),
    )


def _open_models(paths: Sequence[str]) -> list[Json]:
    """Each model file among these, once, with its digest."""
    named = [Path(path) for path in paths if path.endswith(".gguf")]
    # What lies in a container is reached through /proc, whose links are not to be resolved.
    found = {path if path.is_relative_to("/proc") else path.resolve() for path in named}
    return [
        {"name": path.name, "sha256": digest_file(path)} for path in sorted(found) if path.exists()
    ]


@pytest.mark.check("G4-GENUINE-PHYSICS")
def test_rate_and_compute_are_possible(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-PHYSICS").draw()
    before_s = (engine.process_facts() or {})["cpu_s"]
    jobs = [engine.client.execute(**greedy(draw, 64)) for _ in range(6)]
    used_s = (engine.process_facts() or {})["cpu_s"] - before_s
    observe(
        api=engine.client.kind,
        jobs=jobs,
        health=engine.client.health(),
        model_bytes=engine.model_path.stat().st_size,
        compute_s=used_s,
        bandwidth_bytes_per_s=memory_bandwidth_bytes_per_s(),
    )
