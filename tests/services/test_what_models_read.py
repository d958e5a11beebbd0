"""What the models inside the services read and answer: ids as they came, every EOS, float32, nothing infinite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from running import client, running
from trimtab.errors import InternalError, Reason
from trimtab.types import (
    FinishReason,
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsRequest,
    SamplingParams,
    ScoreItem,
    ScoreRequest,
)
from trimtab_models.heads import read_rewards
from trimtab_models.loading import load_policy, load_reward_model, save_model
from trimtab_models.tokenizer import load_tokenizer
from trimtab_services.generation.sampling import SamplingRow, sample_tokens


def spelled_out(folder: Path) -> tuple[int, ...]:
    """Ids of single letters, pad and EOS among them: a text of these ids would be tokenised otherwise."""
    tokenizer = load_tokenizer(folder)
    ids = tuple(tokenizer.convert_tokens_to_ids(list("thedogsleeps")))
    assert tuple(tokenizer("thedogsleeps", add_special_tokens=False)["input_ids"]) != ids
    return (*ids[:6], tokenizer.pad_token_id, tokenizer.eos_token_id, *ids[6:], tokenizer.pad_token_id)


def test_reward_reads_ids_as_they_are(reward_folder: Path) -> None:
    ids = spelled_out(reward_folder)
    with torch.no_grad():
        model = load_reward_model(reward_folder)
        expected = float(read_rewards(model, torch.tensor([ids]), torch.tensor([len(ids)])))
    items = (ScoreItem(token_ids=ids), ScoreItem(prompt=ids[:4], completion=ids[4:]))
    with running("reward", model_folder=reward_folder) as server, client(server) as connection:
        scores = connection.score(ScoreRequest(items=items)).scores
    assert [score.token_count for score in scores] == [len(ids)] * 2
    assert [score.reward for score in scores] == pytest.approx([expected] * 2, abs=1e-5)


def test_reference_reads_ids_as_they_are(llama_folder: Path) -> None:
    ids = spelled_out(llama_folder)
    with torch.no_grad():
        full = torch.log_softmax(load_policy(llama_folder)(torch.tensor([ids])).logits[0].float(), dim=-1)
    with running("reference", model_folder=llama_folder) as server, client(server) as connection:
        (result,) = connection.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=ids),))).results
    expected = [full[t - 1, token].item() for t, token in enumerate(ids) if t]
    assert np.allclose(result.logprobs, expected, atol=1e-4)


def test_generation_goes_on_from_ids_as_they_are(llama_folder: Path) -> None:
    ids = spelled_out(llama_folder)
    request = GenerateRequest(
        prompts=(GenerationPrompt(prompt_id="p", prompt=ids),),
        sampling=SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True),
    )
    with running("generation", model_folder=llama_folder, slots=2) as server, client(server) as connection:
        (result,) = connection.generate(request)
    with torch.no_grad():
        last = torch.log_softmax(load_policy(llama_folder)(torch.tensor([ids])).logits[0, -1].float(), dim=-1)
    assert result.completion is not None and result.completion.token_ids == (int(last.argmax()),)
    assert result.completion.logprobs[0] == pytest.approx(float(last.max()), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logprobs_of_half_precision_logits_are_normalised_in_float32(dtype: torch.dtype, temperature: float) -> None:
    logits = (torch.randn(8, 320, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    found = sample_tokens(logits, [SamplingRow(uniform=i / 8, temperature=temperature) for i in range(8)])
    exact = torch.log_softmax(logits.double() / temperature, dim=-1)
    expected = [exact[row, token].item() for row, token in enumerate(found.token_ids)]
    assert found.logprobs == pytest.approx(expected, abs=1e-5)


def test_generation_ends_at_every_eos_of_tokenizer_and_model(tmp_path: Path, llama_folder: Path) -> None:
    """The generation config of a chat model names its end of turn beside the tokenizer's EOS."""
    tokenizer, model = load_tokenizer(llama_folder), load_policy(llama_folder)
    prompt, sampling = (5, 6), SamplingParams(max_new_tokens=6, temperature=0.0)
    with torch.no_grad():
        turn_end = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert turn_end != tokenizer.eos_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    save_model(model, tokenizer, tmp_path / "chat")
    request = GenerateRequest(prompts=(GenerationPrompt(prompt_id="p", prompt=prompt),), sampling=sampling)
    with running("generation", model_folder=tmp_path / "chat", slots=2) as server, client(server) as connection:
        (result,) = connection.generate(request)
    assert result.completion is not None and result.completion.token_ids == (turn_end,)
    assert result.completion.finish_reason is FinishReason.STOP


def test_what_is_not_finite_is_an_error_of_its_item(tmp_path: Path, reward_folder: Path, llama_folder: Path) -> None:
    """One token's embedding is broken: an answer about it is refused, never NaN."""
    for name, folder in (("reward", reward_folder), ("reference", llama_folder)):
        shutil.copytree(folder, tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][9] = float("nan")
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    well, broken = (5, 6, 7), (5, 9, 7)
    with running("reward", model_folder=tmp_path / "reward") as server, client(server) as connection:
        items = tuple(ScoreItem(token_ids=ids) for ids in (well, broken))
        with pytest.raises(InternalError, match=r"items\[1\].*finite"):
            connection.score(ScoreRequest(items=items))
        scores = connection.score(ScoreRequest(items=items, per_item_errors=True)).scores
    assert scores[0].error is None and np.isfinite(scores[0].reward)
    assert scores[1].error is not None and scores[1].error.reason is Reason.NOT_FINITE
    with running("reference", model_folder=tmp_path / "reference") as server, client(server) as connection:
        with pytest.raises(InternalError, match=r"items\[0\].*finite"):
            connection.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=broken),)))


def test_dropout_of_a_models_config_is_off(tmp_path: Path, reward_folder: Path, llama_folder: Path) -> None:
    for name, folder in (("reward", reward_folder), ("reference", llama_folder)):
        shutil.copytree(folder, tmp_path / name)
        settings = json.loads((folder / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.5}))
    ids = tuple(range(20, 50))
    with torch.no_grad():
        score = float(read_rewards(load_reward_model(reward_folder), torch.tensor([ids]), torch.tensor([len(ids)])))
        full = torch.log_softmax(load_policy(llama_folder)(torch.tensor([ids])).logits[0].float(), dim=-1)
    with running("reward", model_folder=tmp_path / "reward") as server, client(server) as connection:
        found = connection.score(ScoreRequest(items=(ScoreItem(token_ids=ids),))).scores[0].reward
    assert found == pytest.approx(score, abs=1e-5)
    with running("reference", model_folder=tmp_path / "reference") as server, client(server) as connection:
        logprobs = connection.logprobs(LogProbsRequest(items=(LogProbsItem(token_ids=ids),))).results[0].logprobs
    assert np.allclose(logprobs, full[range(len(ids) - 1), ids[1:]], atol=1e-4)
