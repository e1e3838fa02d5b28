"""What a report says, taken from a bundle: plain values for the templates, nothing rendered yet."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.assurance import Assurance
from harness.bundle_reader import BundleReader
from harness.excerpt import Excerpt, excerpt_of
from harness.keys import EPHEMERAL
from harness.models import known_by_digest
from harness.observation import Json, Observation, Verdict
from harness.report_annex import calibration_view, calibrations_used, shipped_qualification
from harness.transcript import Recorded

TESTS_SHOWN = 12
EVIDENCE_SHOWN = 2
HAIKU = "G4-HAIKU"
ODD_FIELDS = ("nodeid", "attempt", "outcome", "message")

VERDICT_WORDS = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.ERROR: "error",
    Verdict.NOT_RUN: "not run",
    Verdict.WAIVED: "waived",
    Verdict.NOT_APPLICABLE: "not applicable",
}
"""Every verdict in the order reports show them."""

ASSURANCE_TEXTS = {
    Assurance.PROVEN: "follows from bytes and times the harness recorded; verify recomputes it",
    Assurance.SUPPORTED: "a statistical judgement, with error rates",
    Assurance.SELF_REPORTED: "rests on what the engine under test says about itself",
}

PLOT_TITLES = {
    "plots/latency.svg": "Latency of all streams (cumulative)",
    "plots/memory.svg": "Resident memory",
    "plots/cpu.svg": "Processor use",
    "plots/gpu-memory.svg": "GPU memory",
    "plots/gpu-power.svg": "GPU power",
    "plots/gpu-utilisation.svg": "GPU utilisation",
}


@dataclass(frozen=True)
class TestView:
    """One required test of a check, with excerpts of its evidence."""

    __test__ = False

    test: str
    verdict: str
    message: str
    attempts: int
    numbers: Mapping[str, Json]
    evidence: tuple[Excerpt, ...]


@dataclass(frozen=True)
class CheckView:
    """One row of the checklist."""

    id: str
    gate: int
    text: str
    verdict: str
    message: str
    assurance: str
    requirements: tuple[str, ...]
    limits: Mapping[str, Mapping[str, float]]
    tests: tuple[TestView, ...]
    tests_left_out: int


@dataclass(frozen=True)
class Poem:
    """A haiku as it was answered, with what was asked."""

    attempt: int
    asked: str
    answered: str
    facts: Mapping[str, Json]


def _shown(tests: list[Any]) -> list[Any]:
    """The tests worth showing first: the verdict's own reasons before the passes."""
    rank = {verdict.value: -place for place, verdict in enumerate(Verdict)}
    return sorted(tests, key=lambda test: rank.get(test["verdict"], 0))[:TESTS_SHOWN]


def _test_view(test: Mapping[str, Any], recorded: Mapping[str, Recorded]) -> TestView:
    known = [path for path in test["evidence"] if path in recorded]
    return TestView(
        test=test["test"],
        verdict=test["verdict"],
        message=test["message"],
        attempts=test["attempts"],
        numbers=test["numbers"],
        evidence=tuple(excerpt_of(recorded[path]) for path in known[:EVIDENCE_SHOWN]),
    )


def check_views(bundle: BundleReader, recorded: Mapping[str, Recorded]) -> tuple[CheckView, ...]:
    """The checklist's rows, in its order."""
    return tuple(
        CheckView(
            id=check["id"],
            gate=check["gate"],
            text=check["text"],
            verdict=check["verdict"],
            message=check["message"],
            assurance=check["assurance"],
            requirements=tuple(check["requirements"]),
            limits=check["limits"],
            tests=tuple(_test_view(test, recorded) for test in _shown(check["tests"])),
            tests_left_out=max(0, len(check["tests"]) - TESTS_SHOWN),
        )
        for check in bundle.checks["checks"]
    )


def caveats(bundle: BundleReader, checks: Iterable[CheckView]) -> list[str]:
    """What this report does not establish, each a sentence."""
    counts = Counter(check.verdict for check in checks)
    judging = bundle.metadata.get("judging") or {}
    engine = bundle.metadata.get("engine") or {}
    generated = [
        str(m.get("name")) for m in bundle.metadata.get("models") or () if m.get("generated")
    ]
    unknown = [
        str(m.get("name"))
        for m in bundle.metadata.get("models") or ()
        if m.get("sha256") and known_by_digest(str(m["sha256"])) is None
    ]
    companions = [str(name) for name in bundle.metadata.get("companions") or ()]
    said = {
        "It is no M0 certificate: the three reference models were not run on a CUDA GPU.": (
            bundle.checks["profile"] != "m0"
        ),
        f"The weights of {', '.join(generated)} were generated, random numbers: nothing here is"
        " about a published model.": bool(generated),
        f"No model that haikugate knows has the SHA-256 of {', '.join(unknown)}: only that digest"
        " says what it is, not its name.": bool(unknown),
        f"{counts['not_run']} applicable checks were not run; nothing is known about them.": (
            counts["not_run"] > 0
        ),
        f"{counts['not_applicable']} checks do not apply in this profile, launcher or engine kind;"
        " they count neither way.": counts["not_applicable"] > 0,
        "Who made it is unknown: the key was made for this run. The signature shows that nothing"
        " changed since, not who signed.": bundle.metadata["signer"]["kind"] == EPHEMERAL,
        "The engine was attached by address: nothing about its process or memory is proven.": (
            judging.get("launcher") == "attach"
        ),
        f"Gates {judging.get('lower_gates')} are certified by other bundles, not here.": bool(
            judging.get("lower_gates")
        ),
        "The engine ran unsealed: it could have reached the network.": (
            engine.get("sealed") is not True
        ),
        "Another API shows behaviour only: what needs the native API is not judged.": (
            judging.get("engine_kind") != "native"
        ),
        f"Code of others ran in the harness's process, {', '.join(companions)}: what it changed"
        " there is in no record.": bool(companions),
        "Checks labelled self-reported rest on the engine's own words.": True,
        "Someone who controls both the machine and the signing key can make any report: replay it"
        " (haikugate verify --replay), or run it with a nonce of your own.": True,
        "The engine's digest, the environment and the machine's facts are what the run recorded;"
        " nothing in the bundle proves them.": True,
        "Other hardware, drivers, models and versions may behave otherwise.": True,
    }
    return [sentence for sentence, applies in said.items() if applies]


