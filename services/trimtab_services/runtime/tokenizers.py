"""The tokenizer of a served version, loaded again only when its files change."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trimtab_models.tokenizer import chat_template_digest, load_tokenizer, tokenizer_digest
from trimtab_services.runtime.replica import ModelVersion

__all__ = ["ServedTokenizer", "tokenizer_of"]


@dataclass(frozen=True, eq=False, slots=True)
class ServedTokenizer:
    """A tokenizer with its digests, which take a while to compute.

    Attributes:
        tokenizer: as loaded.
        digest: of the tokenizer.
        chat_template_digest: of its template; empty when there is none.
        files_digest: of the files that it came from; empty for a folder.
    """

    tokenizer: PreTrainedTokenizerBase
    digest: str
    chat_template_digest: str
    files_digest: str


def tokenizer_of(version: ModelVersion, known: ServedTokenizer | None) -> ServedTokenizer:
    """The tokenizer of a version: the known one when its files are those of the version, byte for byte. Blocks.

    Raises:
        ModelFolderError: the version has no tokenizer that can be used.
    """
    if known is not None and version.files_digest and version.files_digest == known.files_digest:
        return known
    with version.small_files() as folder:
        tokenizer = load_tokenizer(folder)
    return ServedTokenizer(
        tokenizer, tokenizer_digest(tokenizer), chat_template_digest(tokenizer), version.files_digest
    )
