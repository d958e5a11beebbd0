"""Deterministic services pad sequences, and a table of positions ends: what is served fits it once it is padded."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from running import client, running
from tiny_models import make_tokenizer
from trimtab.errors import ModelFolderError, SequenceTooLong
from trimtab.types import LogProbsItem, LogProbsRequest, ScoreItem, ScoreRequest
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_policy, load_reward_model, reward_model_from_policy, save_model
from trimtab_services.runtime.config import FrozenModelConfig
from trimtab_services.runtime.frozen import BatchShapes
from trimtab_services.runtime.replica import ModelVersion
from trimtab_services.runtime.slots import ModelSlot

POSITIONS, THREADS = 64, 3
LONGEST = 60
"""The last multiple of 4 x 3 that 64 positions hold."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with a table of 64 learned positions."""
    directory, tokenizer = tmp_path_factory.mktemp("short"), make_tokenizer()
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, bos_token_id=None, **common)
    save_model(GPT2LMHeadModel(config), tokenizer, directory / "policy")
    reward_model = reward_model_from_policy(directory / "policy", tokenizer=tokenizer, seed=0)
    save_model(reward_model, tokenizer, directory / "reward")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
    encoder_config = BertConfig(intermediate_size=64, max_position_embeddings=POSITIONS, **sizes, **common)
    encoder = BertForSequenceClassification(encoder_config)
    save_model(encoder, tokenizer, directory / "encoder")
    return {path.name: path for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["reward", "encoder"])
def test_the_longest_sequence_is_scored(folders: dict[str, Path], kind: str) -> None:
    ids = tuple(range(5, 5 + LONGEST))
    with (
        running("reward", model_folder=folders[kind], deterministic=True, threads=THREADS) as server,
        client(server) as rewards,
    ):
        assert rewards.info().models[0].max_sequence_tokens == LONGEST
        (score,) = rewards.score(ScoreRequest(items=(ScoreItem(token_ids=ids),))).scores
        with pytest.raises(SequenceTooLong, match="61 tokens; allowed: 60"):
            rewards.score(ScoreRequest(items=(ScoreItem(token_ids=(*ids, 4)),)))
    if kind == "reward":
        with torch.no_grad():
            model = load_reward_model(folders[kind])
            expected = read_rewards(model, torch.tensor([ids]), torch.tensor([LONGEST]))
        assert score.reward == pytest.approx(float(expected), abs=1e-5)


def test_the_longest_sequence_has_logprobs(folders: dict[str, Path]) -> None:
    ids = tuple(range(5, 5 + LONGEST))
    with (
        running("reference", model_folder=folders["policy"], deterministic=True, threads=THREADS) as server,
        client(server) as reference,
    ):
        assert reference.info().models[0].max_sequence_tokens == LONGEST
        (found,) = reference.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=ids),))).results
        with pytest.raises(SequenceTooLong, match="61 tokens; allowed: 60"):
            reference.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=(*ids, 4)),)))
    with torch.no_grad():
        full = torch.log_softmax(load_policy(folders["policy"])(torch.tensor([ids])).logits[0].float(), dim=-1)
    assert np.allclose(found.logprobs, full[range(LONGEST - 1), ids[1:]], atol=1e-4)


def test_all_positions_are_served_where_nothing_is_padded(folders: dict[str, Path]) -> None:
    item = ScoreItem(token_ids=(5,) * POSITIONS)
    with running("reward", model_folder=folders["reward"], threads=THREADS) as server, client(server) as rewards:
        assert rewards.info().models[0].max_sequence_tokens == POSITIONS
        assert len(rewards.score(ScoreRequest(items=(item,))).scores) == 1


def test_a_context_shorter_than_the_padding_is_refused(folders: dict[str, Path]) -> None:
    slot = ModelSlot("short", load_reward_model, lambda served: None)
    with pytest.raises(ModelFolderError, match="context is 64 tokens, and sequences are padded to multiples of 68"):
        asyncio.run(slot.load(ModelVersion(folders["reward"]), multiple=68))


def test_shapes_are_those_of_the_configured_threads_whoever_asks(folders: dict[str, Path]) -> None:
    config = FrozenModelConfig(model_folder=folders["reward"], deterministic=True, threads=5)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.set_num_threads, 2).result()
        assert pool.submit(BatchShapes.of, config).result().multiple == BatchShapes.of(config).multiple == 20
