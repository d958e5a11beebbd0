"""Models into the weights service and out again, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.services.weights.conftest import running

from tiny_models import make_tokenizer
from trimtab.client import Client
from trimtab.errors import ConfigError, ModelFolderError
from trimtab.weights import fetch_version
from trimtab_models.loading import load_policy, load_reward_model, named_parameter_tensors, reward_bias
from trimtab_models.tokenizer import chat_template_digest, load_tokenizer, tokenizer_digest
from trimtab_models.versions import (
    publish_folder,
    publish_model,
    read_folder_tensors,
    tensor_to_data,
    tensors_to_torch,
    write_model_folder,
)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running(store=str(tmp_path / "store")) as service, Client(service.target) as connected:
        yield connected


def test_folder_round_trip(client: Client, policy_folder: Path, tmp_path: Path) -> None:
    manifest = publish_folder(client, policy_folder, channels=["policy/latest"], run="r")
    tokenizer = load_tokenizer(policy_folder)
    assert manifest.tokenizer_digest == tokenizer_digest(tokenizer)
    assert manifest.chat_template_digest == chat_template_digest(tokenizer)
    write_model_folder(fetch_version(client, version=1, cache=tmp_path / "cache"), tmp_path / "out")
    before, after = read_folder_tensors(policy_folder), read_folder_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    names = {path.name for path in policy_folder.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    load_policy(tmp_path / "out")
    assert tokenizer_digest(load_tokenizer(tmp_path / "out")) == manifest.tokenizer_digest


def test_model_and_its_folder_have_equal_digests(client: Client, policy_folder: Path, tmp_path: Path) -> None:
    of_folder = publish_folder(client, policy_folder, channels=["a"])
    model, tokenizer = load_policy(policy_folder), load_tokenizer(policy_folder)
    of_model = publish_model(client, model, tokenizer, channels=["b"])
    assert of_model.weights_digest == of_folder.weights_digest
    assert of_model.tokenizer_digest == of_folder.tokenizer_digest


def test_serving_dtype_rounds_once(client: Client, llama_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(llama_folder), load_tokenizer(llama_folder)
    publish_model(client, model, tokenizer, channels=["c"], serving_dtype="bfloat16")
    fetched = fetch_version(client, channel="c")
    tensors = tensors_to_torch(fetched)
    for name, tensor in named_parameter_tensors(model).items():
        assert torch.equal(tensors[name], tensor.to(torch.bfloat16))
    assert json.loads(fetched.files["config.json"])["dtype"] == "bfloat16"
    assert next(model.parameters()).dtype == torch.float32
    write_model_folder(fetched, tmp_path / "out")
    write_model_folder(fetched, tmp_path / "out")  # again, over the first
    assert load_policy(tmp_path / "out", dtype="bfloat16").dtype == torch.bfloat16


def test_only_a_model_folder_is_written_over(client: Client, llama_folder: Path, tmp_path: Path) -> None:
    publish_folder(client, llama_folder, channels=["c"])
    fetched = fetch_version(client, channel="c")
    papers = tmp_path / "papers"
    papers.mkdir()
    write_model_folder(fetched, papers)  # an empty folder
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "letter.txt").write_text("dear")
    for taken in (letters, letters / "letter.txt"):
        with pytest.raises(ConfigError, match="no model folder; nothing in it is touched"):
            write_model_folder(fetched, taken)
    assert [path.name for path in letters.iterdir()] == ["letter.txt"]
    assert (letters / "letter.txt").read_text() == "dear"


def test_reward_model_keeps_its_offset(client: Client, reward_folder: Path, tmp_path: Path) -> None:
    publish_model(client, load_reward_model(reward_folder), make_tokenizer(), channels=["reward/serving"])
    write_model_folder(fetch_version(client, version=1), tmp_path / "out")
    assert reward_bias(load_reward_model(tmp_path / "out")) == 0.25


def test_writing_to_a_tensor_leaves_the_cache_alone(client: Client, llama_folder: Path, tmp_path: Path) -> None:
    publish_folder(client, llama_folder, channels=["c"])
    for tensor in tensors_to_torch(fetch_version(client, version=1, cache=tmp_path / "cache")).values():
        tensor.zero_()
    again = tensors_to_torch(fetch_version(client, version=1, cache=tmp_path / "cache"))
    assert any(tensor.abs().sum() > 0 for tensor in again.values())


def test_what_cannot_be_published_is_said(client: Client, llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="serving_dtype"):
        model, tokenizer = load_policy(llama_folder), load_tokenizer(llama_folder)
        publish_model(client, model, tokenizer, channels=["c"], serving_dtype="int4")
    with pytest.raises(ModelFolderError, match="no \\*.safetensors"):
        publish_folder(client, tmp_path, channels=["c"])
    with pytest.raises(ModelFolderError, match="complex64"):
        tensor_to_data("x", torch.zeros(2, dtype=torch.complex64))
