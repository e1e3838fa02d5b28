"""The client of the native API: every route of the engine's contract."""

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from harness.clients.http import HttpClient, LiveExchange, OnEvent, answer, json_body
from harness.observation import Exchange
from harness.transport import Headers


class NativeClient(HttpClient):
    """Speaks the reference engine's API. A `headers` field of a request becomes HTTP headers."""

    kind: ClassVar[str] = "native"

    _model = ""

    def execute(self, *, headers: Headers = (), **fields: Any) -> Exchange:
        """POST /execute, read to its end; `job_id` is made up where it is not given."""
        return self.http.exchange("POST", "/execute", _job(fields), headers)

    def start(
        self, *, on_event: OnEvent | None = None, headers: Headers = (), **fields: Any
    ) -> LiveExchange:
        """POST /execute in the background."""
        return self.http.open("POST", "/execute", _job(fields), headers, on_event)

    def whole(self, **fields: Any) -> Exchange:
        """One completion in one piece, which this API leaves to its OpenAI-compatible route."""
        self._model = self._model or str(answer(self.health())["model"])
        return self._post("/v1/completions", model=self._model, stream=False, **fields)

    def cancel(self, job_id: str) -> Exchange:
        """POST /cancel."""
        return self._post("/cancel", job_id=job_id)

    def metrics(self) -> Exchange:
        """GET /metrics, Prometheus text."""
        return self.raw("GET", "/metrics")

    def tokenize(self, text: str, *, add_special: bool = False) -> Exchange:
        """POST /tokenize."""
        return self._post("/tokenize", text=text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> Exchange:
        """POST /detokenize."""
        return self._post("/detokenize", ids=list(ids))

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Exchange:
        """POST /score: how this engine's model judges the given completion tokens."""
        return self._post(
            "/score", prompt_ids=list(prompt_ids), completion_ids=list(completion_ids)
        )

    def shutdown(self) -> Exchange:
        """POST /shutdown."""
        return self.http.exchange("POST", "/shutdown")

    def _post(self, path: str, **fields: Any) -> Exchange:
        return self.http.exchange("POST", path, _in_order(fields))


def _job(fields: dict[str, Any]) -> bytes:
    return _in_order({"job_id": str(uuid.uuid4()), **fields})


def _in_order(fields: dict[str, Any]) -> bytes:
    """Fields in one order, whoever asks: by theirs an engine could tell its askers apart."""
    return json_body(dict(sorted(fields.items())))
