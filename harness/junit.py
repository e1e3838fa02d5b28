"""junit.xml of a bundle: every attempted test with its verdicts, merged over all workers.

Derived from the ledger and checks.json: a test is a failure where any check's judge says so, and
its properties name the checks and the requirements that it answers.
"""

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError

from junitparser import Error, Failure, JUnitXml, Properties, Property, Skipped, TestCase, TestSuite

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.observation import Verdict

NS_PER_S = 1e9
RESULTS = {Verdict.FAIL: Failure, Verdict.ERROR: Error, Verdict.NOT_RUN: Skipped}
OUTCOMES = {
    "failed": Failure,
    "unfinished": Error,
    "skipped": Skipped,
    "xfailed": Skipped,
    "xpassed": Skipped,
}


@dataclass
class _Case:
    """All attempts at one test."""

    nodeid: str
    test: str = ""
    checks: Sequence[str] = ()
    duration_ns: int = 0
    results: list[Any] = field(default_factory=list)


def _attempted(bundle: BundleReader) -> Iterable[_Case]:
    cases: dict[str, _Case] = {}
    started_ns: dict[tuple[str, str], int] = {}
    for entry in bundle.ledger:
        record = entry.record
        key = (entry.worker, str(record.get("nodeid")))
        if record.get("event") == "started":
            started_ns[key] = entry.at_ns
        if record.get("event") not in ("started", "finished"):
            continue
        case = cases.setdefault(key[1], _Case(key[1]))
        case.test, case.checks = str(record["test"]), record["checks"]
        if record["event"] == "finished":
            case.duration_ns += max(0, entry.at_ns - started_ns.pop(key, entry.at_ns))
            if (kind := OUTCOMES.get(str(record.get("outcome")))) is not None:
                case.results.append(kind(_clean(record.get("message", ""))))
    for _, nodeid in started_ns:
        cases[nodeid].results.append(Error("started and never finished"))
    return cases.values()


def _clean(text: Any) -> str:
    """Text without the characters that XML cannot hold."""
    allowed = (c for c in str(text) if c in "\t\n\r" or ord(c) >= 0x20)
    return "".join(c for c in allowed if not 0xD800 <= ord(c) < 0xE000 and ord(c) < 0xFFFE)


def _judged(checks: Sequence[Mapping[str, Any]]) -> Mapping[tuple[str, str], Mapping[str, Any]]:
    return {(check["id"], test["test"]): test for check in checks for test in check["tests"]}


def _requirements(checks: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[str]]:
    return {check["id"]: check["requirements"] for check in checks}


def _test_case(
    case: _Case,
    judged: Mapping[tuple[str, str], Mapping[str, Any]],
    requirements: Mapping[str, Sequence[str]],
) -> Any:
    file, _, name = case.nodeid.partition("::")
    classname = file.removesuffix(".py").replace("/", ".")
    element: Any = TestCase(_clean(name), _clean(classname), case.duration_ns / NS_PER_S)
    properties: Any = Properties()  # type: ignore[no-untyped-call]
    for check in case.checks:
        properties.add_property(Property("check", _clean(check)))
        for requirement in requirements.get(check, ()):
            properties.add_property(Property("requirement", _clean(requirement)))
    element.append(properties)
    results = list(case.results)
    for check in case.checks:
        test = judged.get((check, case.test))
        if test is not None and (kind := RESULTS.get(Verdict(test["verdict"]))) is not None:
            results.append(kind(_clean(f"{check}: {test['message']}")))
    element.result = results
    return element


def render_junit(bundle: BundleReader) -> bytes:
    """The XML file, one suite a test file; raises BundleError where the bundle lacks it."""
    try:
        return _render(bundle)
    except (LookupError, TypeError, AttributeError, ValueError, ExpatError) as error:
        raise BundleError(f"{bundle.path.name}: cannot be reported: {error!r}") from error


def _render(bundle: BundleReader) -> bytes:
    checks = bundle.checks["checks"]
    judged, requirements = _judged(checks), _requirements(checks)
    suites: dict[str, list[Any]] = defaultdict(list)
    for case in sorted(_attempted(bundle), key=lambda case: case.nodeid):
        suites[case.nodeid.partition("::")[0]].append(_test_case(case, judged, requirements))
    xml: Any = JUnitXml("haikugate")
    for name in sorted(suites):
        suite = TestSuite(_clean(name))
        suite.add_testcases(suites[name])
        xml.add_testsuite(suite)
    xml.update_statistics()
    sink = io.BytesIO()
    xml.write(sink, pretty=True)
    return sink.getvalue()
