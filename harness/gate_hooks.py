"""The hooks of a gate run, registered only when a gate or an area is asked for."""

from collections.abc import Generator
from typing import Any

import pytest

from harness.asked import asked_for
from harness.checklist import load_checklists
from harness.companions import companions
from harness.errors import HaikugateError, UsageError
from harness.evidence import BundleWriter
from harness.gates import ATTEMPT_VERDICTS
from harness.keys import Signer
from harness.observation import Verdict
from harness.options import proof_dir, session_from, signer_of, with_trusted_files
from harness.session import GateSession, assertions_off
from harness.stash import COLLECTED, SESSION
from harness.termination import Terminated, end_orderly_on_sigterm
from harness.trace import Collected
from harness.visible import one_line
from harness.worker_cores import keep_to_own_cores

INTERRUPTED = 130
PROPERTY = "haikugate_findings"
"""A report's user property: what the judges found, for a live display."""


def register_if_asked(config: pytest.Config) -> None:
    """Register a run's hooks where `-m` asks for a gate or an area."""
    try:
        asked = asked_for(config.option.markexpr, load_checklists())
        if asked is not None:
            _refuse_without_assertions(config)
            session = config.stash[SESSION] = session_from(config, asked)
            config.pluginmanager.register(_hooks(config, session), "haikugate-gate")
            config.add_cleanup(end_orderly_on_sigterm())
    except HaikugateError as error:
        _exit(error)


def _exit(error: HaikugateError) -> None:
    pytest.exit(f"haikugate: {one_line(error)}", returncode=error.exit_code)


def _refuse_without_assertions(config: pytest.Config) -> None:
    blocked = config.pluginmanager.is_blocked("assertion")
    if blocked or assertions_off() or config.getoption("assertmode", "rewrite") != "rewrite":
        raise UsageError("a gate run needs assertions: leave out -O, -p no:assertion, --assert")


def _hooks(config: pytest.Config, session: GateSession) -> "WorkerHooks":
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return ControllerHooks(config, session)
    shared = worker["haikugate"]
    session.bundle = proof_dir(config) / shared["run_id"]
    session.nonce = type(session.nonce)(shared["nonce"])
    session.context = _shared_context(session, shared)
    session.worker = worker["workerid"]
    keep_to_own_cores(session.under_test.options.worker, int(worker["workercount"]))
    return WorkerHooks(config, session)


