"""Text to token ids, the same way everywhere: in training, in services and in evaluation.

The chat template renders and the tokenizer adds nothing to what it renders, so a double BOS is impossible. Digests let
two processes find out that they would tokenise alike before they exchange a single id.

A control token inside a user's text is text. Control tokens are those that the tokenizer flags as special, declared by
name or not. An added token without the flag, as `<think>` often is, is vocabulary: text that spells it gets its id, in
prompts and in completions alike, since that is how a model learns to write it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from trimtab.errors import InvalidRequest, Mismatch, ModelFolderError, Reason
from trimtab.types import ChatMessage, PromptLike

__all__ = [
    "check_same_tokenizer",
    "chat_template_digest",
    "decode",
    "encode_completion",
    "encode_conversation",
    "encode_document",
    "encode_prompt",
    "eos_token_ids",
    "leading_ids",
    "load_tokenizer",
    "tokenizer_digest",
]


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder; nothing is downloaded.

    Raises:
        ModelFolderError: no tokenizer there, one without a fast backend, or one without EOS.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder", field="folder", value=folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise ModelFolderError(
            f"{folder}: no tokenizer: it has neither tokenizer.json nor tokenizer_config.json",
            field="folder",
            value=folder,
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise ModelFolderError(
            f"{folder}: its tokenizer cannot be loaded: {line}", field="folder", value=folder
        ) from error
    # it would be told once and forgotten; who encodes checks the length and says so in an error
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelFolderError(
            f"{folder}: its tokenizer has no tokenizer.json (fast backend)", field="folder", value=folder
        )
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token  # an encoder's separator is what ends a text
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelFolderError(f"{folder}: its tokenizer has no EOS token", field="eos_token", value=folder)
    _flag_declared_tokens(tokenizer)
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what decides token ids: vocabulary, merges, normaliser, pre-tokeniser, special tokens, BOS, EOS.

    Padding and truncation settings do not count: they are never used here, and loading changes them.
    """
    backend = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    for setting in ("padding", "truncation"):
        backend.pop(setting, None)
    return _sha256({"backend": backend, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id})


def check_same_tokenizer(field: str, folder: Path, policy_folder: Path) -> None:
    """Refuses a model that cuts text into other tokens than the policy: token ids travel between them.

    Args:
        field: of the setting that names `folder`, for the message.
        folder: of the other model.
        policy_folder: of the policy.

    Raises:
        Mismatch: names both folders and digests.
    """
    own, policys = (tokenizer_digest(load_tokenizer(place)) for place in (folder, policy_folder))
    if own != policys:
        raise Mismatch(
            f"{field}: {folder} has tokenizer {own}; the policy's, {policy_folder}, is {policys}, and token ids travel "
            "between them",
            field=field,
            value=own,
            limit=policys,
        )


def chat_template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of the chat template; empty when there is none."""
    return _sha256(tokenizer.chat_template) if tokenizer.chat_template else ""


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, *configs: PreTrainedConfig | Any) -> tuple[int, ...]:
    """Every id that ends a completion: of the tokenizer and of the model's config and generation config, ascending."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs)):
        if isinstance(value, int):
            found.add(value)
        elif isinstance(value, Iterable):
            found.update(int(item) for item in value)
    return tuple(sorted(found))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: PromptLike | Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a prompt, up to where the completion begins.

    Args:
        tokenizer: with a chat template, a text is rendered as one user message; without one it is taken as it is,
            behind the BOS where the tokenizer's own post-processing starts with one.
        prompt: text, token ids (returned as they are) or a conversation that ends in a user turn.

    Raises:
        InvalidRequest: empty prompt, or a conversation for a tokenizer without template.
    """
    if len(prompt) == 0:
        raise InvalidRequest("prompt: must not be empty", reason=Reason.EMPTY_PROMPT, field="prompt", value=prompt)
    if isinstance(prompt, str):
        if not tokenizer.chat_template:
            ids = [*leading_ids(tokenizer), *_encode_text(tokenizer, prompt)]
            return ids or _refuse_empty(prompt)
        return _render(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    if isinstance(prompt[0], int):
        return [int(item) for item in prompt]  # type: ignore[arg-type]  # all of them are, by the record's check
    messages = _messages(prompt)  # type: ignore[arg-type]  # what is left are messages
    return _render(tokenizer, messages, add_generation_prompt=True)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a completion's text, the EOS at the end, as in training. The only control token is that EOS."""
    return [*_encode_text(tokenizer, text), int(cast(int, tokenizer.eos_token_id))]


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a pretraining document: BOS where the tokenizer's own post-processing starts with one, text, EOS."""
    return [*leading_ids(tokenizer), *encode_completion(tokenizer, text)]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage] | Sequence[Mapping[str, str]]
) -> list[int]:
    """Token ids of a conversation that ends in an assistant turn: prompt, completion and EOS."""
    *before, last = _messages(messages)
    return [*_render(tokenizer, before, add_generation_prompt=True), *encode_completion(tokenizer, last["content"])]


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)


def _messages(messages: Sequence[ChatMessage] | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": m.role, "content": m.content}
        if isinstance(m, ChatMessage)
        else {"role": m["role"], "content": m["content"]}
        for m in messages
    ]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> list[int]:
    if not tokenizer.chat_template:
        raise InvalidRequest(
            "messages: the tokenizer has no chat template; send text or token ids", field="messages", value=messages
        )
    if not any(_spells_control_token(tokenizer, message["content"]) for message in messages):
        text = _template_text(tokenizer, messages, add_generation_prompt)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # A control token spelled out in a message: the template is rendered around place-holders, its own pieces are
    # encoded with control tokens, the messages without.
    marks = [f"\x02{secrets.token_hex(8)}\x03" for _ in messages]
    marked = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
    text = _template_text(tokenizer, marked, add_generation_prompt)
    ids: list[int] = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, text = text.partition(mark)
        if not found:
            raise InvalidRequest(
                "messages: the chat template leaves a message out or repeats one, so control tokens inside its text "
                "cannot be told from the template's own",
                field="messages",
            )
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += _encode_text(tokenizer, message["content"])
    return [*ids, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _template_text(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool
) -> str:
    try:
        return cast(
            str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except jinja2.TemplateError as error:  # as templates refuse roles in an order that they do not know
        raise InvalidRequest(f"messages: the chat template refuses them: {error}", field="messages") from None


def _spells_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer would find a control token in the text: it is asked, since its normaliser may make one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) != _encode_text(tokenizer, text)


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text in which no control token is recognised."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _flag_declared_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Flags as special what is declared so by name only: the backend tells control tokens by the flag."""
    declared = set(tokenizer.all_special_tokens)
    loose = [
        token for token in tokenizer.added_tokens_decoder.values() if token.content in declared and not token.special
    ]
    for token in loose:
        token.special = True
    cast(Any, tokenizer).backend_tokenizer.add_special_tokens(loose)


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] when the tokenizer's own post-processing puts one in front of a text, else nothing."""
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _refuse_empty(prompt: str) -> list[int]:
    raise InvalidRequest("prompt: it has no tokens", reason=Reason.EMPTY_PROMPT, field="prompt", value=prompt)


def _sha256(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
