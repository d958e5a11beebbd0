"""Log-probs are the model's own whatever lies between its last hidden state and its logits, or loading says so."""

from pathlib import Path

import pytest
import torch
from tests.models.architectures import make_architecture, save_architecture
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tiny_models import make_tokenizer
from trimtab.errors import ModelFolderError
from trimtab_models.loading import DTYPES, load_policy, reward_model_from_policy, save_model
from trimtab_models.logprobs import check_logprobs, completion_logprobs, token_logprobs

torch.set_num_threads(1)
CASES = ("llama", "gpt2", "qwen2", "granite", "hyperclovax", "cohere", "gemma2", "gemma3", "mistral")


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_logprobs_are_the_models_own(tmp_path: Path, case: str, temperature: float) -> None:
    model = load_policy(save_architecture(case, make_tokenizer(), tmp_path / case))
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    found, _ = completion_logprobs(model, ids, torch.tensor([4, 4]), torch.tensor([16, 16]), temperature=temperature)
    own = (model(input_ids=ids).logits[:, 3:-1] / temperature).log_softmax(-1).gather(-1, ids[:, 4:, None])[..., 0]
    assert (found - own).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_rounding_alone_is_no_reason_to_refuse(case: str, dtype: str) -> None:
    check_logprobs(make_architecture(case).to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_that_no_setting_names_is_refused_in_every_dtype(dtype: str) -> None:
    model = make_architecture("cohere").to(DTYPES[dtype])
    model.config.logit_scale = None  # the model has its own copy
    with pytest.raises(ModelFolderError, match="CohereForCausalLM .* nats"):
        check_logprobs(model)


class MadeUpConfig(LlamaConfig):
    model_type = "made_up"


class MadeUpForCausalLM(LlamaForCausalLM):
    """Sharpens its logits by a rule that no setting names."""

    config_class = MadeUpConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * output.logits.abs()
        return output


def test_an_output_layer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    AutoConfig.register("made_up", MadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM, exist_ok=True)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MadeUpForCausalLM(MadeUpConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes))
    save_model(model, tokenizer, tmp_path / "made_up")
    with pytest.raises(ModelFolderError, match=r"made_up: MadeUpForCausalLM .* differ .* nats; allowed") as caught:
        load_policy(tmp_path / "made_up")
    assert caught.value.value == "MadeUpForCausalLM"


def test_weights_that_are_not_finite_are_not_taken_for_an_unknown_architecture() -> None:
    model = make_architecture("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = float("nan")
    check_logprobs(model)


def test_a_reward_model_has_no_logprobs(llama_folder: Path) -> None:
    model = reward_model_from_policy(llama_folder, tokenizer=make_tokenizer(), seed=0)
    with pytest.raises(ModelFolderError, match="LlamaForSequenceClassification: it has no output embeddings"):
        token_logprobs(model, torch.zeros(1, 32), torch.zeros(1, dtype=torch.long))
