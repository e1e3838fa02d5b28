"""Gate 4: cancelled jobs and clients that leave, in every phase of a job."""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest

from harness.clients.http import LiveExchange, told_object
from harness.launch import RunningEngine
from harness.observation import Exchange, Observe

STORY = "Once upon a time, in a small village by the sea, there lived"
ENDLESS: dict[str, Any] = {"prompt": STORY, "max_tokens": 1024, "temperature": 1.0, "seed": 5}
WIDE: dict[str, Any] = {**ENDLESS, "prompt": STORY * 16}
HEAVY: dict[str, Any] = {**ENDLESS, "prompt": STORY * 110, "max_tokens": 256}
SHORT: dict[str, Any] = {"prompt": STORY, "max_tokens": 6, "temperature": 0.0, "seed": 1}
DECODE_TRIALS = 24
PREFILL_TRIALS = 8
GIVE_UP_AFTER = 2
"""Jobs that a cancel did not end: an engine that ignores cancels is known by then."""
PAIRS = 12
QUEUED_S = 5.0
"""For the head of an answer; where none is sent before its turn, the job is queued by then."""
MEMORY_ATTEMPTS = 5
"""A text may end by itself before its memory is told."""
PREFILL_ATTEMPTS = 5
"""A fast engine may have finished its prefill before the client cancels, or leaves."""


