from dataclasses import replace
from typing import Any

import pytest

from harness.asked import Asked, asked_for
from harness.checklist import Check, load_checklists
from harness.gates import JudgeContext, judge_check, judge_gate
from harness.observation import Finding, Limits, Observation, Verdict
from harness.outcome import Attempt, CheckResult, attempts_from
from harness.session import sort_arguments


def judge(observation: Observation, limits: Limits) -> Finding:
    said = Verdict(observation.facts.get("verdict", "pass"))
    return Finding(said, str(observation.facts), dict(limits))


CHECK = Check(
    id="G1-X",
    gate=1,
    text="x",
    requirements=("HG-1",),
    subject="engine",
    where=("any", "cuda"),
    launchers=("process",),
    engines=("native",),
    limits={"p95_ms": 100.0, "min_trials": 30},
    observations={"any": ("test_a", "test_b"), "cuda": ("test_gpu",)},
)
CPU = JudgeContext(profile="cpu", judges={"G1-X": judge})
GPU = replace(CPU, profile="gpu")


def seen(test: str, verdict: str = "pass", attempt: int = 1) -> Observation:
    return Observation("G1-X", test, attempt, facts={"verdict": verdict})


def tried(test: str, outcome: str = "passed", number: int = 1) -> Attempt:
    return Attempt(test, ("G1-X",), number, outcome)


def verdict_of(
    observations: list[Observation],
    attempts: list[Attempt] | None = None,
    context: JudgeContext = CPU,
    check: Check = CHECK,
) -> Verdict:
    tries = attempts if attempts is not None else [tried(o.test) for o in observations]
    return judge_check(check, observations, tries, context).verdict


def test_the_worst_required_observation_decides() -> None:
    assert verdict_of([seen("test_a"), seen("test_b")]) == "pass"
    assert verdict_of([seen("test_a"), seen("test_b", "fail")]) == "fail"
    assert verdict_of([seen("test_a", "error"), seen("test_b", "fail")]) == "fail"
    assert verdict_of([seen("test_a", "not_run"), seen("test_b", "error")]) == "error"
    assert verdict_of([seen("test_a")]) == "not_run"
    assert verdict_of([]) == "not_run"


def test_each_profile_requires_its_own_observations() -> None:
    both = [seen("test_a"), seen("test_b")]
    assert verdict_of(both, context=GPU) == "not_run"
    assert verdict_of([*both, seen("test_gpu")], context=GPU) == "pass"
    assert verdict_of([*both, seen("test_gpu", "fail")]) == "pass"


def test_a_place_without_any_required_test_is_not_run() -> None:
    check = replace(CHECK, observations={"any": ("test_a",), "cuda": ()})
    assert verdict_of([seen("test_a")], check=check) == "pass"
    assert verdict_of([seen("test_a")], check=check, context=GPU) == "not_run"
    assert verdict_of([], check=replace(CHECK, observations={})) == "not_run"


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        ("failed", "error"),
        ("unfinished", "error"),
        ("skipped", "not_run"),
        ("xfailed", "not_run"),
        ("xpassed", "not_run"),
        ("anything", "error"),
    ],
)
def test_an_attempt_that_did_not_pass_is_no_pass_whatever_was_seen(
    outcome: str, wanted: str
) -> None:
    observations = [seen("test_a"), seen("test_b")]
    attempts = [tried("test_a"), tried("test_b", outcome)]
    assert verdict_of(observations, attempts) == wanted
    again = [*attempts, tried("test_b", number=2)]
    assert verdict_of([*observations, seen("test_b", attempt=2)], again) == wanted


def test_an_observation_without_an_attempt_in_the_ledger_is_not_run() -> None:
    assert verdict_of([seen("test_a"), seen("test_b")], [tried("test_a")]) == "not_run"


def test_a_failed_attempt_stays_failed_unless_several_are_stated() -> None:
    first, second = seen("test_a", "fail"), seen("test_a", attempt=2)
    one = replace(CHECK, observations={"any": ("test_a",)})
    three = replace(one, attempts=3)
    attempts = [tried("test_a")]
    assert verdict_of([first, second], attempts, check=one) == "fail"
    assert verdict_of([first, second], attempts, check=three) == "pass"
    assert verdict_of([first], attempts, check=three) == "fail"
    four = [seen("test_a", attempt=n) for n in (1, 2, 3, 4)]
    assert verdict_of(four, attempts, check=three) == "fail"


def test_a_test_that_the_checklist_does_not_list_is_an_error() -> None:
    both = [seen("test_a"), seen("test_b")]
    assert verdict_of([*both, seen("test_new")]) == "error"


def test_a_judge_that_breaks_or_oversteps_is_an_error() -> None:
    def breaks(observation: Observation, limits: Limits) -> Finding:
        raise KeyError("absent")

    both = [seen("test_a"), seen("test_b")]
    assert verdict_of(both, context=replace(CPU, judges={"G1-X": breaks})) == "error"
    assert verdict_of(both, context=replace(CPU, judges={})) == "error"
    assert verdict_of([seen("test_a", "waived"), seen("test_b")]) == "error"
    assert verdict_of([seen("test_a", "not_applicable"), seen("test_b")]) == "error"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"launcher": "attach"}, "launcher attach"),
        ({"engine_kind": "openai"}, "engine kind openai"),
    ],
)
def test_what_cannot_be_shown_is_not_applicable(change: dict[str, Any], said: str) -> None:
    result = judge_check(CHECK, [], [], replace(CPU, **change))
    assert (result.verdict, result.message) == ("not_applicable", said)


