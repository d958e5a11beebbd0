"""Model folders that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import make_policy, make_tokenizer
from trimtab_models.loading import reward_model_from_policy, save_model


def _policy_folder(factory: pytest.TempPathFactory, shape: str) -> Path:
    tokenizer = make_tokenizer()
    folder = factory.mktemp("models") / shape
    save_model(make_policy(shape, len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _policy_folder(tmp_path_factory, "llama")


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _policy_folder(tmp_path_factory, "gpt2")


@pytest.fixture(scope="session")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _policy_folder(tmp_path_factory, "qwen2")


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen2"])
def policy_folder(request: pytest.FixtureRequest) -> Path:
    """Each of the three shapes in turn."""
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(llama_folder: Path) -> Path:
    return llama_folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A reward model over the llama policy, untrained, with an offset."""
    tokenizer = make_tokenizer()
    model = reward_model_from_policy(llama_folder, tokenizer=tokenizer, seed=1)
    model.config.reward_bias = 0.25
    folder = tmp_path_factory.mktemp("models") / "reward"
    save_model(model, tokenizer, folder)
    return folder