@pytest.mark.check("G4-CANCEL-STOPS", "G4-CANCEL-EVENT", "G4-CANCEL-LATENCY")
def test_cancelled_jobs(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    before = client.metrics()
    jobs, cancels, unheeded = [], [], 0
    for trial in range(DECODE_TRIALS + PREFILL_TRIALS):
        decoding = trial % 4 != 3
        live = client.start(**(ENDLESS if decoding else HEAVY), job_id=f"stop-{trial}")
        live.wait_for("token" if decoding else "started", 30.0, 1 + trial % 5 if decoding else 1)
        cancels.append(client.cancel(f"stop-{trial}"))
        jobs.append(live.finish(30.0))
        unheeded += not any(timed.event.type == "error" for timed in live.events)
        if unheeded >= GIVE_UP_AFTER:
            break
    after = client.metrics()
    sleep(0.3)
    observe(before=before, jobs=jobs, cancels=cancels, after=after, later=client.metrics())


@pytest.mark.check("G4-CANCEL-MEMORY")
def test_memory_comes_back(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    cancelled_while(client, "memory-warm", lambda: None)
    before, facts_before = client.health(), engine.process_facts() or {}
    during: list[Exchange] = []
    cancels, after = [], []

    def holds(seen: Exchange) -> bool:
        return kv_bytes(seen) > kv_bytes(before)

    for trial in range(4):
        for attempt in range(MEMORY_ATTEMPTS):
            seen: list[Exchange] = []
            look = lambda: seen.append(until(client.health, holds, 1.0))  # noqa: B023, E731
            cancel = cancelled_while(client, f"memory-{trial}-{attempt}", look, seed=attempt)
            if holds(seen[-1]):
                break
        during.append(seen[-1])
        cancels.append(cancel)
        after.append(until(client.health, lambda seen: kv_bytes(seen) <= kv_bytes(before)))
    observe(
        before=before,
        during=during,
        cancels=cancels,
        after=after,
        anonymous_bytes=[
            facts_before.get("anonymous_bytes"),
            (engine.process_facts() or {}).get("anonymous_bytes"),
        ],
    )


@pytest.mark.check("G4-CANCEL-DISCONNECT")
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_client_leaves(phase: str, engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    before = client.metrics()
    left: list[Exchange] = []
    late: list[Exchange] = []
    noticed: list[Exchange] = []
    running: list[LiveExchange] = []
    missed = 0
    for trial in range(10):
        if phase == "queued":
            running.append(client.start(**ENDLESS, job_id=f"left-behind-{trial}"))
            running[-1].wait_for("token", 30.0)
        for _ in range(PREFILL_ATTEMPTS):
            wanted = cancelled_count(before) + len(left) + len(running[:-1]) + len(late) + 1
            job, seen = left_in(phase, client, wanted)
            if phase != "prefill" or not has_token(job):
                break
            late.append(job.finish(5.0))
        left.append(job.finish(5.0))
        noticed.append(seen)
        missed += cancelled_count(seen) < wanted
        if running:
            client.cancel(f"left-behind-{trial}")
            running[-1].finish(30.0)
        if missed >= GIVE_UP_AFTER:
            break
    others = {"running": [one.finish(1.0) for one in running], "late": late}
    observe(
        before=before,
        left=left,
        noticed=noticed,
        phase=phase,
        **{name: exchanges for name, exchanges in others.items() if exchanges},
    )


@pytest.mark.check("G4-CANCEL-IDEMPOTENT")
def test_repeated_cancels(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    live = client.start(**ENDLESS, job_id="again-and-again")
    live.wait_for("token", 30.0)
    repeated = [client.cancel("again-and-again") for _ in range(3)]
    cancelled = live.finish(30.0)
    finished = client.execute(**SHORT, job_id="done-already")
    observe(
        cancelled=cancelled,
        finished=finished,
        accepted=[
            *repeated,
            client.cancel("again-and-again"),
            client.cancel("done-already"),
            client.cancel("done-already"),
        ],
        unknown=client.cancel("never-seen-by-anyone"),
        reused=client.execute(**SHORT, job_id="again-and-again"),
    )


@pytest.mark.check("G4-CANCEL-PHASES")
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode", "finished"])
def test_cancel_in(phase: str, engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    before = client.execute(**SHORT)
    ahead = client.start(**ENDLESS, job_id="ahead") if phase == "queued" else None
    if ahead is not None:
        ahead.wait_for("token", 30.0)
    request = {"queued": ENDLESS, "prefill": HEAVY, "decode": ENDLESS, "finished": SHORT}[phase]
    for attempt in range(PREFILL_ATTEMPTS if phase == "prefill" else 1):
        cancel, live = cancelled_in(phase, client, {**request, "job_id": f"in-{phase}-{attempt}"})
        seen = {"job": live.finish(30.0)}
        if not has_token(live):
            break
    if ahead is not None:
        client.cancel("ahead")
        seen["ahead"] = ahead.finish(30.0)
    observe(phase=phase, cancel=cancel, before=before, after=client.execute(**SHORT), **seen)


@pytest.mark.check("G4-CANCEL-QUEUE")
def test_next_request_is_as_fast(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    cancelled, plain, after_cancel, after_plain = [], [], [], []
    for trial in range(PAIRS):
        for kind in ("cancel", "plain") if trial % 2 else ("plain", "cancel"):
            if kind == "plain":
                plain.append(client.execute(**{**ENDLESS, "max_tokens": 6}))
                after_plain.append(client.execute(**{**SHORT, "max_tokens": 1}))
                continue
            live = client.start(**ENDLESS, job_id=f"ahead-{trial}")
            live.wait_for("token", 30.0, 5)
            client.cancel(f"ahead-{trial}")
            cancelled.append(live.finish(30.0))
            after_cancel.append(client.execute(**{**SHORT, "max_tokens": 1}))
    observe(cancelled=cancelled, plain=plain, after_cancel=after_cancel, after_plain=after_plain)


@pytest.mark.check("G4-CANCEL-QUEUE")
def test_the_others_keep_their_turn(engine: RunningEngine, observe: Observe) -> None:
    client = engine.client
    alone = client.execute(**SHORT)
    ahead = client.start(**ENDLESS, job_id="turn-ahead")
    ahead.wait_for("token", 30.0)
    waiting = []
    for number in range(4):
        waiting.append(client.start(**SHORT, job_id=f"turn-{number}"))
        wait_in("queued", waiting[-1])
    cancel = until(lambda: client.cancel("turn-1"), lambda seen: seen.status != 404)
    withdrawn = waiting[1].finish(10.0)
    client.cancel("turn-ahead")
    kept = [one.finish(60.0) for one in (waiting[0], *waiting[2:])]
    observe(alone=alone, ahead=ahead.finish(30.0), job=withdrawn, kept=kept, cancel=cancel)


def wait_in(phase: str, live: LiveExchange) -> None:
    """Wait until the job is in this phase; of a queued one only the head of its answer comes."""
    events = {"prefill": ("started", 1), "decode": ("token", 3), "finished": ("end", 1)}
    if phase in events:
        live.wait_for(events[phase][0], 60.0, events[phase][1])
    else:
        live.wait_answered(QUEUED_S)


def left_in(phase: str, client: Any, wanted: int) -> tuple[LiveExchange, Exchange]:
    """A job whose client leaves in this phase, and the first /metrics with `wanted` cancelled."""
    live: LiveExchange = client.start(**(HEAVY if phase == "prefill" else ENDLESS))
    wait_in(phase, live)
    live.disconnect()
    noticed = until_cancelled(client, wanted)
    live.finish(5.0)
    return live, noticed


def has_token(live: LiveExchange) -> bool:
    """Whether a token came, so that the prefill was over."""
    return any(timed.event.type == "token" for timed in live.events)


def cancelled_in(phase: str, client: Any, request: dict[str, Any]) -> tuple[Exchange, LiveExchange]:
    """Start a job, wait for the phase, cancel it; a job that is not known yet is asked again."""
    live: LiveExchange = client.start(**request)
    wait_in(phase, live)
    cancel = until(lambda: client.cancel(request["job_id"]), lambda seen: seen.status != 404)
    return cancel, live


def cancelled_while(client: Any, job_id: str, look: Callable[[], None], seed: int = 5) -> Exchange:
    """Cancel a job with a long context while it decodes; `look` runs before that."""
    live = client.start(**{**WIDE, "seed": seed}, job_id=job_id)
    live.wait_for("token", 60.0, 2)
    look()
    cancel: Exchange = client.cancel(job_id)
    live.finish(30.0)
    return cancel


def until(
    ask: Callable[[], Exchange], holds: Callable[[Exchange], bool], within_s: float = 6.0
) -> Exchange:
    """The first answer for which it holds, or the last in this time."""
    deadline = monotonic() + within_s
    while not holds(seen := ask()) and monotonic() < deadline:
        sleep(0.002)
    return seen


def until_cancelled(client: Any, count: int) -> Exchange:
    """The first /metrics that counts so many cancelled jobs."""
    return until(client.metrics, lambda seen: cancelled_count(seen) >= count)


def kv_bytes(seen: Exchange) -> int:
    """The KV bytes of a /health answer, for knowing when to stop asking."""
    return int(told_object(seen).get("kv_bytes", 0))


def cancelled_count(seen: Exchange) -> int:
    """The cancelled jobs of a /metrics answer, for knowing when to stop asking."""
    for line in seen.body.decode("utf-8", errors="replace").splitlines():
        if line.startswith("worker_requests_total") and 'outcome="cancelled"' in line:
            return int(float(line.rpartition(" ")[2]))
    return 0