def test_only_checks_of_the_engine_count_for_an_engine_that_is_not_ours() -> None:
    foreign = replace(CPU, ours=False)
    for subject in ("harness", "project"):
        check = replace(CHECK, subject=subject)
        assert judge_check(check, [], [], foreign).verdict == "not_applicable"
    assert judge_check(CHECK, [], [], foreign).verdict == "not_run"


def test_reported_numbers_are_attached_and_not_judged() -> None:
    check = replace(
        CHECK, where=("cuda",), reported=("any",), observations={"any": ("test_a",), "cuda": ()}
    )
    result = judge_check(check, [seen("test_a", "fail")], [tried("test_a")], CPU)
    assert result.verdict == "not_applicable"
    assert result.numbers == {"test_a": {"p95_ms": 500.0, "min_trials": 30}}


def test_both_limits_are_in_the_result() -> None:
    result = judge_check(CHECK, [], [], CPU)
    assert result.limits["p95_ms"].written == 100.0
    assert result.limits["p95_ms"].applied == 500.0
    assert result.limits["min_trials"].applied == 30


def results(*verdicts: str, gate: int = 1) -> list[CheckResult]:
    return [CheckResult(f"G{gate}-{n}", gate, Verdict(v), "") for n, v in enumerate(verdicts)]


ONE = replace(CPU, gate=1)


@pytest.mark.parametrize(
    ("verdicts", "certified"),
    [
        (("pass",), True),
        (("pass", "waived"), True),
        (("pass", "not_applicable"), True),
        (("not_applicable",), False),
        ((), False),
        (("pass", "not_run"), False),
        (("pass", "error"), False),
        (("pass", "fail"), False),
    ],
)
def test_a_gate_is_certified_only_if_all_that_is_applicable_holds(
    verdicts: tuple[str, ...], certified: bool
) -> None:
    assert judge_gate(ONE, results(*verdicts)).certified is certified


def test_a_gate_needs_those_below_it() -> None:
    two = replace(CPU, gate=2)
    upper = results("pass", gate=2)
    assert not judge_gate(two, upper).certified
    assert judge_gate(two, results("pass") + upper).certified
    assert judge_gate(replace(two, lower_gates=frozenset({1})), upper).certified


def test_a_gate_below_that_asks_nothing_stops_nobody() -> None:
    """An engine of OpenAI's API shows nothing of gate 3, and is certified for what it shows."""
    two = replace(CPU, gate=2)
    nothing, upper = results("not_applicable", "not_applicable"), results("pass", gate=2)
    assert judge_gate(two, nothing + upper).certified
    assert not judge_gate(two, results("not_applicable", "not_run") + upper).certified


def test_a_gate_of_which_nothing_is_applicable_is_no_certificate() -> None:
    two = replace(CPU, gate=2)
    result = judge_gate(two, results("pass") + results("not_applicable", gate=2))
    assert not result.certified
    assert result.blockers == ("of gate 2 nothing is applicable",)


def test_a_blocker_stops_a_certificate() -> None:
    result = judge_gate(replace(ONE, blockers=("the run was interrupted",)), results("pass"))
    assert not result.certified
    assert result.blockers == ("the run was interrupted",)


def test_the_title_says_what_is_not_claimed() -> None:
    title = judge_gate(ONE, results("pass", "waived", "not_applicable")).title
    assert title.startswith("Gate 1, profile cpu: 1 of 2 applicable checks passed. 1 checks need")
    assert "not an M0 certificate" in title
    assert "WITH WAIVERS" in title
    whole = judge_gate(ONE, results("pass", "pass", "pass")).title
    assert "not an M0 certificate" in whole
    assert "NOT run" not in whole
    m0 = judge_gate(replace(ONE, profile="m0"), results("pass")).title
    assert "not an M0" not in m0
    openai = judge_gate(replace(ONE, engine_kind="openai"), results("pass")).title
    assert "Behavioural profile" in openai


def test_the_verdict_line_counts() -> None:
    line = judge_gate(ONE, results("pass", "not_run", "fail")).verdict_line
    assert line == "NOT CERTIFIED: 1 of 3 applicable checks passed, 1 not run, 1 fail"


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("", None),
        ("gate4", Asked(4)),
        ("gate2", Asked(2)),
        ("gate1 or gate3", Asked(3)),
        ("gate4 and utf8", Asked(4)),
        ("gate4 and not utf8", Asked(4)),
        ("not gate4", None),
        ("utf8", Asked(4, ("utf8",))),
        ("utf8 or oom", Asked(4, ("oom", "utf8"))),
        ("gpu", None),
        ("not gpu", None),
        ("not utf8", None),
        ("slow", None),
        ("gate4 and (", None),
    ],
)
def test_the_marker_expression_says_what_is_asked(expression: str, wanted: Asked | None) -> None:
    assert asked_for(expression, load_checklists()) == wanted


def test_attempts_are_read_from_started_and_finished() -> None:
    base = {"nodeid": "a::t", "worker": "main", "test": "t", "checks": ["G1-X"], "attempt": 1}
    records = [
        {"event": "nonce_committed"},
        {**base, "event": "started"},
        {**base, "event": "started", "attempt": 2},
        {**base, "event": "finished", "attempt": 2, "outcome": "passed"},
    ]
    assert [attempt.outcome for attempt in attempts_from(records)] == ["unfinished", "passed"]


def test_arguments_are_sorted_into_exchanges_and_facts() -> None:
    from harness.observation import Exchange

    one = Exchange("GET", "/", (), b"", 0)
    exchanges, facts = sort_arguments({"a": one, "b": [one, one], "c": 3, "d": []})
    assert exchanges == {"a": (one,), "b": (one, one)}
    assert facts == {"c": 3, "d": []}
    with pytest.raises(TypeError, match="mixes"):
        sort_arguments({"a": [one, 3]})
