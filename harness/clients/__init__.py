"""How the harness speaks to an engine: one client an API, all through the recording transport."""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol

from harness.clients.http import Http, LiveExchange, OnEvent
from harness.errors import UsageError
from harness.observation import Exchange
from harness.transport import Endpoint, Headers, TransportLimits

__all__ = ["ClientFactory", "EngineClient", "LiveExchange", "client_named", "engine_kinds"]

ENTRY_POINTS = "haikugate.engines"


class EngineClient(Protocol):
    """One engine's API. What an engine does wrong is in the Exchange; nothing here judges it.

    Request fields are those of the engine's contract (docs/engine-api.md) whatever the API; a
    client leaves out what its API does not know. `UsageError`: this API has no such call.
    """

    kind: ClassVar[str]
    http: Http

    def is_ready(self) -> bool: ...

    def execute(self, **fields: Any) -> Exchange: ...

    def start(self, *, on_event: OnEvent | None = None, **fields: Any) -> LiveExchange: ...

    def whole(self, **fields: Any) -> Exchange: ...

    def cancel(self, job_id: str) -> Exchange: ...

    def health(self) -> Exchange: ...

    def metrics(self) -> Exchange: ...

    def tokenize(self, text: str, *, add_special: bool = False) -> Exchange: ...

    def detokenize(self, ids: Sequence[int]) -> Exchange: ...

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Exchange: ...

    def shutdown(self) -> Exchange: ...

    def raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        limits: TransportLimits | None = None,
    ) -> Exchange: ...


ClientFactory = Callable[[Endpoint], EngineClient]


def engine_kinds() -> list[str]:
    """The names of the installed clients, sorted."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)})


def client_named(kind: str) -> ClientFactory:
    """The client of this engine kind, from the entry points of the installed packages."""
    for entry in entry_points(group=ENTRY_POINTS, name=kind):
        factory: ClientFactory = entry.load()
        return factory
    raise UsageError(f"engine kind: wanted one of {', '.join(engine_kinds())}, got {kind!r}")
