"""The judge of the anti-cheat haiku: a fresh challenge, honestly counted, seeded and re-scored."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from harness.calibration import Evidence
from harness.haiku import (
    CHECK,
    FIXED_SEED,
    HaikuChallenge,
    haiku_challenge,
    haiku_request,
    what_is_wrong,
)
from harness.judges.calibrated import calibration_of, pairing_of, reference_health
from harness.judges.metrics_text import counter
from harness.judges.rule import (
    Unseen,
    body,
    by_test,
    exchange,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
    said,
)
from harness.judges.stream import Stream, finished, identical, is_native, parts_at
from harness.judges.stream import asked as asked_fields
from harness.observation import Exchange, Finding, Judge, Limits, Observation
from harness.rescore import (
    GreedyFit,
    Score,
    first_difference,
    greedy_fit,
    likely_cause,
    read_scores,
)

CHAT_TEST: Final = "test_haiku_of_reference["
"""The tests of profile m0, whose models answer a conversation."""

MIN_FIXED: Final = 8
TOKENS_METRIC: Final = "worker_tokens_generated_total"


@judge
def judge_haiku(observation: Observation, limits: Limits) -> Finding:
    """Every rule of the haiku; the words count only in the completion."""
    haiku = exchange(observation, "haiku")
    stream = finished(haiku)
    _check_challenge(observation, haiku)
    took_s = ((stream.terminal_ns or 0) - haiku.sent_ns) / 1e9
    bound_s = limit(limits, "total_s")
    need(took_s <= bound_s, f"the haiku took {took_s:.1f} s, wanted {bound_s:g} s")
    _check_counted(observation, stream)
    _check_seed(observation, haiku)
    _check_memory(observation)
    _check_engine_gone(observation)
    fit = _check_rescored(observation, haiku, stream)
    _check_words(observation, stream)
    return passed(
        f"{stream.text.strip()!r:.160}",
        seconds=took_s,
        tokens=stream.tokens_out,
        worst_margin=fit.worst_margin,
        exact_rate=fit.exact_rate,
        **calibration_of(observation).label,
    )


def _asked(observation: Observation) -> HaikuChallenge:
    minute = datetime.fromtimestamp(fact(observation, "asked_at"), UTC).minute
    return haiku_challenge(fact(observation, "nonce"), observation.attempt, minute)


def _check_challenge(observation: Observation, haiku: Exchange) -> None:
    """The prompt is the one that nonce, attempt and the minute of the request ask for."""
    sent, wanted = asked_fields(haiku), haiku_request(_asked(observation), chat=_chat(observation))
    for name in ("prompt", "messages", "seed"):
        if sent.get(name) != wanted.get(name):
            raise Unseen("the recorded prompt is not the challenge of this run, attempt and minute")
    if sent.get("temperature") != 0.0:
        raise Unseen("the haiku was not asked for at temperature 0")


def _check_words(observation: Observation, stream: Stream) -> None:
    wrong = what_is_wrong(_asked(observation), stream.text, chat=_chat(observation))
    need(not wrong, wrong)


def _chat(observation: Observation) -> bool:
    """Whether this model is talked to; which it is follows from the test, not from a fact."""
    return observation.test.startswith(CHAT_TEST)


def _check_counted(observation: Observation, stream: Stream) -> None:
    seen = stream.tokens_out
    need(seen > 0, "the completion is empty")
    if not is_native(exchange(observation, "haiku")):
        return
    before = counter(exchange(observation, "metrics_before"), TOKENS_METRIC)
    after = counter(exchange(observation, "metrics_after"), TOKENS_METRIC)
    need(after - before == seen, f"{TOKENS_METRIC} rose by {after - before:g}, {seen} tokens came")


def _check_seed(observation: Observation, haiku: Exchange) -> None:
    identical([haiku, exchange(observation, "again")], "the same seed")
    sampled = exchange(observation, "sampled")
    identical([sampled, exchange(observation, "sampled_again")], "the same seed at T = 0.7")
    sent = _without(asked_fields(sampled), "seed")
    others = exchanges(observation, "other_seeds")
    for other in others:
        fields = asked_fields(other)
        need(_without(fields, "seed") == sent, "the requests differ in more than the seed")
        need(fields["seed"] != asked_fields(sampled)["seed"], "the seeds are the same")
    need(sent["temperature"] == 0.7, "the seeds are not tried at T = 0.7")
    texts = {tuple(finished(one).said) for one in (sampled, *others)}
    need(len(texts) > 1, f"{len(others)} other seeds gave the same tokens: the seed is ignored")


def _without(sent: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sent.items() if key not in (name, "job_id")}


def _check_memory(observation: Observation) -> None:
    process = observation.facts.get("process")
    if process is None:
        return
    resident, size = process["rss_bytes"], fact(observation, "weights_bytes")
    need(resident >= size, f"{resident} bytes resident, the weights alone have {size}")


def _check_engine_gone(observation: Observation) -> None:
    if observation.facts.get("process") is not None:
        alive = observation.facts.get("engine_alive_at_rescoring")
        need(alive is False, "the engine under test still ran when the reference was asked")


def _check_rescored(observation: Observation, haiku: Exchange, stream: Stream) -> GreedyFit:
    wanted = fact(observation, "model_sha256")
    if reference_health(observation).get("model_sha256") != wanted:
        raise Unseen("the reference has another model file")
    if is_native(haiku):
        health = body(exchange(observation, "health"))
        need(health.get("model_sha256") == wanted, "/health names another model file")
    if not is_native(haiku) or _chat(observation):
        return _check_replayed(observation, haiku, stream)
    tokenized = exchange(observation, "reference_tokenize")
    score = exchange(observation, "reference_score")
    if request(tokenized).get("text") != request(haiku)["prompt"]:
        raise Unseen("the reference tokenized another prompt")
    if request(score).get("prompt_ids") != body(tokenized)["ids"]:
        raise Unseen("the reference scored after another prompt")
    if request(score).get("completion_ids") != stream.ids:
        raise Unseen("the reference scored other tokens than those of the stream")
    need(score.status != 400, f"the reference refuses the tokens: {said(score)}")
    return _accepted(observation, read_scores(body(score), len(stream.ids)))


def _accepted(observation: Observation, scores: Sequence[Score]) -> GreedyFit:
    """The tokens lie no farther from the reference's choice than those of honest runs do."""
    fit = greedy_fit(scores)
    objections = list(pairing_of(observation).objections(Evidence(scores, (), ())))
    need(
        not objections,
        f"the tokens are not the model's: {'; '.join(objections)}; likely cause: "
        f"{likely_cause({'greedy'}, {'greedy'}, fit)}",
    )
    return fit