def _shared_context(session: GateSession, shared: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(session.context, lower_gates=frozenset(shared["lower_gates"]))


class WorkerHooks:
    """What every process of a run does that collects and runs tests."""

    def __init__(self, config: pytest.Config, session: GateSession) -> None:
        self.config = config
        self.session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.session.errors.append(f"collection error: {report.nodeid or 'the command line'}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        before = list(items)
        yield
        gate_tests = [i.stash[COLLECTED] for i in before if COLLECTED in i.stash]
        self.session.collected(gate_tests)
        outside = [i for i in items if COLLECTED in i.stash and not self._wanted(i)]
        if outside:
            config.hook.pytest_deselected(items=outside)
            items[:] = [item for item in items if item not in outside]

    def _wanted(self, item: pytest.Item) -> bool:
        return self.session.wanted(item.stash[COLLECTED])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        collected = item.stash.get(COLLECTED, None)
        if collected is not None:
            self.session.started(collected)
            self._require_engine(item)
        yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """The test in which the engine died is an error, whatever it observed before."""
        try:
            if COLLECTED in item.stash:
                self._require_engine(item)
        finally:
            yield

    def _require_engine(self, item: pytest.Item) -> None:
        if "engine" in getattr(item, "fixturenames", ()):
            self.session.require_main_engine()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        collected = item.stash.get(COLLECTED, None)
        if collected is not None:
            outcome, message = _outcome(item, call)
            if outcome != "passed":
                self.session.phase(collected, outcome, message)
            if call.when == "call" and report.passed:
                self._show_findings(collected, report)
            if call.when == "teardown":
                self.session.finished(collected)
                report.user_properties.append((PROPERTY, self._shown(collected)))
        return report

    def _shown(self, collected: Collected) -> dict[str, list[list[str]]]:
        """What a live display needs: by check, verdicts and messages; `error` for a broken test."""
        outcome, message = self.session.outcomes.get(collected.nodeid, ("passed", ""))
        if outcome != "passed":
            verdict = ATTEMPT_VERDICTS.get(outcome, Verdict.ERROR)
            return {id_: [[verdict.value, message]] for id_ in collected.checks}
        shown: dict[str, list[list[str]]] = {}
        for id_, finding in self.session.findings.get(collected.nodeid, []):
            verdict, message = finding.verdict, finding.message
            if self.session.only_reported(id_):
                verdict, message = Verdict.NOT_APPLICABLE, f"reported, not judged: {message}"
            shown.setdefault(id_, []).append([verdict.value, message])
        return shown

    def _show_findings(self, collected: Collected, report: pytest.TestReport) -> None:
        """A test whose judged observation fails is shown as failed; the ledger says it ran."""
        findings = self.session.findings.get(collected.nodeid, [])
        found = [(id_, f) for id_, f in findings if not self.session.only_reported(id_)]
        lines = [f"{id_}: {f.verdict}: {f.message}" for id_, f in found if f.verdict != "pass"]
        passed = {id_ for id_, f in found if f.verdict == "pass"}
        if not passed >= {id_ for id_, _ in found}:
            report.outcome = "failed"
            report.longrepr = "\n".join(lines)

    def finish(self, session: pytest.Session) -> None:
        """A worker's part ends; the controller judges."""
        self.session.close()


def _outcome(item: pytest.Item, call: pytest.CallInfo[None]) -> tuple[str, str]:
    """The outcome of one phase from the exception itself, whatever the report says of it."""
    xfail = item.get_closest_marker("xfail") is not None
    if call.excinfo is None:
        marked = xfail and call.when == "call"
        return ("xpassed", "marked xfail") if marked else ("passed", "")
    message = call.excinfo.exconly(tryshort=True).strip().splitlines()[-1:]
    if isinstance(call.excinfo.value, pytest.skip.Exception):
        return "skipped", "".join(message)
    if xfail or isinstance(call.excinfo.value, pytest.xfail.Exception):
        return "xfailed", "".join(message)
    return "failed", "".join(message)


class ControllerHooks(WorkerHooks):
    """What the only process of a run does besides, or xdist's controller: create, judge, seal."""

    def __init__(self, config: pytest.Config, session: GateSession) -> None:
        super().__init__(config, session)
        self.signer: Signer = signer_of(config)
        session.worker = "controller" if _distributed(config) else "main"
        session.context = with_trusted_files(config, session, self.signer.public.key_id)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        try:
            self._hold_gpus()
            self._require_memory()
            self.session.bundle = BundleWriter.create(proof_dir(self.config)).path
            self.session.record("nonce_committed", sha256=self.session.nonce.commitment)
        except HaikugateError as error:
            _exit(error)

    def _hold_gpus(self) -> None:
        if self.session.context.profile != "cpu":
            from harness.gpu_lock import lock_gpus

            self.config.add_cleanup(lock_gpus(self.session.under_test.options.gpus or ("0",)).close)

    def _require_memory(self) -> None:
        """On the CPU every worker's engine has the weights in this machine's memory."""
        under_test, workers = self.session.under_test, self.config.getoption("numprocesses", None)
        if not workers or self.session.context.profile != "cpu" or under_test.options.url:
            return
        import psutil

        from harness.worker_memory import require_memory

        try:
            model_bytes = under_test.model_path.stat().st_size
        except HaikugateError:
            return  # without the model nothing is launched, and the launch says so
        require_memory(int(workers), model_bytes, psutil.virtual_memory().available)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        assert self.session.bundle is not None
        node.workerinput["haikugate"] = {
            "run_id": self.session.bundle.name,
            "nonce": self.session.nonce.value,
            "lower_gates": sorted(self.session.context.lower_gates),
        }

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        if error:
            self.session.blockers.append(f"worker {node.gateway.id} crashed")
            self.session.record("crashed", crashed=node.gateway.id, message=str(error))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.Session.Interrupted):
            return  # pytest's way to stop after an error of collection
        self.session.interrupted = True
        self.session.terminated = isinstance(excinfo.value, Terminated)
        self.session.blockers.append("the run was interrupted")
        self.session.record("interrupted", message=excinfo.exconly(tryshort=True))

    def pytest_internalerror(self, excrepr: object) -> None:
        self.session.blockers.append("pytest met an internal error")

    def finish(self, session: pytest.Session) -> None:
        """Judge, seal, print, and set the exit status."""
        if self.session.bundle is None:
            return
        if self.session.terminated:
            self.session.close()
            self._write(f"\nhaikugate: ended by SIGTERM; INCOMPLETE: {self.session.bundle}\n")
            session.exitstatus = INTERRUPTED
            return
        from harness.finish import finish

        self.session.companions = companions(self.config.pluginmanager.get_plugins())
        if _distributed(self.config):
            self.session.collected(())
        try:
            verdicts = finish(self.session, self.signer)
        except Exception as error:  # whatever went wrong, the run must end without a verdict
            self._write(f"\nhaikugate: harness error: {type(error).__name__}: {error}\n")
            session.exitstatus = HaikugateError.exit_code
            return
        from harness.summary import render_summary

        width, color = self._terminal()
        self._write(render_summary(verdicts, width=width, color=color))
        session.exitstatus = 0 if verdicts.gate.holds else 1
        if self.session.interrupted:
            session.exitstatus = INTERRUPTED

    def _terminal(self) -> tuple[int, bool]:
        if self.config.pluginmanager.get_plugin("terminalreporter") is None:
            return 100, False
        writer = self.config.get_terminal_writer()
        return max(80, writer.fullwidth), bool(writer.hasmarkup)

    def _write(self, text: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write(text)
        else:
            print(text)


def _distributed(config: pytest.Config) -> bool:
    return bool(config.getoption("dist", "no") != "no")
