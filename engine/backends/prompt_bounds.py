"""Which token ids a sequence can take: the same bounds on every device."""

from collections.abc import Sequence

from engine.errors import InvalidRequest


def check_token_ids(
    n_stored: int, token_ids: Sequence[int], *, vocab_size: int, context_length: int
) -> None:
    """Raise InvalidRequest for no ids, an id outside the vocabulary, or too many for the context.

    `n_stored` counts the tokens that the sequence holds already.
    """
    if not token_ids or min(token_ids) < 0 or max(token_ids) >= vocab_size:
        raise InvalidRequest("prompt_ids", f"token ids in 0…{vocab_size - 1}, at least one, wanted")
    total = n_stored + len(token_ids)
    if total > context_length:
        raise InvalidRequest(
            "prompt_ids", f"{total} tokens exceed the context length {context_length}"
        )