def _check_replayed(observation: Observation, haiku: Exchange, stream: Stream) -> GreedyFit:
    """Without token ids to score: the reference, asked for the same, answers the same."""
    replay = exchange(observation, "reference_replay")
    if _without(asked_fields(replay), "seed") != _without(asked_fields(haiku), "seed"):
        raise Unseen("the reference was asked for something else")
    again = finished(replay)
    at = parts_at(stream, again)
    need(
        at is None,
        f"the reference's haiku parts from this one at {at}: {again.text.strip()!r:.120}",
    )
    return GreedyFit(stream.tokens_out, stream.tokens_out, 0.0)


@judge
def judge_fixed(observation: Observation, limits: Limits) -> Finding:
    """The fixed question gives the tokens that transformers gives, up to a near-tie of its own."""
    golden, seen = fact(observation, "golden"), exchange(observation, "fixed")
    sent, stream = asked_fields(seen), finished(seen)
    if golden["sha256"] != fact(observation, "model_sha256"):
        raise Unseen("the golden is of another model file")
    if sent.get("prompt_ids") != golden["prompt_ids"] or sent.get("temperature") != 0.0:
        raise Unseen("the fixed question was not asked, or not greedily")
    if sent.get("seed") != FIXED_SEED:
        raise Unseen(f"the fixed question was not asked with seed {FIXED_SEED}")
    wanted = golden["completion_ids"]
    at = first_difference(stream.ids[: len(wanted)], wanted)
    margin = 0.0 if at is None else float(golden["margins"][min(at, len(wanted) - 1)])
    need(
        at is None or margin <= calibration_of(observation).widest_margin,
        f"token {at} of the fixed haiku is not that of transformers, whose margin there is "
        f"{margin:.3g} logits",
    )
    compared = len(wanted) if at is None else at
    need(compared >= MIN_FIXED, f"only {compared} tokens were compared, wanted {MIN_FIXED}")
    return passed(
        f"{compared} tokens as transformers gives them",
        tokens=compared,
        **calibration_of(observation).label,
    )


JUDGES: Final[Mapping[str, Judge]] = {
    CHECK: by_test(
        {
            "test_haiku": judge_haiku,
            "test_haiku_of_reference": judge_haiku,
            "test_fixed_haiku": judge_fixed,
        }
    )
}
