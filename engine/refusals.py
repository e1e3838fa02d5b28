"""Requests refused before any work, each with its code and HTTP status."""

from engine.errors import EngineError, InvalidRequest


class Unauthorized(EngineError):
    """The API key is missing or wrong."""

    code = "UNAUTHORIZED"
    http_status = 401


class NotFound(EngineError):
    """No such route."""

    code = "NOT_FOUND"
    http_status = 404


class UnknownJob(EngineError):
    """A job id that this process has never seen."""

    code = "UNKNOWN_JOB"
    http_status = 404


class UnknownModel(EngineError):
    """A model other than the one that is loaded."""

    code = "UNKNOWN_MODEL"
    http_status = 404


class MethodNotAllowed(EngineError):
    """The route exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"
    http_status = 405


class RequestTimeout(EngineError):
    """The request body did not arrive in time."""

    code = "REQUEST_TIMEOUT"
    http_status = 408
    retriable = True


class DuplicateJob(InvalidRequest):
    """A job with this id is queued or running."""

    code = "DUPLICATE_JOB"
    http_status = 409


class BodyTooLarge(EngineError):
    """The request body is over the limit."""

    code = "BODY_TOO_LARGE"
    http_status = 413


class QueueFull(EngineError):
    """As many jobs as the queue holds are waiting."""

    code = "QUEUE_FULL"
    http_status = 503
    retriable = True


class ShuttingDown(EngineError):
    """The engine takes no new work."""

    code = "SHUTTING_DOWN"
    http_status = 503
    retriable = True
