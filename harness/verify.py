"""`haikugate verify`: ten steps over a bundle, offline, trusting nothing its producer concluded."""

from collections.abc import Sequence
from pathlib import Path

from harness.bundle_reader import BundleReader
from harness.verification import Case, Status, Step, Taken, Verification, VerifyOptions, take
from harness.verify_claims import CLAIM_STEPS
from harness.verify_files import FILE_STEPS


def verify_bundle(path: Path, options: VerifyOptions | None = None) -> Verification:
    """Verify a bundle; raises BundleError only if there is no such folder."""
    case = Case(BundleReader(path), options or VerifyOptions())
    if case.bundle.incomplete:
        message = "the run did not finish: the bundle is not sealed and proves nothing"
        unsealed = Taken(1, "signature", Status.FAILS, f"INCOMPLETE: {message}")
        return Verification("INCOMPLETE", "no verdict", (unsealed,))
    taken = [take(step, case) for step in FILE_STEPS]
    broken = [str(step.number) for step in taken if step.status == Status.FAILS]
    taken += _claims(CLAIM_STEPS, case, broken)
    identity, verdict = _identity(case, taken[0]), _verdict(case, broken)
    return Verification(identity, verdict, tuple(taken), case.options.replay is not None)


def _claims(steps: Sequence[Step], case: Case, broken: list[str]) -> list[Taken]:
    """The steps that read content; they mean nothing while files or signatures do not hold."""
    if not broken:
        return [take(step, case) for step in steps]
    reason = f"step {', '.join(broken)} fails"
    return [Taken(step.number, step.name, Status.NOT_CHECKED, reason) for step in steps]


def _identity(case: Case, signature: Taken) -> str:
    if signature.status == Status.FAILS:
        return "NOT SIGNED: the signature does not hold"
    if case.options.public_key is not None:
        return f"signed by the trusted key {case.options.public_key.key_id}"
    return (
        "INTEGRITY ONLY, identity unknown: anyone can re-make and re-sign such a bundle;"
        " give --public-key of a signer you trust"
    )


def _verdict(case: Case, broken: list[str]) -> str:
    if broken:
        return "no verdict: the evidence does not hold"
    checks = case.bundle.checks
    return f"the bundle says: {checks.get('verdict_line')} ({checks.get('title')})"
