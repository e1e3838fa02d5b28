"""The engine's errors: one tree, each leaf with its stable code and HTTP status.

EngineError
├── InvalidRequest          INVALID_REQUEST     400
├── ModelLoadError          MODEL_LOAD_FAILED   500   (also: not a GGUF, damaged, unsupported)
├── InsufficientMemory      INSUFFICIENT_VRAM   503   (at start)
├── OutOfMemory             VRAM_OOM            500   (while a request runs)
├── DeviceError             CUDA_ERROR          500
├── InferenceTimeout        INFERENCE_TIMEOUT   504
├── Cancelled               CANCELLED           499
└── InternalError           INTERNAL            500
"""

from typing import ClassVar


class EngineError(Exception):
    """An error the engine reports: where, wanted, got, what to do, in one line."""

    code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    @property
    def message(self) -> str:
        """The message, always one line."""
        return str(self)


class InvalidRequest(EngineError):
    """A request field is unknown, of the wrong type, or out of its range."""

    code = "INVALID_REQUEST"
    http_status = 400

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ModelLoadError(EngineError):
    """The model file is missing, damaged, or not supported."""

    code = "MODEL_LOAD_FAILED"


class InsufficientMemory(EngineError):
    """The model does not fit the device or the budget at start."""

    code = "INSUFFICIENT_VRAM"
    http_status = 503

    def __init__(self, message: str, *, required_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"{message}: {required_bytes} bytes required, {available_bytes} bytes available"
        )
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes


class OutOfMemory(EngineError):
    """A running request needs more KV cache or workspace than is left."""

    code = "VRAM_OOM"
    retriable = True

    def __init__(self, message: str, *, required_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"{message}: {required_bytes} bytes required, {available_bytes} bytes available"
        )
        self.required_bytes = required_bytes
        self.available_bytes = available_bytes


class DeviceError(EngineError):
    """The device or its driver failed, or is not there."""

    code = "CUDA_ERROR"


class InferenceTimeout(EngineError):
    """A request ran longer than --inference-timeout-s."""

    code = "INFERENCE_TIMEOUT"
    http_status = 504
    retriable = True


class Cancelled(EngineError):
    """The client cancelled the job or went away."""

    code = "CANCELLED"
    http_status = 499


class InternalError(EngineError):
    """A defect of the engine itself."""
