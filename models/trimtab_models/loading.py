"""Hugging Face model folders in and out: safetensors only, nothing unpickled, nothing downloaded, nothing
re-initialised.

A reward model is saved in Hugging Face's own sequence-classification format with one label. Those classifiers have no
head bias (a `score.bias` is dropped on load), so the offset that makes demonstrations score 0 is `reward_bias` in
config.json: our readers subtract it (`heads`), a stock load gives the same order, shifted by that constant.

What a loaded model consists of is in `anatomy`; what its users ask beside loading it is exported from here too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from trimtab.errors import ConfigError, ModelFolderError
from trimtab_models.anatomy import (
    backbone,
    max_sequence_tokens,
    named_parameter_tensors,
    reward_bias,
    score_weight,
    set_reward_bias,
    vocab_size,
)
from trimtab_models.classifiers import check_classifier
from trimtab_models.devices import usable_device
from trimtab_models.files import appearing_whole
from trimtab_models.logprobs import check_logprobs

__all__ = [
    "DTYPES",
    "enable_gradient_checkpointing",
    "load_classifier",
    "load_policy",
    "load_reward_model",
    "max_sequence_tokens",
    "named_parameter_tensors",
    "pad_token_id",
    "reward_bias",
    "reward_model_from_policy",
    "save_model",
    "set_reward_bias",
    "vocab_size",
]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Names of dtypes in configurations."""

_DROPOUT_KEYS = (
    "attention_dropout",
    "attn_pdrop",
    "classifier_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "residual_dropout",
    "summary_first_dropout",
)


def load_policy(
    folder: str | Path, *, dtype: str = "float32", device: str | torch.device = "cpu", dropout: float = 0.0
) -> PreTrainedModel:
    """Loads a causal language model, in evaluation mode.

    Args:
        folder: Hugging Face folder with config.json and safetensors.
        dtype: one of `DTYPES`.
        device: where its tensors go.
        dropout: set on every dropout that the architecture's configuration has; 0 turns all off, which RL, reward and
            reference need always.

    Raises:
        ModelFolderError: no such folder, no config, no safetensors, tensors that do not fit the architecture, or an
            architecture whose log-probs `logprobs` does not compute (`logprobs.check_logprobs`).
        ConfigError: unknown dtype, dropout outside [0, 1).
    """
    model = _load(AutoModelForCausalLM, folder, dtype=dtype, device=device, dropout=dropout, attention="sdpa")
    check_logprobs(model)
    return model


