"""The harness's errors: one tree.

HaikugateError                exit code 3 (harness error) unless said otherwise
├── UsageError                a wrong option or configuration (exit code 2)
├── ChecklistError            a checklist, requirement or mark that does not fit
├── CalibrationError          a calibration file that cannot be used
├── ModelFileError            a model that cannot be fetched, found or trusted
├── LaunchError               the engine under test did not start or is gone
├── ProtocolError             bytes from the engine that no rule of its protocol allows
├── BundleError               a proof bundle that cannot be written or read
└── SignatureError            a key or a signature that does not hold
"""


class HaikugateError(Exception):
    """An error the harness reports: where, wanted, got, what to do, in one line."""

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(HaikugateError):
    """A wrong option or configuration."""

    exit_code = 2


class ChecklistError(HaikugateError):
    """A checklist, a requirement or a test's mark that does not fit the others."""


class CalibrationError(HaikugateError):
    """A calibration file that cannot be used."""


class ModelFileError(HaikugateError):
    """A model that cannot be fetched, found or trusted."""


class LaunchError(HaikugateError):
    """The engine under test did not start, or is gone."""


class ProtocolError(HaikugateError):
    """Bytes from the engine that no rule of its protocol allows."""


class BundleError(HaikugateError):
    """A proof bundle that cannot be written or read."""


class SignatureError(HaikugateError):
    """A key or a signature that does not hold."""
