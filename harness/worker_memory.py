"""Memory for several workers: each holds an engine, and at times two others beside it."""

from harness.errors import UsageError

ENGINES_PER_WORKER = 3
"""The shared engine, the one of a long run, and one that a test launches."""
ENGINE_BYTES = 512 << 20
"""What an engine and its harness hold beside the weights: code, KV cache, workspace."""
COPIES = 2
"""A model while it loads: its file's pages and the weights made of them."""


def needed_bytes(workers: int, model_bytes: int) -> int:
    """Bytes that so many workers need at once."""
    return workers * ENGINES_PER_WORKER * (COPIES * model_bytes + ENGINE_BYTES)


def require_memory(workers: int, model_bytes: int, available_bytes: int) -> None:
    """Raises UsageError where the workers' engines would not fit, naming how many would."""
    needed = needed_bytes(workers, model_bytes)
    if workers < 2 or needed <= available_bytes:
        return
    fitting = max(1, available_bytes // needed_bytes(1, model_bytes))
    raise UsageError(
        f"-n {workers}: {workers} workers with engines of {model_bytes / 2**30:.1f} GiB need "
        f"{needed / 2**30:.1f} GiB of memory, {available_bytes / 2**30:.1f} GiB are available; "
        f"run with -n {fitting} or without"
    )
