"""Re-scoring: a reference engine of the harness's own says whether tokens are the model's."""

import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.clients.native import NativeClient
from harness.judges.rule import Unseen, body, need, request
from harness.launch import LaunchSpec, RunningEngine
from harness.launch.process import ProcessLauncher
from harness.observation import Exchange

GREEDY_MARGIN: Final = 0.25
"""Logits below the reference's best that a greedy token may be: kernels of other devices differ."""


@dataclass(frozen=True)
class Scored:
    """What the reference says of a greedy completion; `worst_margin` in logits."""

    n_tokens: int
    n_not_best: int
    worst_margin: float


def rescore(prompt_ids: Sequence[int], completion_ids: Sequence[int], score: Exchange) -> Scored:
    """Judge greedy tokens by a recorded POST /score about exactly them.

    Broken: a token is further from the reference's best than the calibrated margin, or the tokens
    are not the model's at all. Unseen: the score is about other tokens.
    """
    asked = request(score)
    if asked.get("prompt_ids") != list(prompt_ids) or asked.get("completion_ids") != list(
        completion_ids
    ):
        raise Unseen("the reference scored other tokens than those of the stream")
    need(score.status != 400, f"the reference refuses the tokens: {score.body[:160]!r}")
    rows = body(score)["scores"]
    if [row["token_id"] for row in rows] != list(completion_ids):
        raise Unseen("the reference's scores are not those of the tokens asked about")
    for index, row in enumerate(rows):
        need(
            row["margin"] <= GREEDY_MARGIN,
            f"token {index} ({row['token_id']}) is not the model's: the reference prefers "
            f"{row['argmax_id']} by {row['margin']:.2f} logits (rank {row['rank']})",
        )
    return Scored(
        n_tokens=len(rows),
        n_not_best=sum(row["rank"] > 0 for row in rows),
        worst_margin=max((row["margin"] for row in rows), default=0.0),
    )


@contextmanager
def reference(model: Path) -> Iterator[RunningEngine]:
    """This installation's own engine with this model, on a private socket with a random key.

    No other process can use it as an oracle: the socket lies in a directory of this user alone, and
    the key is drawn anew. Raises LaunchError if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="haikugate-reference-") as private:
        key = secrets.token_urlsafe(32)
        key_file = Path(private) / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(key, encoding="ascii")
        spec = LaunchSpec(
            (sys.executable, "-I", "-m", "engine.cli", "serve", "--model", "{model}"),
            model,
            args=("--uds", "{uds}", "--api-key-file", str(key_file)),
        )
        launcher = ProcessLauncher(lambda at: NativeClient(replace(at, api_key=key)))
        engine = launcher.launch(spec)
        try:
            yield engine
        finally:
            engine.stop()

