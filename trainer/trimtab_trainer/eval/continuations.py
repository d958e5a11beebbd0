"""How likely a model finds given texts: summed log-probs of continuations, by the reference service.

The reference service takes token ids, so the tokenizer of the model is needed here: that of its folder, or of one that
is named, whose digest must be the served one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trimtab.errors import ConfigError, DataError, Mismatch, ModelFolderError
from trimtab.types import LogProbsItem, LogProbsRequest, Priority
from trimtab_trainer.eval.contestants import Comparison, Contestant, Served, ask_services

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Continuation",
    "ReadContinuations",
    "context_tokens",
    "continuation_tokens",
    "read_continuations",
    "summed_logprobs",
    "tokenizer_folder",
]

_MOST_ITEMS = 256


@dataclass(frozen=True)
class Continuation:
    """A text that follows a context, which may be empty; errors name `where`, its file and line, and its `field`."""

    context: str
    text: str
    where: str
    field: str


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


@dataclass(frozen=True)
class ReadContinuations:
    """Continuations as models of one tokenizer read them.

    Attributes:
        digest: of the tokenizer.
        folder: which has it.
        token_ids: int32 ids of context and text, of each.
        starts: where its text begins, of each.
        places: file, line and field, of each.
    """

    digest: str
    folder: Path
    token_ids: Sequence[npt.NDArray[np.int32]]
    starts: Sequence[int]
    places: Sequence[str]

    def check(self, name: str, digest: str, most: int) -> None:
        """Refuses what a model cannot read.

        Args:
            name: of the model, for errors.
            digest: of its tokenizer.
            most: tokens that it takes in a sequence.

        Raises:
            Mismatch: it has another tokenizer.
            DataError: a continuation is longer than that; names its row.
        """
        if digest != self.digest:
            raise Mismatch(
                f"tokenizer: {self.folder} has {self.digest}; {name} has {digest}",
                field="tokenizer",
                value=self.digest,
                limit=digest,
            )
        for ids, where in zip(self.token_ids, self.places, strict=True):
            if len(ids) > most:
                raise DataError(
                    f"{where}: {len(ids)} tokens with its context; {name} takes {most}",
                    field=where.rpartition(" ")[2],
                    value=len(ids),
                    limit=most,
                )


def read_continuations(compared: Comparison, asked: Sequence[Continuation]) -> dict[str, ReadContinuations]:
    """Continuations as each contestant reads them, by its name; no service is started before they fit all of them.

    Args:
        compared: with tokenizers; those that are services are reference services.
        asked: continuations.

    Raises:
        ConfigError: a service is another one.
        Unavailable: a service does not serve.
        Mismatch: a service has another tokenizer.
        DataError: a continuation is longer than the context of a model, or has no token.
    """
    from trimtab_models.tokenizer import load_tokenizer, tokenizer_digest

    infos = ask_services("reference", compared.contestants, compared.connection)
    by_digest: dict[str, ReadContinuations] = {}
    found = {}
    for contestant in compared.contestants:
        folder = compared.tokenizers[contestant.name]
        tokenizer = load_tokenizer(folder)
        digest = tokenizer_digest(tokenizer)
        if digest not in by_digest:
            by_digest[digest] = _read(tokenizer, digest, folder, asked)
        read = by_digest[digest]
        if contestant.name in infos:
            model = infos[contestant.name].models[0]
            read.check(contestant.name, model.served.tokenizer_digest, model.max_sequence_tokens)
        else:
            read.check(contestant.name, digest, context_tokens(folder, tokenizer))
        found[contestant.name] = read
    return found


def context_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a sequence that the model of a folder takes; its weights are not read.

    Raises:
        ModelFolderError: its config.json makes no language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from trimtab_models.anatomy import max_sequence_tokens

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise ModelFolderError(f"{folder}: no language model: {line}", field="config.json", value=folder) from error
    return max_sequence_tokens(model, tokenizer)


def _read(
    tokenizer: PreTrainedTokenizerBase, digest: str, folder: Path, asked: Sequence[Continuation]
) -> ReadContinuations:
    token_ids, starts = [], []
    for one in asked:
        ids, start = continuation_tokens(tokenizer, one.context, one.text)
        if start >= len(ids):
            raise DataError(
                f"{one.where}: {one.field}: a text has no token of its own behind its context", field=one.field
            )
        token_ids.append(np.array(ids, np.int32))
        starts.append(start)
    return ReadContinuations(digest, folder, token_ids, starts, [f"{one.where}: {one.field}" for one in asked])


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


def summed_logprobs(served: Served, read: ReadContinuations) -> npt.NDArray[np.float64]:
    """[continuation] sum of the log-probs of its tokens, in nats.

    Args:
        served: a reference service.
        read: continuations as its model reads them.

    Raises:
        Mismatch, DataError: as `ReadContinuations.check`.
    """
    model = served.info.models[0]
    read.check(served.name, model.served.tokenizer_digest, model.max_sequence_tokens)
    items = (
        LogProbsItem(token_ids=tuple(ids.tolist()), start_index=start)
        for ids, start in zip(read.token_ids, read.starts, strict=True)
    )
    sums: list[float] = []
    for batch in _batches(items, served.info.limits.max_items_per_request, served.info.limits.max_batch_tokens):
        reply = served.client.logprobs(LogProbsRequest(items=tuple(batch), priority=Priority.BULK))
        sums += [float(result.logprobs.sum(dtype=np.float64)) for result in reply.results]
    return np.array(sums)


def _batches(items: Iterable[LogProbsItem], most_items: int, most_tokens: int) -> Iterator[list[LogProbsItem]]:
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
