"""What /health says of the moment: written by the generation thread, read without waiting."""

import threading
from datetime import UTC, datetime
from typing import Any

from engine.backends import MemoryReport
from engine.errors import DeviceError, EngineError, OutOfMemory

_SICKENING = (OutOfMemory, DeviceError)


class Vitals:
    """Health, residency and memory; unhealthy from an error of the device until a job succeeds."""

    def __init__(self, memory: MemoryReport) -> None:
        self._lock = threading.Lock()
        self._memory = memory
        self._resident = True
        self._sick = False
        self._last_error: dict[str, Any] | None = None

    @property
    def memory(self) -> MemoryReport:
        """The bytes held when they were last looked at."""
        return self._memory

    def measured(self, memory: MemoryReport) -> None:
        """Keep the bytes held now."""
        self._memory = memory

    def succeeded(self) -> None:
        """A job has succeeded."""
        with self._lock:
            self._sick = False

    def failed(self, error: EngineError) -> None:
        """A job has failed."""
        with self._lock:
            self._sick = self._sick or isinstance(error, _SICKENING)
            self._remember(error)

    def residency(self, error: EngineError | None) -> None:
        """The weights were found where they belong, or not."""
        with self._lock:
            self._resident = error is None
            if error is not None:
                self._remember(error)

    def snapshot(self) -> dict[str, Any]:
        """The fields of /health that change."""
        with self._lock:
            healthy = self._resident and not self._sick
            fields: dict[str, Any] = {
                "status": "healthy" if healthy else "unhealthy",
                "resident": self._resident,
                "vram_bytes_used": self._memory.total_bytes,
                "weights_bytes": self._memory.weights_bytes,
                "kv_bytes": self._memory.kv_bytes,
                "workspace_bytes": self._memory.workspace_bytes,
                "memory_limit_bytes": self._memory.limit_bytes,
            }
            if self._last_error is not None:
                fields["last_error"] = dict(self._last_error)
            return fields

    def _remember(self, error: EngineError) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._last_error = {"code": error.code, "message": error.message, "at": at}
