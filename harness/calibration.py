"""Calibration: how far honest engines stray from the reference, and the thresholds that follow.

The file holds counts from honest runs (`haikugate calibrate` makes it), never thresholds: those are
derived here, so that a file cannot state one that its own runs do not support. The shipped file is
pinned by digest; any other one names itself in the certificate, and no file may widen a margin past
WIDEST_MARGIN_LOGITS or excuse an engine on the reference's own kind of device.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from harness.errors import BundleError, CalibrationError
from harness.observation import Json
from harness.rescore import Score
from harness.sequential import SequentialTest
from harness.significance import rate_upper_bound
from harness.strict_json import loads

SHIPPED: Final = Path(__file__).with_name("calibration.json")
SHIPPED_SHA256: Final = "0d0876f132daa4fae47246ce3f6f1d1d30ccbe762d7d05f970b981cb76d0ed31"
SCHEMA: Final = 1

SAFETY: Final = 4.0
"""A margin may be this many times the worst that honest runs showed."""

LEAST_MARGIN_LOGITS: Final = 1e-3
"""No margin is narrower: it leaves room for the rounding of float32 logits, about 1e-5."""

WIDEST_MARGIN_LOGITS: Final = 0.25
LEAST_TOKENS: Final = 2_000
CHEATING_RATE: Final = 0.005
"""The rate of deviating tokens that the sequential tests are set against."""


@dataclass(frozen=True)
class Replay:
    """One replayed request: the tokens compared up to where it parts, and whether it does."""

    kind: str
    tokens: int
    parted: bool


@dataclass(frozen=True)
class Evidence:
    """What re-scoring saw of one run, in order: greedy tokens scored, requests replayed."""

    scores: Sequence[Score]
    replays: Sequence[Replay]
    logprob_gaps: Sequence[float]

    @property
    def worst_margin(self) -> float:
        """The farthest that a greedy token lies below the reference's choice, in logits."""
        return max((score.margin for score in self.scores), default=0.0)

    @property
    def worst_logprob_gap(self) -> float:
        """The farthest that a reported logprob is off the reference's."""
        return max(self.logprob_gaps, default=0.0)


@dataclass(frozen=True)
class Pairing:
    """Honest runs of one kind of device against a reference on another, or on the same.

    `parted` requests of all, over `compared_tokens`; `inexact` greedy tokens were not the
    reference's argmax, at most `worst_margin` logits below it.
    """

    name: str
    runs: int
    requests: int
    parted: int
    compared_tokens: int
    greedy_tokens: int
    inexact: int
    worst_margin: float
    logprob_tokens: int
    worst_logprob_gap: float

    @property
    def same_kind(self) -> bool:
        """Whether engine and reference run on one kind of device, where replays are exact."""
        engine, _, reference = self.name.partition("/")
        return engine == reference

    @property
    def margin_bound(self) -> float:
        """Logits that a greedy token may lie below the reference's choice."""
        return max(LEAST_MARGIN_LOGITS, SAFETY * self.worst_margin)

    @property
    def logprob_bound(self) -> float:
        """How far a reported logprob may be off the reference's."""
        return max(LEAST_MARGIN_LOGITS, SAFETY * self.worst_logprob_gap)

    @property
    def inexact_test(self) -> SequentialTest:
        """Of greedy tokens that are not the reference's argmax."""
        return _test(self.inexact, self.greedy_tokens)

    @property
    def parting_test(self) -> SequentialTest:
        """Of tokens at which a replay parts."""
        return _test(self.parted, self.compared_tokens)

    def objections(self, seen: Evidence) -> Iterator[str]:
        """What in the evidence no honest engine shows, by these runs."""
        if seen.worst_margin > self.margin_bound:
            yield (
                f"a greedy token lies {seen.worst_margin:.3g} logits below the reference's choice, "
                f"wanted at most {self.margin_bound:.3g}"
            )
        inexact = (score.token_id != score.argmax_id for score in seen.scores)
        if at := self.inexact_test.rejected_at(inexact):
            yield f"greedy tokens miss the reference's choice too often (clear after {at} tokens)"
        yield from self._replay_objections(seen.replays)
        if seen.worst_logprob_gap > self.logprob_bound:
            yield (
                f"a reported logprob is {seen.worst_logprob_gap:.3g} off the reference's, "
                f"wanted at most {self.logprob_bound:.3g}"
            )

    def _replay_objections(self, replays: Sequence[Replay]) -> Iterator[str]:
        parted = [replay for replay in replays if replay.parted]
        if self.same_kind and parted:
            yield (
                f"{len(parted)} of {len(replays)} requests part from the reference's replay, "
                f"the first ({parted[0].kind}) at token {parted[0].tokens}"
            )
            return
        trials = (hit for one in replays for hit in _trials(one))
        if at := self.parting_test.rejected_at(trials):
            yield f"requests part from the reference's replay too often (clear after {at} tokens)"


