"""Measures how often the black-box checks alarm: many runs of their tests against one engine.

python -m tests.alarm_rate --runs 50 [--saboteur NAME] [--stress 2] [CHECK ...] launches the honest
engine, or a saboteur, once; each run has a nonce of its own, is judged by the check's judge with
the limits of profile cpu, and adds a line of JSON. `--stress N` keeps N busy loops beside it.
`--resampled N` judges N more runs of a timed check, each made of pairs drawn with replacement from
all that were really recorded: pairs stay together, so the noise of their moment does too.
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from harness.gates import JudgeContext, judge_observation
from harness.launch import LaunchSpec
from harness.launch.process import ProcessLauncher
from harness.models import resolve
from harness.observation import Observation
from tests.probe_run import busy_loops, check_of, command, observed, observers_of

CONTEXT = JudgeContext(profile="cpu")
TIMED = ("G4-GENUINE-CACHE", "G4-GENUINE-COALESCE", "G4-GENUINE-SHAPE")


def resampled(recorded: Sequence[Observation], draw: random.Random) -> Observation:
    """One more run: as many pairs of groups as a run has, drawn from all runs."""
    base = recorded[0]
    size = int(base.facts.get("group_size", 1))
    names = [name for name, seen in base.exchanges.items() if len(seen) >= 2 * size]
    n_pairs = min(len(base.exchanges[name]) for name in names) // size
    picks = [(draw.choice(recorded), draw.randrange(n_pairs)) for _ in range(n_pairs)]
    pairs = {
        name: tuple(
            one for seen, at in picks for one in seen.exchanges[name][at * size : (at + 1) * size]
        )
        for name in names
        if len(base.exchanges[name]) == n_pairs * size
    }
    return replace(base, exchanges={**draw.choice(recorded).exchanges, **pairs})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checks", nargs="*", default=TIMED)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--saboteur", default="")
    parser.add_argument("--resampled", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--stress", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    checks = [check_of(id_) for id_ in options.checks]
    threads = ("--threads", str(options.threads))
    spec = LaunchSpec(command(options.saboteur), resolve(options.model), args=threads)
    recorded: dict[str, list[Observation]] = {check.id: [] for check in checks}
    counts: dict[str, Counter[str]] = {check.id: Counter() for check in checks}
    with busy_loops(options.stress):
        engine = ProcessLauncher().launch(spec)
        try:
            for run in range(1, options.runs + 1):
                for check in checks:
                    started = time.monotonic()
                    test = observers_of([check.id])[-1]
                    seen = observed(test, [check.id], {"engine": lambda: engine})
                    recorded[check.id] += seen[check.id]
                    found = judge_observation(check, recorded[check.id][-1], CONTEXT)
                    counts[check.id][found.verdict.value] += 1
                    line = {
                        "run": run,
                        "check": check.id,
                        **counts[check.id],
                        "said": found.message[:160],
                        "numbers": dict(found.numbers),
                        "seconds": round(time.monotonic() - started, 1),
                        "load": round(os.getloadavg()[0], 1),
                    }
                    print(json.dumps(line), flush=True)
        finally:
            engine.stop()
    draw = random.Random(options.runs)
    for check in checks if options.resampled else ():
        made = [resampled(recorded[check.id], draw) for _ in range(options.resampled)]
        told = Counter(judge_observation(check, one, CONTEXT).verdict.value for one in made)
        print(json.dumps({"resampled": options.resampled, "check": check.id, **told}), flush=True)


if __name__ == "__main__":
    main()
