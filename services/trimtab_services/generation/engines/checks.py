"""What a model and a request must be for the slots to hold them; checked before anything is computed."""

from __future__ import annotations

from collections.abc import Container

import torch
from transformers import PreTrainedModel

from trimtab.errors import ConfigError, InvalidRequest, Reason, SequenceTooLong, Unsupported
from trimtab_models.attention import sliding_window
from trimtab_services.generation.engines.base import SequenceRequest
from trimtab_services.generation.engines.slot_cache import PrefillWrite, SlotCache
from trimtab_services.generation.sampling import uniforms

__all__ = ["check_request", "check_slots_fit", "model_eos_token_ids", "sequence_limit"]


def check_request(
    request: SequenceRequest, *, held: Container[int], vocab: int, max_sequence_tokens: int, has_tokenizer: bool
) -> None:
    """Refuses what cannot be computed, or has the id of a sequence that is held; errors as `Engine.submit`."""
    if request.sequence_id in held:
        raise InvalidRequest(
            f"sequence_id {request.sequence_id} is already held",
            reason=Reason.DUPLICATE_ID,
            field="sequence_id",
            value=request.sequence_id,
            limit="unique",
        )
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequest(
            "prompt_token_ids is empty; at least 1 token is needed",
            reason=Reason.EMPTY_PROMPT,
            field="prompt_token_ids",
            value=0,
            limit=">= 1 token",
        )
    for field, ids in (("prompt_token_ids", prompt), ("sampling.stop_token_ids", sampling.stop_token_ids)):
        for i, token in enumerate(ids):
            if not 0 <= token < vocab:
                raise InvalidRequest(
                    f"{field}[{i}] is {token}; the vocabulary has {vocab} tokens",
                    reason=Reason.TOKEN_ID_OUT_OF_RANGE,
                    field=f"{field}[{i}]",
                    value=token,
                    limit=vocab,
                )
    wanted = len(prompt) + sampling.max_new_tokens
    if wanted > max_sequence_tokens:
        raise SequenceTooLong(
            f"{len(prompt)} prompt tokens plus max_new_tokens {sampling.max_new_tokens} make {wanted} tokens; "
            f"{max_sequence_tokens} are allowed",
            field="prompt_token_ids",
            value=wanted,
            limit=max_sequence_tokens,
        )
    if sampling.stop_strings and not has_tokenizer:
        raise Unsupported(
            "stop_strings need a tokenizer and this engine has none",
            field="sampling.stop_strings",
            value=sampling.stop_strings,
            limit="empty",
        )
    uniforms(request.seed, request.sample_index, 0)  # refuses a seed or index that does not fit


@torch.inference_mode()
def check_slots_fit(model: PreTrainedModel, slots: int, tokens: int) -> None:
    """Refuses more slots than the GPU has memory for, before a sequence that grows finds out.

    Raises:
        ConfigError: keys and values of so many full slots are larger than what is free; says how many fit.
    """
    cache = SlotCache(1, tokens)
    cache.reserve(1)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache.write = PrefillWrite(token[0], token, None)
    model.base_model(input_ids=token, position_ids=token, past_key_values=cache, use_cache=True)
    of_slot = cache.bytes_of_full_slot
    unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    free = torch.cuda.mem_get_info(model.device)[0] + unused
    if slots * of_slot > free:
        raise ConfigError(
            f"slots: {slots} sequences of {tokens} tokens need {slots * of_slot / 2**30:.1f} GiB for keys and values; "
            f"{model.device} has {free / 2**30:.1f} GiB free; allowed: {free // of_slot} slots, or a smaller "
            "max_sequence_tokens",
            field="slots",
            value=slots,
            limit=free // of_slot,
        )


def model_eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The model's end-of-sequence ids; generation config first, then the model's config."""
    for config in (model.generation_config, model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)
    return ()


def sequence_limit(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens that a slot may hold, for a model whose layers slots can serve at all.

    Raises:
        ConfigError: more than the model's context, or fewer than 2.
        Unsupported: a layer is neither full nor sliding attention; see `attention.sliding_window`.
    """
    sliding_window(model)  # refuses layers that keep a state of their own
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    limit = wanted or context
    if limit is None or limit < 2 or (context is not None and limit > context):
        raise ConfigError(
            f"max_sequence_tokens is {limit}; it must lie between 2 and the model's context of {context} tokens",
            field="max_sequence_tokens",
            value=limit,
            limit=context,
        )
    return limit