def load_reward_model(
    folder: str | Path, *, dtype: str = "float32", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Loads a reward or value model: a sequence classifier with one label, in evaluation mode, dropout off.

    Raises:
        ModelFolderError: as `load_policy`; also when the folder holds another kind of model or several labels.
    """
    return load_classifier(folder, dtype=dtype, device=device)


def load_classifier(
    folder: str | Path, *, logit: int | None = None, dtype: str = "float32", device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Loads a sequence classifier to score with, in evaluation mode, dropout off.

    Any architecture whose score of a row does not depend on the padding after it (`classifiers.check_classifier`). Its
    attention is SDPA where transformers has that for the architecture, else the architecture's own ("eager").

    Args:
        folder: a Hugging Face folder.
        logit: which of several outputs is the score; None: the model must have one.
        dtype: of the weights.
        device: where it goes.

    Raises:
        ModelFolderError: as `load_policy`; also when the folder holds another kind of model, several labels without
            `logit`, no such label, or a model that `check_classifier` refuses.
    """
    folder = Path(folder)
    config = _config(folder)
    architectures = list(config.architectures or [])
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelFolderError(
            f"{folder}: architectures is {architectures}, which is no sequence classifier; a reward model is one with "
            "one label",
            field="architectures",
            value=architectures,
            limit="*ForSequenceClassification",
        )
    labels: int = config.num_labels or 0
    if logit is None and labels != 1:
        raise ModelFolderError(
            f"{folder}: num_labels is {labels}; a reward model has 1, or `logit` says which it is",
            field="num_labels",
            value=labels,
            limit=1,
        )
    if logit is not None and not 0 <= logit < labels:
        raise ModelFolderError(
            f"{folder}: logit is {logit}; the model has {labels} labels, counted from 0",
            field="logit",
            value=logit,
            limit=f"0..{labels - 1}",
        )
    attention = _classifier_attention(config)
    model = _load(
        AutoModelForSequenceClassification, folder, dtype=dtype, device=device, dropout=0.0, attention=attention
    )
    check_classifier(model)
    return model


def reward_model_from_policy(
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Makes an untrained reward model: the policy's backbone under a scalar head N(0, 1/(d + 1)), d the hidden size.

    The standard deviation is 1/sqrt(d + 1) (Stiennon et al. 2020, code; Huang et al. 2024, N+ details); InstructGPT
    prints none. `config.pad_token_id` is set to an id other than EOS, since Hugging Face finds the last token by it.

    Raises:
        ModelFolderError: as `load_policy`, or no token can serve as padding.
    """
    policy = load_policy(folder, dtype=dtype, device="cpu")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.num_labels = 1
    config.pad_token_id = pad_token_id(tokenizer)
    _set_dropout(config, 0.0)
    with _quiet():
        model = AutoModelForSequenceClassification.from_config(config, dtype=DTYPES[dtype], attn_implementation="sdpa")
    missing, unexpected = backbone(model).load_state_dict(backbone(policy).state_dict(), strict=False)
    if missing or unexpected:
        raise ModelFolderError(
            f"{folder}: the classifier's backbone is another: missing {missing[:3]}, unexpected {unexpected[:3]}",
            field="folder",
            value=folder,
        )
    head = score_weight(model)
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=generator) / (head.shape[-1] + 1) ** 0.5)
    config.architectures = [type(model).__name__]
    set_reward_bias(model, 0.0)
    return model.to(torch.device(device)).eval()


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id for padding that is not EOS: the tokenizer's own pad, else its unk, else another of its special tokens.

    Raises:
        ModelFolderError: the tokenizer has no special token but EOS.
    """
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    for candidate in candidates:
        if isinstance(candidate, int) and candidate != tokenizer.eos_token_id:
            return candidate
    raise ModelFolderError(
        "pad_token_id: the tokenizer has no special token but EOS to pad with; add a pad token to it",
        field="pad_token_id",
        value=tokenizer.eos_token_id,
    )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a Hugging Face folder: model, config, tokenizer, template. It appears whole or not at all.

    A folder of that name is replaced once the new one is whole and on disk; when writing fails it stays as it is.

    Args:
        model: what to write.
        tokenizer: of the model.
        folder: where.
        tensors: its tensors by the names of `named_parameter_tensors`, where the model has only parts of them; None:
            those that it has.
    """
    with appearing_whole(Path(folder)) as partial, _quiet():
        model.save_pretrained(partial, state_dict=None if tensors is None else dict(tensors))
        tokenizer.save_pretrained(partial)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recomputes activations in the backward pass: less memory, about a third more compute."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def _load(
    loader: type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification],
    folder: str | Path,
    *,
    dtype: str,
    device: str | torch.device,
    dropout: float,
    attention: str,
) -> PreTrainedModel:
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ConfigError(
            f"dtype: {dtype!r}; allowed: {', '.join(DTYPES)}", field="dtype", value=dtype, limit=", ".join(DTYPES)
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout: {dropout} is not in [0, 1)", field="dropout", value=dropout, limit="[0, 1)")
    target = usable_device(device)
    config = _config(folder)
    _check_safetensors(folder)
    _set_dropout(config, dropout)
    try:
        with _quiet():
            loaded: Any = loader.from_pretrained(
                folder,
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they come in the report, by name, and are refused below
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:500]
        raise ModelFolderError(f"{folder}: cannot be loaded: {line}", field="folder", value=folder) from error
    model, report = loaded
    problems = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if problems:
        shown = "; ".join(f"{key.replace('_', ' ')}: {', '.join(names[:3])}" for key, names in problems.items())
        raise ModelFolderError(
            f"{folder}: its tensors do not fit {type(model).__name__}: {shown}", field="folder", value=folder
        )
    return model.to(target).eval()


def _classifier_attention(config: PreTrainedConfig) -> str:
    """SDPA, unless the classifier's class says of itself that it has none."""
    architecture = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    return "sdpa" if getattr(architecture, "_supports_sdpa", True) else "eager"


def _config(folder: Path) -> PreTrainedConfig:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder", field="folder", value=folder)
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder}: no model folder: it has no config.json", field="folder", value=folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())[:300]
        raise ModelFolderError(f"{folder}/config.json: {line}", field="config.json", value=folder) from error


def _check_safetensors(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = sorted(path.name for path in folder.iterdir())
        raise ModelFolderError(
            f"{folder}: no *.safetensors file (found {', '.join(found[:8])}); pickled weights are never loaded, "
            "convert them to safetensors",
            field="folder",
            value=folder,
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFolderError(f"{index}: no index of tensors: {error!r}", field="folder", value=index) from error
        absent = sorted(named - {path.name for path in files})
        if absent:
            raise ModelFolderError(
                f"{folder}: model.safetensors.index.json names {absent[0]}, which is not there",
                field="folder",
                value=absent,
            )
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                opened.keys()
        except SafetensorError as error:
            raise ModelFolderError(f"{path}: not a safetensors file: {error}", field="folder", value=path) from error


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    for key in _DROPOUT_KEYS:
        if isinstance(getattr(config, key, None), float | int):
            setattr(config, key, dropout)


_LOADING = threading.RLock()


@contextmanager
def _quiet() -> Iterator[None]:
    """One load at a time, without transformers' own progress bars and loading tables: our errors say what matters.

    transformers patches its classes while it loads and puts back what it found: two at once leave the patch in place,
    and every later model with tied weights would miss them.
    """
    with _LOADING:
        yield from _without_bars()


def _without_bars() -> Iterator[None]:
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
