"""Values out of Prometheus text."""

import re

from harness.judges.rule import need, status, where
from harness.observation import Exchange


def counter(seen: Exchange, name: str) -> float:
    """The value of an unlabelled sample; Broken if /metrics has it not exactly once."""
    status(seen, 200)
    text = seen.body.decode("utf-8", errors="replace")
    found = re.findall(rf"^{re.escape(name)} ([0-9.eE+-]+)$", text, re.MULTILINE)
    need(len(found) == 1, f"{where(seen)}: {name} stands there {len(found)} times, wanted once")
    return float(found[0])
