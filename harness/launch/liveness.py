"""Whether a launched engine is still there, asked so that a dying one cannot pass for alive."""

import time
from typing import Final

from harness.launch import RunningEngine
from harness.transport import TransportLimits

PATIENCE_S: Final = 10.0
POLL_S: Final = 0.05
ONE_ANSWER: Final = TransportLimits(total_s=PATIENCE_S, wire_bytes=1 << 20)


def is_there(engine: RunningEngine) -> bool:
    """Whether it runs and answers HTTP, with whatever status, within `PATIENCE_S`.

    A process that ends closes its connections before the system counts it as gone, so a client may
    see the end of its answer first; only an answer shows that the engine is not on its way out.
    """
    deadline = time.monotonic() + PATIENCE_S
    while engine.alive() and time.monotonic() < deadline:
        if engine.client.raw("GET", "/health", limits=ONE_ANSWER).status is not None:
            return True
        time.sleep(POLL_S)
    return False
