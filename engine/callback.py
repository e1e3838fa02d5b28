"""The ready callback: one POST to whoever started this worker."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_ATTEMPTS = 3
_TIMEOUT_S = 5.0
_PAUSE_S = 0.5


def is_callback_url(url: str) -> bool:
    """Whether the URL is absolute http or https."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def announce_ready(url: str, ready: dict[str, Any]) -> str | None:
    """POST `ready` as JSON, up to three times; None when delivered, else what went wrong."""
    body = json.dumps(ready).encode()
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked with the options
        url, data=body, headers={"content-type": "application/json"}, method="POST"
    )
    problem = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                return None
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__} after {attempt + 1} attempts"
    return problem
