"""Scores of given tokens: one forward pass, its logits read in blocks of rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.backends import Checkpoint
from engine.backends.cuda_forward import ForwardPass
from engine.backends.cuda_kv import CudaSequence
from engine.backends.cuda_workspace import HEAD_ROWS
from engine.sampler import TokenScore, score_token


@dataclass(frozen=True)
class Scoring:
    """Logits and scores by a forward pass, each over a sequence of its own."""

    forward: ForwardPass
    open_sequence: Callable[[], CudaSequence]

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], checkpoint: Checkpoint
    ) -> list[TokenScore]:
        """Each completion token's score given everything before it."""
        token_ids = [*prompt_ids, *completion_ids[:-1]]
        blocks = self._logit_blocks(token_ids, len(prompt_ids) - 1, checkpoint)
        rows = [row for block in blocks for row in block]
        return [score_token(row, one) for row, one in zip(rows, completion_ids, strict=True)]

    def logits(self, token_ids: Sequence[int], checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Logits after every position, float32 [tokens, vocab]."""
        return np.concatenate(list(self._logit_blocks(token_ids, 0, checkpoint)))

    def _logit_blocks(
        self, token_ids: Sequence[int], first: int, checkpoint: Checkpoint
    ) -> Iterator[NDArray[np.float32]]:
        """Logits after each position from `first` on, in blocks of at most HEAD_ROWS rows."""
        sequence, forward = self.open_sequence(), self.forward
        try:
            for at, size in forward.run(sequence, token_ids, checkpoint):
                for row in range(max(0, first - at), size, HEAD_ROWS):
                    logits = forward.logits(row, min(HEAD_ROWS, size - row))
                    forward.stream.synchronize()
                    yield forward.memory.read(logits)
                    checkpoint()
        finally:
            forward.stream.synchronize()
            sequence.close()
