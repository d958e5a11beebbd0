"""Model folders in and out: three architectures, every way in which a folder can be wrong, and stock compatibility."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from tiny_models import make_policy, make_tokenizer
from trimtab.errors import ConfigError, ModelFolderError
from trimtab_models.anatomy import score_weight
from trimtab_models.heads import read_rewards
from trimtab_models.loading import (
    DTYPES,
    load_policy,
    load_reward_model,
    max_sequence_tokens,
    named_parameter_tensors,
    pad_token_id,
    reward_bias,
    reward_model_from_policy,
    save_model,
    set_reward_bias,
)
from trimtab_models.packing import pad_right
from trimtab_models.tokenizer import load_tokenizer

torch.set_num_threads(1)


@pytest.fixture
def copy(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def edit_tensors(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_policy(policy_folder: Path) -> None:
    model = load_policy(policy_folder)
    assert not model.training and max_sequence_tokens(model) == 256
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    again = load_policy(policy_folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(llama_folder: Path, dtype: str) -> None:
    assert {p.dtype for p in load_policy(llama_folder, dtype=dtype).parameters()} == {DTYPES[dtype]}


def test_dropout(policy_folder: Path) -> None:
    ids = torch.arange(5, 25)[None]
    for dropout, same in ((0.0, True), (0.5, False)):
        model = load_policy(policy_folder, dropout=dropout).train()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) is same


def test_a_reward_model_has_no_dropout_of_its_policys(policy_folder: Path) -> None:
    model = reward_model_from_policy(policy_folder, tokenizer=load_tokenizer(policy_folder), seed=5)
    config = model.config.to_dict()
    assert not any(config[key] for key in config if "dropout" in key or key.endswith("_pdrop"))
    ids, lengths = torch.arange(5, 60)[None], torch.tensor([55])
    with torch.no_grad():
        assert torch.equal(read_rewards(model.train(), ids, lengths), read_rewards(model.eval(), ids, lengths))


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_wrong_options(llama_folder: Path, options) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(llama_folder, **options)
    assert caught.value.field in options and caught.value.limit


def test_tied_weights_are_named_once(policy_folder: Path) -> None:
    model = load_policy(policy_folder)
    stored = load_file(policy_folder / "model.safetensors")
    named = named_parameter_tensors(model)
    assert set(named) == set(stored) and list(named) == sorted(named)
    assert all(torch.equal(named[name], stored[name]) for name in stored)
    output, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    is_tied = output.data_ptr() == embedding.data_ptr()
    assert is_tied is bool(model.config.tie_word_embeddings)
    assert len({tensor.data_ptr() for tensor in named.values()}) == len(named)


# What is wrong with a folder


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_tokenizer])
def test_no_folder(tmp_path: Path, load) -> None:
    with pytest.raises(ModelFolderError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_pickled_weights_only(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"no \*.safetensors file .*pickled weights are never loaded"):
        load_policy(copy)


def test_missing_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelFolderError, match="no config.json"):
        load_policy(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "no such type"}', '{"model_type": 3}'])
def test_broken_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(ModelFolderError):
        load_policy(copy)


def test_missing_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelFolderError, match="no tokenizer"):
        load_tokenizer(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_broken_tokenizer(copy: Path, content: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFolderError):
        load_tokenizer(copy)


def test_missing_tensor(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelFolderError, match="missing keys: model.norm.weight"):
        load_policy(copy)


def test_extra_tensor(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update(stray=torch.zeros(2)))
    with pytest.raises(ModelFolderError, match="unexpected keys: stray"):
        load_policy(copy)


def test_tensor_of_another_shape(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}))
    with pytest.raises(ModelFolderError, match="model.norm.weight"):
        load_policy(copy)


@pytest.mark.parametrize("damage", ["empty", "truncated", "header", "text"])
def test_corrupt_safetensors(copy: Path, damage: str) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    bad = {"empty": b"", "truncated": whole[:-100], "header": b"\xff" * 8 + whole[8:], "text": b"not a tensor"}[damage]
    file.write_bytes(bad)
    with pytest.raises(ModelFolderError, match=r"model.safetensors: not a safetensors file"):
        load_policy(copy)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": {"a": "model-2-of-2.safetensors"}}'])
def test_broken_index(copy: Path, content: str) -> None:
    (copy / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelFolderError, match="model.safetensors.index.json"):
        load_policy(copy)


def test_no_context_length() -> None:
    class Endless:
        config = PreTrainedConfig()

    with pytest.raises(ModelFolderError, match="Endless: its configuration has none of max_position_embeddings"):
        max_sequence_tokens(Endless())


# Reward models


def test_a_policy_is_no_reward_model_and_the_other_way_round(llama_folder: Path, reward_folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="no sequence classifier"):
        load_reward_model(llama_folder)
    with pytest.raises(ModelFolderError, match="do not fit"):
        load_policy(reward_folder)


def test_several_labels(reward_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reward_folder, tmp_path / "copy"))
    edit_config(copy, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(ModelFolderError, match="num_labels is 2; a reward model has 1"):
        load_reward_model(copy)


def test_head_starts_with_the_published_deviation(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    save_model(make_policy("llama", len(tokenizer), hidden=1024, layers=1), tokenizer, tmp_path / "wide")
    heads = [
        score_weight(reward_model_from_policy(tmp_path / "wide", tokenizer=tokenizer, seed=seed)) for seed in (1, 1, 2)
    ]
    expected = 1 / (1024 + 1) ** 0.5
    assert float(heads[0].detach().std()) == pytest.approx(expected, rel=5 / (2 * 1024) ** 0.5)
    assert abs(float(heads[0].detach().mean())) < 5 * expected / 1024**0.5
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_backbone_is_the_policys(policy_folder: Path) -> None:
    policy = load_policy(policy_folder)
    model = reward_model_from_policy(policy_folder, tokenizer=load_tokenizer(policy_folder), seed=1)
    ours, theirs = model.base_model.state_dict(), policy.base_model.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not model.training and reward_bias(model) == 0.0
    assert (
        model.config.pad_token_id is not None
        and model.config.pad_token_id != load_tokenizer(policy_folder).eos_token_id
    )


def test_padding_is_never_eos() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert pad_token_id(tokenizer) != tokenizer.eos_token_id


def test_stock_reload_ranks_alike_shifted_by_the_offset(policy_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(policy_folder)
    model = reward_model_from_policy(policy_folder, tokenizer=tokenizer, seed=5)
    set_reward_bias(model, 0.75)
    save_model(model, tokenizer, tmp_path / "reward")
    ours = load_reward_model(tmp_path / "reward")
    assert reward_bias(ours) == 0.75

    eos, pad = tokenizer.eos_token_id, ours.config.pad_token_id
    generator = torch.Generator().manual_seed(0)
    sequences = [[*torch.randint(5, 200, (n,), generator=generator).tolist(), eos] for n in (1, 9, 4, 17, 2)]
    ids, lengths = pad_right(sequences)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        mine = read_rewards(ours, ids, lengths)
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
        theirs = stock(input_ids=torch.where(mask, ids, pad), attention_mask=mask.long()).logits[:, 0]
    assert stock.config.num_labels == 1
    assert torch.allclose(theirs - 0.75, mine, atol=1e-5)
    assert torch.equal(theirs.argsort(), mine.argsort())


# Saving


def test_round_trip(policy_folder: Path, tmp_path: Path) -> None:
    model = load_policy(policy_folder)
    save_model(model, load_tokenizer(policy_folder), tmp_path / "deep" / "saved")
    again = load_policy(tmp_path / "deep" / "saved")
    one, two = named_parameter_tensors(model), named_parameter_tensors(again)
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    names = {path.name for path in (tmp_path / "deep" / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


class Unsavable:
    """A tokenizer whose disk is full."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_save_leaves_what_was_there(llama_folder: Path, tmp_path: Path, before: bool) -> None:
    model = load_policy(llama_folder)
    target = tmp_path / "saved"
    if before:
        save_model(model, load_tokenizer(llama_folder), target)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, Unsavable(), target)
    assert target.exists() is before
    assert [path.name for path in tmp_path.iterdir()] == (["saved"] if before else [])
    if before:
        load_policy(target)
        load_tokenizer(target)


def test_saving_replaces_the_whole_folder(llama_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    target.mkdir()
    (target / "stray.safetensors").write_bytes(b"old")
    save_model(load_policy(llama_folder), load_tokenizer(llama_folder), target)
    assert not (target / "stray.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    load_policy(target)
