"""Judges of generation: seeds, sampling parameters, stop sequences, the KV cache, repeats."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.judges.rule import (
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
)
from harness.judges.stream import TokenEvent, failed, finished, identical
from harness.observation import Exchange, Finding, Judge, Limits, Observation

SLACK: Final = 2e-3
"""Logprobs are printed floats of a float32 softmax: equal ones may differ by as much."""


def _same_seed(observation: Observation, limits: Limits) -> Finding:
    runs = exchanges(observation, "runs")
    need(len(runs) >= 3, f"{len(runs)} runs, wanted at least 3")
    need(request(runs[0])["temperature"] > 0, "the runs are greedy: no seed is used")
    ids = identical(runs, "the same seed")
    return passed(f"{len(runs)} runs gave the same {len(ids)} tokens", tokens=ids)


def _other_seeds(observation: Observation, limits: Limits) -> Finding:
    runs = exchanges(observation, "runs")
    seeds = {request(run)["seed"] for run in runs}
    _same_but(runs, "seed")
    need(len(seeds) == len(runs) >= 4, f"{len(seeds)} seeds in {len(runs)} runs, wanted 4 or more")
    outcomes = {tuple(finished(run).ids) for run in runs}
    need(len(outcomes) == len(runs), f"{len(runs)} seeds gave only {len(outcomes)} completions")
    return passed(f"{len(runs)} seeds gave {len(outcomes)} completions")


def _omitted_seed(observation: Observation, limits: Limits) -> Finding:
    drawn, replays = exchanges(observation, "drawn"), exchanges(observation, "replays")
    need(len(drawn) == len(replays) >= 2, "wanted a replay for each of at least two draws")
    seeds = []
    for first, again in zip(drawn, replays, strict=True):
        need("seed" not in request(first), "a seed was sent")
        reported = (finished(first).started or {})["seed"]
        need(request(again).get("seed") == reported, "the replay uses another seed")
        need(finished(first).ids == finished(again).ids, f"seed {reported} does not replay")
        seeds.append(reported)
    need(len(set(seeds)) == len(seeds), f"the same seed {seeds[0]} was drawn twice")
    return passed(f"{len(seeds)} drawn seeds reported and replayed")


def _same_but(runs: Sequence[Exchange], *names: str) -> dict[str, Any]:
    """The requests are equal in all but job_id and these fields."""
    ignored = {"job_id", *names}
    sent = [{k: v for k, v in request(run).items() if k not in ignored} for run in runs]
    need(all(one == sent[0] for one in sent), f"the requests differ in more than {names}")
    return sent[0]


def _top(token: TokenEvent) -> list[tuple[int, float]]:
    rows = [(row["id"], row["logprob"]) for row in token.raw["top"]]
    values = [logprob for _, logprob in rows]
    need(values == sorted(values, reverse=True), "alternatives are not best first")
    need(math.fsum(map(math.exp, values)) <= 1 + SLACK, "the alternatives' probabilities exceed 1")
    return rows


def _greedy(observation: Observation, limits: Limits) -> Finding:
    stream = finished(exchange(observation, "greedy"))
    for index, token in enumerate(stream.tokens):
        best_id, best = _top(token)[0]
        need(token.token_id == best_id, f"token {index} is not the best of its alternatives")
        need(abs(token.raw["logprob"] - best) <= SLACK, f"token {index}: two logprobs for one id")
    top_1 = finished(exchange(observation, "top_k_1"))
    need(request(exchange(observation, "top_k_1"))["top_k"] == 1, "top_k is not 1")
    need(top_1.ids == stream.ids, "top_k = 1 at T = 2 differs from greedy")
    return passed(f"{len(stream.tokens)} greedy tokens, each the best; top_k = 1 agrees")


def _top_k(observation: Observation, limits: Limits) -> Finding:
    def rule(token: TokenEvent, sent: Mapping[str, Any]) -> bool:
        rows = _top(token)
        return bool(token.raw["logprob"] >= rows[sent["top_k"] - 1][1] - SLACK)

    return _every_token(observation, "top_k", rule)


def _top_p(observation: Observation, limits: Limits) -> Finding:
    def rule(token: TokenEvent, sent: Mapping[str, Any]) -> bool:
        better = [p for id_, p in _top(token) if id_ != token.token_id]
        mass = math.fsum(math.exp(p) for p in better if p > token.raw["logprob"] + SLACK)
        return bool(mass < sent["top_p"] + SLACK)

    return _every_token(observation, "top_p", rule)


def _min_p(observation: Observation, limits: Limits) -> Finding:
    def rule(token: TokenEvent, sent: Mapping[str, Any]) -> bool:
        bound = _top(token)[0][1] + math.log(sent["min_p"])
        return bool(token.raw["logprob"] >= bound - SLACK)

    return _every_token(observation, "min_p", rule)


def _every_token(observation: Observation, name: str, rule: Any) -> Finding:
    """`rule` holds for each token of the limited runs, and not for all of the free runs."""
    limited, free = exchanges(observation, "limited"), exchanges(observation, "free")
    _same_but([*limited, *free], "seed", name)
    need(request(limited[0])["temperature"] == 1.0, "the rule is about T = 1")
    value = request(limited[0])[name]
    tokens = [(token, request(run)) for run in limited for token in finished(run).tokens]
    for token, sent in tokens:
        need(rule(token, sent), f"{name} = {sent[name]}: token {token.token_id} is outside")
    outside = [t for run in free for t in finished(run).tokens if not rule(t, {name: value})]
    need(bool(outside), f"without {name} no token lies outside either: nothing was shown")
    return passed(f"{len(tokens)} tokens within {name} = {value}; {len(outside)} outside without")


def _penalty(observation: Observation, limits: Limits) -> Finding:
    free, fined = exchange(observation, "free"), exchange(observation, "penalized")
    _same_but([free, fined], "repetition_penalty")
    need(request(fined)["repetition_penalty"] > 1, "no penalty was asked for")
    share = {n: _distinct(finished(run).ids) for n, run in (("free", free), ("fined", fined))}
    need(
        share["fined"] > share["free"],
        f"distinct tokens {share['free']:.2f} without, {share['fined']:.2f} with the penalty",
    )
    return passed(f"distinct tokens {share['free']:.2f} → {share['fined']:.2f}", **share)


def _distinct(ids: Sequence[int]) -> float:
    return len(set(ids)) / len(ids) if ids else 0.0


def _stop(observation: Observation, limits: Limits) -> Finding:
    whole = finished(exchange(observation, "whole")).text
    stopped = exchanges(observation, "stopped")
    for run in stopped:
        stops = request(run)["stop"]
        stream = finished(run, reason="stop_sequence")
        at = min(whole.find(stop) for stop in stops if stop in whole)
        need(
            stream.text == whole[:at],
            f"stop {stops}: got {stream.text!r:.80}, wanted {whole[:at]!r:.80}",
        )
    return passed(f"{len(stopped)} stop sequences cut exactly")


def _distribution(observation: Observation, limits: Limits) -> Finding:
    """First tokens over many seeds against softmax(logprob / T) over the top k, by χ²."""
    runs = exchanges(observation, "runs")
    sent = _same_but(runs, "seed")
    need(len({request(run)["seed"] for run in runs}) == len(runs) >= 150, "wanted 150 seeds")
    drawn: Counter[int] = Counter()
    tops = set()
    for run in runs:
        token = finished(run).tokens[0]
        tops.add(tuple(_top(token)))
        drawn[token.token_id] += 1
    need(len(tops) == 1, "the same prompt gave different first-token logprobs")
    rows = dict(tops.pop())
    need(len(rows) == sent["top_k"], f"{len(rows)} alternatives, wanted top_k = {sent['top_k']}")
    strange = [id_ for id_ in drawn if id_ not in rows]
    need(not strange, f"token {strange[:1]} is outside the top {sent['top_k']}")
    weights = {id_: math.exp(p / sent["temperature"]) for id_, p in rows.items()}
    total = math.fsum(weights.values())
    expected = {id_: len(runs) * w / total for id_, w in weights.items()}
    p_value = chi_square_p(*_pooled(drawn, expected))
    bound = limit(limits, "p_value")
    need(p_value >= bound, f"drawn tokens do not fit the distribution: p = {p_value:.2g} < {bound}")
    return passed(f"{len(runs)} draws fit softmax(logits / T): p = {p_value:.3g}", p_value=p_value)


def _pooled(
    drawn: Mapping[int, int], expected: Mapping[int, float]
) -> tuple[list[float], list[float]]:
    """Observed and expected counts, cells below 5 expected pooled into one."""
    big = [id_ for id_, n in expected.items() if n >= 5]
    small = [id_ for id_, n in expected.items() if n < 5]
    seen = [float(drawn.get(id_, 0)) for id_ in big]
    wanted = [expected[id_] for id_ in big]
    if small:
        seen.append(float(sum(drawn.get(id_, 0) for id_ in small)))
        wanted.append(math.fsum(expected[id_] for id_ in small))
    return seen, wanted


def chi_square_p(seen: Sequence[float], wanted: Sequence[float]) -> float:
    """The p-value of Pearson's χ² (Wilson–Hilferty's normal approximation)."""
    need(len(seen) >= 3, "fewer than three outcomes are likely: nothing can be told")
    degrees = len(seen) - 1
    statistic = math.fsum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True))
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


def _kv_grows(observation: Observation, limits: Limits) -> Finding:
    runs = exchanges(observation, "runs")
    sizes = []
    for run in runs:
        stream = finished(run)
        positions = (stream.started or {})["prompt_tokens"] + len(stream.tokens)
        need(stream.metrics is not None, "no metrics event")
        sizes.append((positions, (stream.metrics or {})["kv_cache_bytes"]))
    sizes.sort()
    need(sizes[0][0] * 4 < sizes[-1][0], "the jobs are of nearly the same length")
    values = [size for _, size in sizes]
    need(values[0] > 0, "a job with no KV cache")
    need(values == sorted(values) and values[-1] > values[0], f"KV does not grow: {sizes}")
    before, after = (body(exchange(observation, n)) for n in ("before", "after"))
    waited_s = (exchange(observation, "after").sent_ns - max(r.closed_ns or 0 for r in runs)) / 1e9
    need(waited_s <= limit(limits, "free_s"), f"memory was looked at only after {waited_s:.1f} s")
    grown = after["vram_bytes_used"] - before["vram_bytes_used"]
    need(grown <= values[0], f"{grown} bytes are not back after the jobs")
    return passed(f"KV from {values[0]} to {values[-1]} bytes, {grown} left after", sizes=sizes)


def _kv_budget(observation: Observation, limits: Limits) -> Finding:
    budget = fact(observation, "budget_bytes")
    fitting = finished(exchange(observation, "fitting"))
    used = (fitting.metrics or {}).get("kv_cache_bytes", 0)
    need(0 < used <= budget, f"{used} bytes of KV in a budget of {budget}")
    stream = failed(exchange(observation, "exceeding"), "VRAM_OOM")
    finished(exchange(observation, "afterwards"))
    return passed(f"a budget of {budget} bytes holds; beyond it: {(stream.error or {})['message']}")


@judge
def judge_reproducible(observation: Observation, limits: Limits) -> Finding:
    """Greedy requests, twice and after a restart: the same tokens, request by request."""
    first, second, restarted = (
        exchanges(observation, name) for name in ("first", "second", "restarted")
    )
    need(len(first) == len(second) == len(restarted) >= 3, "wanted at least three requests")
    pids = fact(observation, "pids")
    need(len(pids) == 2 and pids[0] != pids[1], f"the engine was not restarted: PIDs {pids}")
    tokens = 0
    for runs in zip(first, second, restarted, strict=True):
        need(request(runs[0])["temperature"] == 0.0, "the request is not greedy")
        tokens += len(identical(runs, "greedy request"))
    return passed(f"{len(first)} requests, {tokens} tokens: the same twice and after a restart")


JUDGES: Final[Mapping[str, Judge]] = {
    "G1-RNG": by_test(
        {
            "test_same_seed": _same_seed,
            "test_other_seeds": _other_seeds,
            "test_omitted_seed": _omitted_seed,
        }
    ),
    "G1-SAMPLING": by_test(
        {
            "test_greedy": _greedy,
            "test_top_k": _top_k,
            "test_top_p": _top_p,
            "test_min_p": _min_p,
            "test_repetition_penalty": _penalty,
            "test_stop_sequences": _stop,
            "test_distribution": _distribution,
        }
    ),
    "G1-KV": by_test({"test_kv_grows": _kv_grows, "test_kv_budget": _kv_budget}),
    "G2-REPRODUCIBLE": judge_reproducible,
}
