"""Gate 4: the answers are computed, each one anew, by the model that is reported.

Every request is drawn from the run's nonce, and by harness/traffic.py, which draws the re-scored
requests too: no word and no parameter of a probe is one that re-scored requests do not have.
"""

import random
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.challenge import Challenge, opening, paragraph
from harness.clients.http import told_ids
from harness.clients.native import NativeClient
from harness.judges.genuine_work import comparable
from harness.judges.stream import Stream, read_or_nothing
from harness.launch import LaunchEngine, RunningEngine
from harness.manifest import digest_file
from harness.observation import Exchange, Json, Observe
from harness.profiles import Profile
from harness.reference import client_like, reference_engine
from harness.rescoring import replies
from harness.timings import token_text
from harness.traffic import (
    COOL,
    GREEDY,
    HOT,
    LONGEST,
    NEAR_ZERO,
    SHORT,
    aside,
    beyond_ascii,
    found_stop,
    fresh,
    greedy,
    max_tokens,
    near,
    reproducible,
)
from harness.traffic import seed as drawn_seed
from harness.vocabulary import Vocabulary
from suites.continuations import continued_by_logprobs, rest_of
from suites.long_run import LongRun
from suites.near_ties import follow_ups
from suites.physics import observed_work

PAIRS = 12
GROUP = 3
AVERAGE = (20, 28)
Request = Mapping[str, Any]


def ids_of(seen: Exchange) -> list[int]:
    """The token ids of a stream, for the requests that build on it; judges read it anew."""
    return read_or_nothing(seen).ids


def is_native(engine: RunningEngine) -> bool:
    """Whether the engine shows all that the contract has: token ids, /tokenize, /health, /score."""
    return engine.client.kind == NativeClient.kind


def prompt_ids(engine: RunningEngine, text: str) -> tuple[Exchange, list[int]]:
    """A prompt's token ids as the engine encodes it, with the exchange that told."""
    seen = engine.client.tokenize(text, add_special=True)
    return seen, told_ids(seen)


@pytest.fixture(scope="module")
def long_run(launch_for_module: LaunchEngine, nonce: str) -> LongRun:
    """An engine of its own that has answered the first of the re-scored requests."""
    return LongRun.begun(launch_for_module(), nonce)


