"""The client of an API that completes text and shows nothing else: what all of these share.

A subclass says how a request looks and where it goes; `dialects` says how judges read its routes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.clients.http import HttpClient, LiveExchange, OnEvent, json_body
from harness.errors import UsageError
from harness.observation import Exchange
from harness.transport import Headers

if TYPE_CHECKING:
    from harness.judges.completion import Dialect

Fields = Mapping[str, Any]


class BehaviouralClient(HttpClient, ABC):
    """One engine whose API streams completions; `request` is all that a subclass must write."""

    kind: ClassVar[str]
    dialects: ClassVar[Mapping[str, "Dialect"]] = {}

    @abstractmethod
    def request(self, fields: Fields, *, stream: bool) -> tuple[str, Fields]:
        """The route and the body that ask for this, in fields of the engine's contract."""

    def execute(self, *, headers: Headers = (), **fields: Any) -> Exchange:
        """One streamed completion, read to its end."""
        path, sent = self.request(fields, stream=True)
        return self.http.exchange("POST", path, json_body(sent), headers)

    def start(
        self, *, on_event: OnEvent | None = None, headers: Headers = (), **fields: Any
    ) -> LiveExchange:
        """One streamed completion in the background."""
        path, sent = self.request(fields, stream=True)
        return self.http.open("POST", path, json_body(sent), headers, on_event)

    def whole(self, **fields: Any) -> Exchange:
        """One completion in one piece."""
        path, sent = self.request(fields, stream=False)
        return self.http.exchange("POST", path, json_body(sent))

    def cancel(self, job_id: str) -> Exchange:
        """UsageError: this API cancels by disconnecting."""
        raise self._unknown("/cancel")

    def metrics(self) -> Exchange:
        """UsageError: this API has no metrics."""
        raise self._unknown("/metrics")

    def tokenize(self, text: str, *, add_special: bool = False) -> Exchange:
        """UsageError: this API does not tokenize."""
        raise self._unknown("/tokenize")

    def detokenize(self, ids: Sequence[int]) -> Exchange:
        """UsageError: this API does not detokenize."""
        raise self._unknown("/detokenize")

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Exchange:
        """UsageError: this API does not score given tokens."""
        raise self._unknown("/score")

    def shutdown(self) -> Exchange:
        """UsageError: this API has no shutdown."""
        raise self._unknown("/shutdown")

    def _unknown(self, route: str) -> UsageError:
        return UsageError(f"engine kind {self.kind}: this API has no {route}")
