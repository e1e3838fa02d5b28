"""A long run of one engine: re-scored requests first and last, and time between."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from harness.launch import RunningEngine
from harness.observation import Exchange, Json
from harness.rescoring import BETWEEN_S, Asker, Planned, Rescoring, as_sent


@dataclass(frozen=True)
class LongRun:
    """An engine that answered the first of a run's requests; `before` is its process as it was."""

    engine: RunningEngine
    asker: Asker
    asked: Rescoring
    first: list[Exchange]
    before: Mapping[str, Json] | None
    answered_s: float

    @classmethod
    def begun(cls, engine: RunningEngine, nonce: str) -> "LongRun":
        """Ask the first requests, one after the other."""
        asked, asker, before = Rescoring.drawn(nonce), Asker(engine.client), engine.process_facts()
        n = asked.n_first
        first = asker.paced(asked.planned[:n], asked.due_within(0.0)[:n])
        return cls(engine, asker, asked, first, before, time.monotonic())

    def ended(self) -> tuple[list[Exchange], dict[str, Exchange]]:
        """All requests' answers, and those to the tail by what it names: a place, or a request.

        What is left of BETWEEN_S passes between these requests, at gaps as clients leave them.
        """
        passed_s = time.monotonic() - self.answered_s
        due_s = self.asked.due_within(BETWEEN_S - passed_s)
        planned, done, n = self.asked.planned, len(self.first), len(self.asked.requests)
        jobs = [*self.first, *self.asker.paced(planned[done:], due_s[done - 1 : n])]
        tail = [
            one if isinstance(one, Planned) else _again(planned[one], jobs[one])
            for one in self.asked.tail
        ]
        late = self.asker.paced(tail, due_s[n - 1 :])
        return jobs, dict(zip(map(str, self.asked.tail), late, strict=True))


def _again(planned: Planned, job: Exchange) -> Planned:
    """The request of this job once more, as it was sent."""
    return Planned("" if planned.kind == "ids" else planned.kind, as_sent(planned.request, job))