def _trials(replay: Replay) -> Iterator[bool]:
    yield from (False for _ in range(replay.tokens))
    if replay.parted:
        yield True


def _test(hits: int, n: int) -> SequentialTest:
    honest = rate_upper_bound(hits, n)
    return SequentialTest(honest, max(CHEATING_RATE, min(0.5, 10 * honest)))


@dataclass(frozen=True)
class Calibration:
    """A calibration file: its digest, its pairings by name, and the rates measured with it."""

    sha256: str
    pairings: Mapping[str, Pairing]
    table: Mapping[str, Json]

    @property
    def shipped(self) -> bool:
        """Whether it is the file of this installation."""
        return self.sha256 == SHIPPED_SHA256

    @property
    def label(self) -> dict[str, Json]:
        """What a finding says of it: its digest, and whether it is a custom one."""
        return {"calibration_sha256": self.sha256, "custom_calibration": not self.shipped}

    @property
    def widest_margin(self) -> float:
        """The margin that suffices whatever the two devices are."""
        return max(pairing.margin_bound for pairing in self.pairings.values())

    def pairing(self, name: str) -> Pairing:
        """The honest runs of this pairing; CalibrationError if it holds none."""
        if name not in self.pairings:
            known = ", ".join(sorted(self.pairings))
            raise CalibrationError(f"calibration: no honest runs of {name}; it holds {known}")
        return self.pairings[name]


def parse_calibration(content: bytes, place: str) -> Calibration:
    """A calibration from a file's bytes; CalibrationError names what no file may hold."""
    try:
        table = loads(content, place)
        if table["schema"] != SCHEMA:
            raise CalibrationError(f"{place}: wanted schema {SCHEMA}, got {table['schema']}")
        pairings = {name: _pairing(name, row) for name, row in table["pairings"].items()}
    except (AttributeError, BundleError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{place}: no calibration file: {error!r}") from None
    for pairing in pairings.values():
        _refuse(pairing, place)
    return Calibration(hashlib.sha256(content).hexdigest(), pairings, table)


_COUNTS = (
    *("runs", "requests", "parted", "compared_tokens"),
    *("greedy_tokens", "inexact", "logprob_tokens"),
)


def _pairing(name: str, row: Mapping[str, Json]) -> Pairing:
    counts = {field: int(row[field]) for field in _COUNTS}
    return Pairing(
        name,
        worst_margin=float(row["worst_margin"]),
        worst_logprob_gap=float(row["worst_logprob_gap"]),
        **counts,
    )


def _refuse(pairing: Pairing, place: str) -> None:
    where = f"{place}: {pairing.name}"
    if min(pairing.greedy_tokens, pairing.compared_tokens) < LEAST_TOKENS:
        raise CalibrationError(f"{where}: wanted at least {LEAST_TOKENS} tokens of honest runs")
    widest = max(pairing.margin_bound, pairing.logprob_bound)
    if not widest <= WIDEST_MARGIN_LOGITS:
        raise CalibrationError(
            f"{where}: a margin of {widest:.3g} logits, at most {WIDEST_MARGIN_LOGITS} is accepted"
        )
    if min(vars(pairing)[count] for count in _COUNTS) < 0:
        raise CalibrationError(f"{where}: a negative count")
    if pairing.same_kind and pairing.parted:
        raise CalibrationError(f"{where}: replays part on one kind of device: no honest engine's")


@lru_cache(maxsize=1)
def shipped_calibration() -> Calibration:
    """The file of this installation; CalibrationError if it is not the pinned one."""
    found = parse_calibration(SHIPPED.read_bytes(), SHIPPED.name)
    if not found.shipped:
        raise CalibrationError(f"{SHIPPED.name}: SHA-256 {found.sha256}, wanted {SHIPPED_SHA256}")
    return found


def given_calibration(path: Path) -> str:
    """The text of another calibration file; CalibrationError if it cannot be one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"--calibration {path}: {error.strerror}") from None
    parse_calibration(content, f"--calibration {path}")
    return content.decode()
