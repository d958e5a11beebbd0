"""How likely a model finds given texts: summed log-probs of continuations, by the reference service.

The reference service takes token ids, so the tokenizer of the model is needed here: that of its folder, or of one that
is named, whose digest must be the served one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trimtab.errors import ConfigError, DataError, Mismatch
from trimtab.types import LogProbsItem, LogProbsRequest, Priority
from trimtab_trainer.eval.contestants import Contestant, Served

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Continuation", "continuation_tokens", "summed_logprobs", "tokenizer_folder", "tokenizer_of"]

_MOST_ITEMS = 256


@dataclass(frozen=True)
class Continuation:
    """A text that follows a context, which may be empty; `where` names its row in errors."""

    context: str
    text: str
    where: str


def tokenizer_folder(contestant: Contestant, folder: Path | None) -> Path:
    """The folder with a contestant's tokenizer: its own, or else the one that was named for services.

    Raises:
        ConfigError: neither is there.
    """
    found = contestant.folder or folder
    if found is None:
        raise ConfigError(
            f"tokenizer: {contestant.name} is a service, {contestant.place}; name a folder with its tokenizer",
            field="tokenizer",
        )
    return found


def tokenizer_of(served: Served, folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder.

    Raises:
        Mismatch: the served model has another.
    """
    from trimtab_models.tokenizer import load_tokenizer, tokenizer_digest

    tokenizer = load_tokenizer(folder)
    own, theirs = tokenizer_digest(tokenizer), served.info.models[0].served.tokenizer_digest
    if own != theirs:
        raise Mismatch(
            f"tokenizer: {folder} has {own}; {served.name}, {served.place}, has {theirs}",
            field="tokenizer",
            value=own,
            limit=theirs,
        )
    return tokenizer


def continuation_tokens(tokenizer: PreTrainedTokenizerBase, context: str, text: str) -> tuple[list[int], int]:
    """Token ids of context and text, and where the text begins.

    The two are encoded as one text, and the continuation is what follows as many tokens as the context alone has, as
    in lm-eval. Without a context it follows the BOS where the tokenizer puts one, else the EOS, which ends the document
    before.
    """
    from trimtab_models.tokenizer import encode_document, leading_ids

    whole = encode_document(tokenizer, context + text)[:-1]  # its EOS is no part of it
    start = len(encode_document(tokenizer, context)) - 1
    if context or leading_ids(tokenizer):
        return whole, start
    return [int(tokenizer.eos_token_id), *whole], 1  # type: ignore[arg-type]  # load_tokenizer saw to it


def summed_logprobs(
    served: Served,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Continuation],
) -> npt.NDArray[np.float64]:
    """[continuation] sum of the log-probs of its tokens, in nats.

    Args:
        served: a reference service.
        tokenizer: of its model.
        asked: continuations.

    Raises:
        DataError: one is longer than the model's context, or has no token.
    """
    most = served.info.models[0].max_sequence_tokens
    items = [_item(tokenizer, one, most) for one in asked]
    sums: list[float] = []
    for batch in _batches(items, served.info.limits.max_items_per_request, served.info.limits.max_batch_tokens):
        reply = served.client.logprobs(LogProbsRequest(items=tuple(batch), priority=Priority.BULK))
        sums += [float(result.logprobs.sum(dtype=np.float64)) for result in reply.results]
    return np.array(sums)


def _item(tokenizer: PreTrainedTokenizerBase, one: Continuation, most: int) -> LogProbsItem:
    ids, start = continuation_tokens(tokenizer, one.context, one.text)
    if len(ids) > most:
        raise DataError(
            f"{one.where}: {len(ids)} tokens with its context; the model takes {most}", value=len(ids), limit=most
        )
    if start >= len(ids):
        raise DataError(f"{one.where}: a text has no token of its own behind its context")
    return LogProbsItem(token_ids=tuple(ids), start_index=start)


def _batches(items: Sequence[LogProbsItem], most_items: int, most_tokens: int) -> Iterator[list[LogProbsItem]]:
    """Requests of a few batches of the service's, so that a long list keeps it busy and no deadline is in danger."""
    most_items = min(most_items or _MOST_ITEMS, _MOST_ITEMS)
    batch: list[LogProbsItem] = []
    tokens = 0
    for item in items:
        if batch and (len(batch) == most_items or (most_tokens and tokens + len(item.token_ids) > 4 * most_tokens)):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += len(item.token_ids)
    if batch:
        yield batch
