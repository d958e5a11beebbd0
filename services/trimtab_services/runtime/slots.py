"""The frozen model that a service serves, and how a newer version takes its place.

A slot holds one `ServedVersion`, replaced as a whole once the new one has proved itself on the canary. A request takes
the slot's version when it is admitted and is computed by that one, all of it: its replies name exactly the version that
they come from, and a replaced version lives until the last work admitted under it is done. Used by the reward and the
reference service; generation keeps its weights in an engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.errors import ModelFolderError, NotFound, Reason, Unavailable, VersionUnavailable
from trimtab.types import ServedModel, VersionRequirement
from trimtab.v1 import info_pb2
from trimtab_models.loading import max_sequence_tokens, vocab_size
from trimtab_models.tokenizer import eos_token_ids
from trimtab_services.runtime.replica import ModelVersion
from trimtab_services.runtime.threads import in_own_thread
from trimtab_services.runtime.tokenizers import ServedTokenizer, tokenizer_of

__all__ = ["ModelSlot", "ServedVersion"]


@dataclass(frozen=True, eq=False, slots=True)
class ServedVersion:
    """One version of a model, loaded; two are equal only when they are one object, so it can be a group of work.

    Attributes:
        served: name, version and digests, as replies carry them.
        model: in evaluation mode.
        tokenizer: of the model folder.
        max_sequence_tokens: most tokens of one sequence, padding included.
        vocab_size: every token id is below it.
        eos_token_ids: ids that end a completion, ascending.
    """

    served: ServedModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_sequence_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class ModelSlot:
    """Holds the version that is served.

    Args:
        name: of the model in requests and in GetInfo.
        load_model: loads a model folder, in a thread.
        canary: raises when the loaded model must not be served, such as for scores that are not finite.
    """

    def __init__(
        self,
        name: str,
        load_model: Callable[[Path], PreTrainedModel],
        canary: Callable[[ServedVersion], None],
    ) -> None:
        self.name = name
        self._load_model = load_model
        self._canary = canary
        self._current: ServedVersion | None = None
        self._tokenizer: ServedTokenizer | None = None

    @property
    def current(self) -> ServedVersion:
        """The version served now.

        Raises:
            Unavailable: there is none yet.
        """
        if self._current is None:
            raise Unavailable(f"{self.name}: there is no version yet", reason=Reason.WAITING_FOR_VERSION)
        return self._current

    def admit(self, model: str, requirement: VersionRequirement) -> ServedVersion:
        """The version that a request is computed by, from its first item to its last, whatever is served by then.

        Args:
            model: name of the model; empty is the default.
            requirement: which versions may answer.

        Raises:
            NotFound: no such model.
            Unavailable: there is no version yet.
            VersionUnavailable: the version served now is not one that may answer.
        """
        if model not in ("", self.name):
            raise NotFound(f"model: {model!r} is not served; {self.name!r} is", field="model", value=model)
        version = self.current
        if not requirement.allows(version.served.version):
            raise _wrong_version(requirement, version.served)
        return version

    async def load(self, version: ModelVersion, *, multiple: int = 1) -> None:
        """Serves a version once it has passed the canary.

        Args:
            version: to serve.
            multiple: of tokens that sequences are padded to.

        Raises:
            TrimtabError: it cannot be served; the one before goes on serving.
        """
        self._current, self._tokenizer = await in_own_thread(lambda: self._prepare(version, multiple))

    def describe(self, model: info_pb2.ModelInfo, dtype: str) -> None:
        """Fills in the model's part of GetInfo."""
        model.served.name = self.name
        model.dtype = dtype
        if (now := self._current) is None:
            return
        for field in ("version", "weights_digest", "tokenizer_digest", "chat_template_digest"):
            setattr(model.served, field, getattr(now.served, field))
        model.architecture = type(now.model).__name__
        model.parameter_count = sum(parameter.numel() for parameter in now.model.parameters())
        model.vocab_size = now.vocab_size
        model.max_sequence_tokens = now.max_sequence_tokens
        model.eos_token_ids.extend(now.eos_token_ids)

    def _prepare(self, version: ModelVersion, multiple: int) -> tuple[ServedVersion, ServedTokenizer]:
        tokenizer = tokenizer_of(version, self._tokenizer)
        model = self._current.model if version.same_weights and self._current else self._load_model(version.folder())
        prepared = ServedVersion(
            served=ServedModel(
                name=self.name,
                version=version.version,
                weights_digest=version.weights_digest,
                tokenizer_digest=tokenizer.digest,
                chat_template_digest=tokenizer.chat_template_digest,
            ),
            model=model,
            tokenizer=tokenizer.tokenizer,
            max_sequence_tokens=_longest_padded(max_sequence_tokens(model, tokenizer.tokenizer), multiple),
            vocab_size=vocab_size(model),
            eos_token_ids=eos_token_ids(tokenizer.tokenizer, model.config, getattr(model, "generation_config", None)),
        )
        self._canary(prepared)
        return prepared, tokenizer


def _longest_padded(context: int, multiple: int) -> int:
    """Most tokens that still fit the model's context once they are padded: a table of positions ends there.

    Raises:
        ModelFolderError: none do.
    """
    longest = context - context % multiple
    if not longest:
        raise ModelFolderError(
            f"max_sequence_tokens: the model's context is {context} tokens, and sequences are padded to multiples of "
            f"{multiple}; fewer `threads`, or no `deterministic`, lets it be served",
            field="max_sequence_tokens",
            value=context,
            limit=multiple,
        )
    return longest


def _wrong_version(requirement: VersionRequirement, served: ServedModel) -> VersionUnavailable:
    """The error of a request whose version is not the one served."""
    return VersionUnavailable(
        f"version: {requirement} is asked for; this replica serves {served.version}",
        field="version",
        value=str(requirement),
        limit=served.version,
        metadata={"served_version": str(served.version)},
    )