@pytest.fixture(scope="module", autouse=True)
def first_requests_first(request: pytest.FixtureRequest) -> None:
    """Re-scoring, where it is asked for, begins before the probes: their time passes for it."""
    if any("long_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("long_run")


@pytest.mark.check("G4-GENUINE-PROCESS")
def test_every_process_answers_alike(
    engine: RunningEngine, long_run: LongRun, nonce: str, observe: Observe
) -> None:
    """The process that is re-scored vouches for the one that the other probes share."""
    draw = Challenge(nonce, "G4-GENUINE-PROCESS").draw()
    drawn = (fresh(draw, kind) for kind in ("greedy", "sampled", "logprobs", "chat") * 2)
    requests = [request for request in drawn if reproducible(request)]
    shared = [engine.client.execute(**request) for request in requests]
    rescored = [long_run.engine.client.execute(**request) for request in requests]
    facts = [(one.process_facts() or {}) for one in (engine, long_run.engine)]
    pids: list[Json] = [one.get("pid") for one in facts]
    observe(shared=shared, rescored=rescored, pids=pids)


@pytest.mark.check("G4-GENUINE-CACHE")
def test_repeated_requests_are_computed(
    engine: RunningEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-CACHE").draw()
    known = [greedy(draw, AVERAGE) for _ in range(PAIRS // 3)]
    for request in known:
        engine.client.execute(**request)
    repeats = [
        (one, greedy(draw, (one["max_tokens"],) * 2)) for one in draw.sample(known * 3, PAIRS)
    ]
    again, anew = _interleaved(engine, draw, repeats)
    observe(repeated=again, fresh=anew)


@pytest.mark.check("G4-GENUINE-SHAPE")
def test_first_token_does_not_wait(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-SHAPE").draw()
    pairs = [(greedy(draw, (3, 5)), greedy(draw, (88, LONGEST))) for _ in range(PAIRS)]
    short, long = _interleaved(engine, draw, pairs)
    observe(short=short, long=long)


def _interleaved(
    engine: RunningEngine, draw: random.Random, pairs: Sequence[tuple[Request, Request]]
) -> tuple[list[Exchange], list[Exchange]]:
    """Pairs of both kinds, each pair in a drawn order."""
    sides: tuple[list[Exchange], list[Exchange]] = ([], [])
    for requests in pairs:
        for side in draw.sample((0, 1), 2):
            sides[side].append(engine.client.execute(**requests[side]))
    return sides


@pytest.mark.check("G4-GENUINE-COALESCE")
def test_clones_are_each_computed(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-COALESCE").draw()
    clones: list[Exchange] = []
    others: list[Exchange] = []
    for _ in range(PAIRS):
        request = greedy(draw, (10, 14))
        alike = (request["max_tokens"],) * 2
        clones += _together(engine, [request] * GROUP)
        others += _together(engine, [greedy(draw, alike) for _ in range(GROUP)])
    unseeded: list[Exchange] = []
    for _ in range(PAIRS):
        if comparable(unseeded[-GROUP:]):
            break
        unseeded += _together(engine, [_hot_without_seed(draw)] * GROUP)
    observe(clones=clones, others=others, unseeded=unseeded, group_size=GROUP)


def _hot_without_seed(draw: random.Random) -> Request:
    tokens = max_tokens(draw, (88, LONGEST))
    return {"prompt": opening(draw), "max_tokens": tokens, "temperature": draw.choice((1.1, 1.2))}


def _together(engine: RunningEngine, requests: Sequence[Request]) -> list[Exchange]:
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
        request = greedy(draw, (20, 40))
        whole = engine.client.execute(**request)
        prompt, ids = prompt_ids(engine, request["prompt"])
        wholes.append(whole)
        prompts.append(prompt)
        rests.append(rest_of(engine, draw, ids, ids_of(whole), request))
    ties = follow_ups(engine, wholes, rests, ids_of)
    observe(wholes=wholes, rests=rests, prompts=prompts, **ties)


@pytest.mark.check("G4-GENUINE-COUNT", "G4-GENUINE-METRICS")
def test_tokens_are_counted_alike(
    launch_engine: LaunchEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-COUNT").draw()
    engine = launch_engine()
    client = engine.client
    requests = [_unstopped(fresh(draw, draw.choice(("greedy", "sampled")))) for _ in range(8)]
    beyond = {"prompt": beyond_ascii(draw), "max_tokens": 32, "temperature": 1.2}
    requests.append({**beyond, "seed": drawn_seed(draw)})
    if not is_native(engine):
        observe(jobs=[client.execute(**{**request, "logprobs": 1}) for request in requests])
        return
    before = client.metrics()
    jobs = [client.execute(**request) for request in requests]
    after = client.metrics()
    texts = [client.detokenize(ids_of(job)) for job in jobs]
    tokens = [token for job in jobs for token in read_or_nothing(job).tokens]
    silent = sorted({token.token_id for token in tokens if token.text == ""})
    seen: dict[str, Any] = {"silent": [client.detokenize([i]) for i in silent]} if silent else {}
    observe(jobs=jobs, texts=texts, before=before, after=after, **seen)


def _unstopped(request: Request) -> Request:
    """The request without a stop sequence, whose tokens are counted but not all shown."""
    return {name: value for name, value in request.items() if name != "stop"}


@pytest.mark.check("G4-GENUINE-STREAM")
def test_stream_equals_whole(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-STREAM").draw()
    streams, whole = [], []
    for _ in range(5):
        request = greedy(draw, (8, 32))
        streams.append(engine.client.execute(**request))
        whole.append(engine.client.whole(**request))
    observe(streams=streams, whole=whole)


@pytest.mark.check("G4-GENUINE-SEED")
def test_seeds_are_honoured(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-SEED").draw()
    tokens = max_tokens(draw, AVERAGE)
    request = {"prompt": opening(draw), "max_tokens": tokens, "temperature": 1.0}
    seeds = [drawn_seed(draw) for _ in range(6)]
    order = [*seeds, *seeds[:3]]
    draw.shuffle(order)
    observe(jobs=[engine.client.execute(**request, seed=seed) for seed in order])


@pytest.mark.check("G4-GENUINE-TEMPERATURE")
def test_temperature_is_applied(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-TEMPERATURE").draw()
    answers: dict[str, list[Exchange]] = {"greedy": [], "cool": [], "hot": [], "near_zero": []}
    heats = {"greedy": GREEDY, "cool": COOL, "hot": HOT, "near_zero": NEAR_ZERO}
    for _ in range(24):
        request = {"prompt": opening(draw), "max_tokens": max_tokens(draw, (14, 18))}
        for name in draw.sample(sorted(heats), len(heats)):
            fields = {**request, "temperature": heats[name], "seed": drawn_seed(draw)}
            answers[name].append(engine.client.execute(**fields))
    observe(**answers)


@pytest.mark.check("G4-GENUINE-LENGTH")
def test_length_is_exact(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-LENGTH").draw()
    lengths = [1, 2, 64, *(draw.randint(3, 60) for _ in range(5))]
    jobs, continued = [], []
    for length in draw.sample(lengths, len(lengths)):
        request = greedy(draw, (length, length))
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
        request = greedy(draw, (36, 44))
        job = engine.client.execute(**request)
        sequence = found_stop(draw, read_or_nothing(job).text)
        if sequence is not None:
            free.append(job)
            stopped.append(engine.client.execute(**request, stop=[sequence]))
    observe(free=free, stopped=stopped)


@pytest.mark.check("G4-GENUINE-CONTEXT")
def test_long_prompts_are_read_from_their_start(
    engine: RunningEngine, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-CONTEXT").draw()
    answers: dict[str, list[Exchange]] = {"one": [], "other": []}
    for sentences in (30, 60, 90):
        request = {**greedy(draw, SHORT), "prompt": paragraph(draw, sentences), "logprobs": 1}
        answers["one"].append(engine.client.execute(**request))
        if is_native(engine):
            answers.setdefault("prompts", []).append(prompt_ids(engine, request["prompt"])[0])
        answers["other"].append(engine.client.execute(**near(draw, request)))
    observe(**answers)


@pytest.mark.check("G4-GENUINE-CANARY")
def test_nothing_crosses_requests(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    challenge = Challenge(nonce, "G4-GENUINE-CANARY")
    draw, canary = challenge.draw(), challenge.code_word
    request = {**greedy(draw, (10, 14)), "logprobs": 1}
    answers, between = [], []
    for _ in range(4):
        answers.append(engine.client.execute(**request))
        secret = {**greedy(draw, SHORT), "prompt": f"{opening(draw)} {aside(draw, canary)}"}
        between.append(engine.client.execute(**secret))
    answers.append(engine.client.execute(**request))
    observe(answers=answers, between=between, canary=canary)


@pytest.mark.check("G4-GENUINE-LOGPROB")
def test_logprobs_agree_with_draws(engine: RunningEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-LOGPROB").draw()
    asked = {"temperature": 1.0, "logprobs": 20}
    requests = [{**greedy(draw, (28, 36)), **asked} for _ in range(8)]
    observe(jobs=[engine.client.execute(**request) for request in requests])


@pytest.mark.check("G4-GENUINE-MEMORY", "G4-GENUINE-MODELFILE")
def test_memory_holds_the_model(launch_engine: LaunchEngine, nonce: str, observe: Observe) -> None:
    draw = Challenge(nonce, "G4-GENUINE-MEMORY").draw()
    engine = launch_engine()
    engine.client.execute(**greedy(draw, SHORT))
    rss_bytes: list[Json] = []
    for _ in range(24):
        job_id = str(uuid.UUID(int=draw.getrandbits(128), version=4))
        live = engine.client.start(**{**greedy(draw, (60, LONGEST)), "job_id": job_id})
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
def test_rate_and_compute_are_possible(
    engine: RunningEngine, profile: Profile, nonce: str, observe: Observe
) -> None:
    draw = Challenge(nonce, "G4-GENUINE-PHYSICS").draw()
    requests = [greedy(draw, (56, 72)) for _ in range(6)]
    observe(
        **observed_work(engine, profile, requests),
        api=engine.client.kind,
        health=engine.client.health(),
        model_bytes=engine.model_path.stat().st_size,
    )


@pytest.mark.check("G4-GENUINE-RESCORE", "G4-GENUINE-LATE", "G4-GENUINE-PROCESS")
def test_reference_accepts_every_token(
    long_run: LongRun,
    profile: Profile,
    calibration: str | None,
    observe: Observe,
) -> None:
    engine, asked = long_run.engine, long_run.asked
    jobs, late = long_run.ended()
    after = engine.process_facts()
    engine.stop()
    with reference_engine(engine.model_path, *profile.device_args) as reference:
        told = replies(reference.client, client_like(engine.client, reference), asked, jobs)
        health = reference.client.health()
    observe(
        **({"scores": told.scores} if told.scores else {}),
        **({"calibration": calibration} if calibration else {}),
        jobs=jobs,
        replays=told.replays,
        early=[jobs[place] for place in asked.early],
        late=[late[str(place)] for place in asked.early],
        early_kinds=[asked.kinds[place] for place in asked.early],
        reference_health=health,
        kinds=asked.kinds,
        model_sha256=engine.model_sha256,
        before=long_run.before,
        after=after,
    )