def _text_of(observation: Observation) -> Iterable[Poem]:
    for name in sorted(observation.exchanges):
        for exchange in observation.exchanges[name]:
            shown = excerpt_of(Recorded("", "", Observation("", "", 1, {name: (exchange,)})))
            group = shown.groups[0]
            if group.text:
                facts = {key: observation.facts[key] for key in sorted(observation.facts)}
                yield Poem(observation.attempt, group.prompt, group.text, facts)


def poems(recorded: Iterable[Recorded]) -> list[Poem]:
    """The haiku check's answers, by attempt; repeats for its seed are shown once."""
    found: dict[tuple[int, str, str], Poem] = {}
    for seen in recorded:
        if seen.observation.check == HAIKU:
            for poem in _text_of(seen.observation):
                found.setdefault((poem.attempt, poem.asked, poem.answered), poem)
    return sorted(found.values(), key=lambda poem: poem.attempt)[:6]


def trace_rows(bundle: BundleReader, checks: Iterable[CheckView]) -> list[Mapping[str, Any]]:
    """The traceability matrix: each requirement with its checks and their verdicts."""
    verdicts = {check.id: check.verdict for check in checks}
    return [
        {
            "id": row["id"],
            "text": row["text"],
            "checks": [(check, verdicts.get(check, "")) for check in row["checks"]],
        }
        for row in bundle.trace.get("requirements", [])
    ]


def attempt_rows(bundle: BundleReader) -> dict[str, Any]:
    """The ledger in short: outcomes counted, and every attempt that did not simply pass."""
    records = [record for record in bundle.attempts() if record.get("event") == "finished"]
    odd = [r for r in records if r.get("outcome") != "passed" or r.get("attempt", 1) != 1]
    outcomes = Counter(str(record.get("outcome")) for record in records)
    return {
        "outcomes": sorted(outcomes.items()),
        "odd": [{name: record.get(name, "") for name in ODD_FIELDS} for record in odd[:200]],
        "odd_left_out": max(0, len(odd) - 200),
        "roots": sorted(bundle_roots(bundle).items()),
    }


def bundle_roots(bundle: BundleReader) -> dict[str, tuple[int, str]]:
    """Each worker's chain: its number of records and its last digest."""
    roots: dict[str, tuple[int, str]] = {}
    for entry in bundle.ledger:
        roots[entry.worker] = (entry.seq + 1, entry.digest)
    return roots


def report_view(bundle: BundleReader) -> dict[str, Any]:
    """Everything the templates show; the same bundle gives the same values."""
    recorded = {seen.path: seen for seen in bundle.recorded()}
    checks = check_views(bundle, recorded)
    counts = Counter(check.verdict for check in checks)
    return {
        "run_id": bundle.run_id,
        "summary": bundle.checks,
        "metadata": bundle.metadata,
        "environment": bundle.environment,
        "ephemeral": bundle.metadata["signer"]["kind"] == EPHEMERAL,
        "counts": [(v.value, words, counts[v.value]) for v, words in VERDICT_WORDS.items()],
        "total": len(checks),
        "caveats": caveats(bundle, checks),
        "gates": [
            (gate, [check for check in checks if check.gate == gate])
            for gate in sorted({check.gate for check in checks})
        ],
        "assurance": _assurance(checks),
        "poems": poems(recorded.values()),
        "trace": trace_rows(bundle, checks),
        "attempts": attempt_rows(bundle),
        "timings": bundle.timings,
        "plots": [(path, text) for path, text in PLOT_TITLES.items() if bundle.has(path)],
        "qualification": shipped_qualification(),
        "calibration": calibration_view(),
        "calibrations_used": calibrations_used(bundle.checks),
    }


def _assurance(checks: Iterable[CheckView]) -> list[tuple[str, str, list[str]]]:
    passed = [check for check in checks if check.verdict == Verdict.PASS]
    return [
        (label.value, text, [check.id for check in passed if check.assurance == label.value])
        for label, text in ASSURANCE_TEXTS.items()
    ]
