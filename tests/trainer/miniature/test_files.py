"""Dataset files: formats, determinism, disjoint sets; and the tokenizer and model that belong to them."""

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_trainer.miniature.demonstrations import FLAWED_SHARE, corruptions
from trimtab_trainer.miniature.files import Sizes, demonstration_rows, documents, write_datasets
from trimtab_trainer.miniature.gold import gold
from trimtab_trainer.miniature.tokenizer import (
    CONTEXT_TOKENS,
    base_config,
    build_tokenizer,
    save_base,
    untrained_policy,
)
from trimtab_trainer.miniature.world import MAX_ANSWER_WORDS, Kind, is_held_out, make_prompt, parse_prompt

SIZES = Sizes(pretrain=300, pretrain_held_out=60, demonstrations=120, prompts=300, prompts_held_out=80)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_datasets(tmp_path_factory.mktemp("miniature"), seed=7, sizes=SIZES)


def test_each_file_has_its_fields_and_its_size(written: dict[str, Path]) -> None:
    fields = {
        "pretrain": {"text"},
        "pretrain_held_out": {"text"},
        "demonstrations": {"prompt", "completion", "category", "labeler"},
        "prompts": {"prompt", "category"},
        "prompts_held_out": {"prompt", "category"},
    }
    assert set(written) == set(fields)
    for name, path in written.items():
        found = rows(path)
        assert len(found) == getattr(SIZES, name)
        assert all(set(row) == fields[name] and all(row.values()) for row in found)
    stated = json.loads((written["prompts"].parent / "miniature.json").read_text())
    assert stated["seed"] == 7
    assert stated["simulated"] is True
    assert stated["sizes"]["prompts"] == 300


def test_the_same_seed_writes_the_same_bytes(written: dict[str, Path], tmp_path: Path) -> None:
    again = write_datasets(tmp_path / "again", seed=7, sizes=SIZES)
    other = write_datasets(tmp_path / "other", seed=8, sizes=SIZES)
    for name in written:
        assert again[name].read_bytes() == written[name].read_bytes()
        assert other[name].read_bytes() != written[name].read_bytes()


def test_a_larger_file_starts_with_the_smaller_one() -> None:
    assert list(documents(40, seed=1, held_out=False))[:10] == list(documents(10, seed=1, held_out=False))
    assert list(demonstration_rows(40, seed=1))[:10] == list(demonstration_rows(10, seed=1))


def test_no_prompt_and_no_story_is_shared_between_training_and_held_out(written: dict[str, Path]) -> None:
    held_out = [row["prompt"] for row in rows(written["prompts_held_out"])]
    training = [row["prompt"] for row in rows(written["prompts"])]
    shown = [row["prompt"] for row in rows(written["demonstrations"])]
    for prompts in (held_out, training, shown):
        assert len(set(prompts)) == len(prompts)
    assert not set(held_out) & set(training)
    assert not set(held_out) & set(shown)
    assert not set(training) & set(shown)
    assert not {parse_prompt(p).story for p in held_out} & {parse_prompt(p).story for p in training + shown}
    assert all(is_held_out(parse_prompt(p).story) for p in held_out)


def test_the_stated_share_of_demonstrations_is_flawed() -> None:
    found = list(demonstration_rows(2000, seed=0))
    flawed = sum(gold(row["prompt"], row["completion"]).score < 0.999 for row in found) / len(found)
    assert flawed == pytest.approx(FLAWED_SHARE, abs=0.04)
    perfect = demonstration_rows(50, seed=0, flawed_share=0.0)
    assert all(gold(row["prompt"], row["completion"]).score > 0.999 for row in perfect)
    assert {row["category"] for row in found} == {kind.value for kind in Kind}


@pytest.mark.parametrize("kind", list(Kind))
def test_corruptions_differ_and_are_never_right(kind: Kind) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        prompt = make_prompt(rng, held_out=False, kind=kind)
        flawed = corruptions(rng, prompt, count=4)
        assert len(flawed) == len(set(flawed)) == 4
        assert all(gold(prompt, answer).score < 0.999 for answer in flawed)


def test_one_word_is_one_token(written: dict[str, Path]) -> None:
    tokenizer = build_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    for row in rows(written["demonstrations"]):
        text = f"{row['prompt']} {row['completion']}"
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert len(tokenizer.encode(row["prompt"])) + MAX_ANSWER_WORDS + 1 <= CONTEXT_TOKENS
    assert all(len(row["text"].split()) < CONTEXT_TOKENS // 2 for row in rows(written["pretrain"]))


def test_the_base_folder_loads_with_stock_classes(tmp_path: Path) -> None:
    save_base(tmp_path, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    text = "story : mia keeps cats ."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template is None
    config = base_config()
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    assert model.config.vocab_size == len(tokenizer)
    assert 150_000 < sum(p.numel() for p in model.parameters()) < 300_000
    same = untrained_policy(3).state_dict()
    assert all((value == same[name]).all() for name, value in model.state_dict().items())
