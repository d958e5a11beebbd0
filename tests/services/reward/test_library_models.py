"""Classifiers of many architectures behind a real server: each scores as its own library's forward does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from running import client, running
from tiny_models import make_tokenizer
from trimtab.errors import InvalidRequest, ModelFolderError, SequenceTooLong
from trimtab.types import ScoreItem, ScoreRequest
from trimtab_models.anatomy import UNBOUNDED_TOKENS
from trimtab_models.classifiers import has_score_layer
from trimtab_models.loading import load_classifier, load_policy, max_sequence_tokens, save_model
from trimtab_models.tokenizer import encode_completion, encode_prompt, load_tokenizer

PAIRS = (
    ("say something", "helpful"),
    ("the dog", "It sleeps, twice."),
    ("a ship", "a rudder, and the trim tab that steers it"),
)
_SIZES: dict[str, dict[str, Any]] = {
    "bart": dict(d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=2, decoder_layers=2)
    | dict(encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=128, init_std=0.5),
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4),
    "deberta-v2": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    | dict(max_position_embeddings=128, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=32)
    | dict(position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False),
    "fnet": dict(hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=128),
    "funnel": dict(d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1], num_decoder_layers=1),
    "gpt_neo": dict(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
    | dict(window_size=8, max_position_embeddings=128),
    "gptj": dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128),
    "longformer": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    | dict(max_position_embeddings=129, attention_window=8),
    "mpt": dict(d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=128),
    "openai-gpt": dict(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "t5": dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=2.0),
    "xlnet": dict(d_model=32, n_layer=2, n_head=4, d_inner=64),
}
LENGTHS = {"bloom": UNBOUNDED_TOKENS, "funnel": UNBOUNDED_TOKENS, "t5": UNBOUNDED_TOKENS}
"""Context lengths of those whose configuration names none; all others' is 128."""


def make_classifier(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained classifier with one label; weights large enough that scores differ."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        num_labels=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        decoder_start_token_id=0,
        initializer_range=0.3,
        **_SIZES[kind],
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def tokenizer_with_ends() -> PreTrainedTokenizerFast:
    """Ends each text with EOS, as the tokenizers of T5 and BART do."""
    tokenizer = make_tokenizer()
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
    )
    return tokenizer


def classifier_folder(kind: str, folder: Path) -> Path:
    tokenizer = tokenizer_with_ends()
    save_model(make_classifier(kind, tokenizer), tokenizer, folder)
    return folder


def library_scores(folder: Path, rows: list[list[int]]) -> list[float]:
    """What the library's own forward gives for each row alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


def rows_of_pairs(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    if has_score_layer(load_classifier(folder)):
        return [[*encode_prompt(tokenizer, prompt), *encode_completion(tokenizer, text)] for prompt, text in PAIRS]
    theirs = AutoTokenizer.from_pretrained(folder)
    return [theirs(*pair)["input_ids"] for pair in PAIRS]


@pytest.mark.parametrize("kind", sorted(_SIZES.keys() - {"fnet", "xlnet"}))
def test_it_scores_as_its_library_does(kind: str, tmp_path: Path) -> None:
    folder = classifier_folder(kind, tmp_path / kind)
    expected = library_scores(folder, rows_of_pairs(folder))
    assert max(expected) - min(expected) > 1e-2
    with running("reward", model_folder=folder) as server, client(server) as rewards:
        items = tuple(ScoreItem(prompt=prompt, completion=completion) for prompt, completion in PAIRS)
        found = rewards.score(ScoreRequest(items=items)).scores
        assert [one.reward for one in found] == pytest.approx(expected, abs=1e-5)
        most = LENGTHS.get(kind, 128)
        assert rewards.info().models[0].max_sequence_tokens == most
        longest = [5 + index % 50 for index in range(most - 1)] + [1]
        (one,) = rewards.score(ScoreRequest(items=(ScoreItem(token_ids=tuple(longest)),))).scores
        assert one.reward == pytest.approx(library_scores(folder, [longest])[0], abs=1e-5)
        with pytest.raises(SequenceTooLong, match=f"{most + 1} tokens; allowed: {most}"):
            rewards.score(ScoreRequest(items=(ScoreItem(token_ids=(5, *longest)),)))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_rows_of_different_numbers_of_ends_share_a_request(kind: str, tmp_path: Path) -> None:
    folder = classifier_folder(kind, tmp_path / kind)
    rows = [[5, 6, 7, 1], [5, 1, 9, 10, 11, 1], [8, 1]]
    items = (*(ScoreItem(token_ids=tuple(row)) for row in rows), ScoreItem(token_ids=(5, 6)))
    with running("reward", model_folder=folder) as server, client(server) as rewards:
        found = rewards.score(ScoreRequest(items=items, per_item_errors=True)).scores
        assert [one.reward for one in found[:3]] == pytest.approx(library_scores(folder, rows), abs=1e-5)
        error = found[3].error  # it has no end to be read at
        assert error is not None and error.field == "items[3].token_ids" and "without EOS" in str(error)
        with pytest.raises(InvalidRequest, match=r"items\[3\]"):
            rewards.score(ScoreRequest(items=items))


def test_a_tokenizer_names_the_length_that_a_configuration_does_not(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_ends()
    model = make_classifier("t5", tokenizer)
    tokenizer.model_max_length = 40
    save_model(model, tokenizer, tmp_path / "t5")
    with running("reward", model_folder=tmp_path / "t5") as server, client(server) as rewards:
        assert rewards.info().models[0].max_sequence_tokens == 40
    with pytest.raises(ModelFolderError, match=r"none of max_position_embeddings, .* n_ctx$"):
        max_sequence_tokens(model)  # as a policy's is asked for
    model.config.model_type = "another"  # type: ignore[misc]
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ModelFolderError, match="and its tokenizer no model_max_length"):
        max_sequence_tokens(model, tokenizer)


def no_end(config: dict[str, Any]) -> None:
    config["eos_token_id"] = None


def padding_is_the_end(config: dict[str, Any]) -> None:
    config["pad_token_id"] = config["eos_token_id"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("xlnet", lambda config: None, "XLNetForSequenceClassification: summary_type is 'last'"),
        ("fnet", lambda config: None, "FNetForSequenceClassification: it takes no attention mask"),
        ("t5", no_end, "T5ForSequenceClassification: eos_token_id is None"),
        ("t5", padding_is_the_end, "eos_token_id is 1 and pad_token_id 1"),
    ],
)
def test_a_score_that_depends_on_padding_is_refused(
    kind: str, change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    folder = classifier_folder(kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=said):
        load_classifier(folder)


def test_a_policy_needs_sdpa_still(tmp_path: Path) -> None:
    folder = classifier_folder("gptj", tmp_path / "gptj")
    with pytest.raises(ModelFolderError, match="scaled_dot_product_attention"):
        load_policy(folder)
