"""Encoders as reward models, and heads of several labels: scored as their library scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from running import client, running
from tiny_models import make_tokenizer
from trimtab import Client
from trimtab.errors import InvalidRequest, ModelFolderError, TrimtabError
from trimtab.types import ScoreItem, ScoreRequest
from trimtab_models.loading import load_classifier, save_model

PAIRS = (("say something", "helpful"), ("the dog", "It sleeps, twice."), ("a ship", "a rudder"), ("x", "y" * 40))
ITEMS = tuple(ScoreItem(prompt=prompt, completion=completion) for prompt, completion in PAIRS)


def score(rewards: Client, model: str, *, items: tuple[ScoreItem, ...] = ITEMS) -> list[float]:
    return [one.reward for one in rewards.score(ScoreRequest(items=items, model=model)).scores]


def make_encoder_tokenizer() -> PreTrainedTokenizerFast:
    words = "say something helpful the dog It sleeps twice a ship rudder x y , .".split()
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def encoder(kind: str, vocab_size: int, labels: int) -> Any:
    sizes = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        num_labels=labels,
        pad_token_id=0,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(type_vocab_size=2, **sizes))
    return RobertaForSequenceClassification(RobertaConfig(type_vocab_size=2, **sizes))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_scores_as_its_library_does(kind: str, tmp_path: Path) -> None:
    tokenizer = make_encoder_tokenizer()
    save_model(encoder(kind, len(tokenizer), 1), tokenizer, tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder").eval()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    with torch.inference_mode():
        expected = [float(model(**theirs(*pair, return_tensors="pt")).logits[0, 0]) for pair in PAIRS]
    with running("reward", model_folder=tmp_path / "encoder") as server, client(server) as rewards:
        assert score(rewards, "") == pytest.approx(expected, abs=1e-5)
        ids = tuple(theirs(*PAIRS[1])["input_ids"])
        with torch.inference_mode():
            one_segment = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
        assert score(rewards, "", items=(ScoreItem(token_ids=ids),)) == pytest.approx([one_segment], abs=1e-5)
        with pytest.raises(InvalidRequest, match=r"items\[0\].prompt: \w+ reads a prompt and a completion that are"):
            score(rewards, "", items=(ScoreItem(prompt=(5, 6), completion="dog"),))
        most = rewards.info().models[0].max_sequence_tokens
        assert most == (66 if kind == "bert" else 65)  # RoBERTa counts positions from behind its padding's
        assert len(score(rewards, "", items=(ScoreItem(token_ids=(5,) * most),))) == 1
        with pytest.raises(TrimtabError, match="allowed"):
            score(rewards, "", items=(ScoreItem(token_ids=(5,) * (most + 1)),))


def test_several_labels_need_a_choice(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        pad_token_id=0,
        initializer_range=0.2,
    )
    save_model(LlamaForSequenceClassification(config), tokenizer, tmp_path / "three")
    with pytest.raises(ModelFolderError, match="num_labels is 3; a reward model has 1, or `logit` says which it is"):
        load_classifier(tmp_path / "three")
    with pytest.raises(ModelFolderError, match="logit is 3; the model has 3 labels, counted from 0"):
        load_classifier(tmp_path / "three", logit=3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "three").eval()
    ids = (5, 6, 7, 8)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].tolist()
    folder = str(tmp_path / "three")
    declared = {str(logit): {"kind": "model", "model_folder": folder, "logit": logit} for logit in range(3)}
    with running("reward", models=declared) as server, client(server) as rewards:
        found = [score(rewards, name, items=(ScoreItem(token_ids=ids),))[0] for name in declared]
    assert found == pytest.approx(expected, abs=1e-5)
