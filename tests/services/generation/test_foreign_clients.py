"""Clients of other makers, unmodified, against a server in a process of its own.

Those whose packages would not live beside ours get a virtual environment each below `.venv-foreign-clients`, made when
it is first needed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import yaml
from huggingface_hub import AsyncInferenceClient, InferenceClient

from processes import ServiceProcess, serving
from trimtab.types import GenerateRequest, GenerationPrompt, SamplingParams
from trimtab_models.loading import load_policy
from trimtab_models.tokenizer import encode_prompt, load_tokenizer

ENVIRONMENTS = Path(__file__).parents[3] / ".venv-foreign-clients"
TEXT = "The quick brown fox"


class Server:
    """A generation service in a process of its own, once it serves.

    Args:
        process: of the service.
        folder: of its configuration.
    """

    def __init__(self, process: ServiceProcess, folder: Path) -> None:
        self.process = process
        self.url = f"http://{json.loads((folder / 'ready.json').read_text())['http']}"
        give_up = time.monotonic() + 60
        while not self._serves():
            assert time.monotonic() < give_up, process.log()
            time.sleep(0.05)

    def _serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False


@pytest.fixture(scope="module")
def server(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving("generation", folder, model_folder=str(llama_folder), slots=4, deterministic=True) as process:
        yield Server(process, folder)


def environment(*packages: str) -> Path:
    """The interpreter of a virtual environment with the packages."""
    folder = ENVIRONMENTS / re.split(r"[\[=]", packages[0])[0]
    done, python = folder / "installed.json", folder / "bin" / "python"
    if not done.exists() or json.loads(done.read_text()) != list(packages):
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, timeout=1500)
        done.write_text(json.dumps(packages))
    return python


def run(python: Path, *arguments: str, folder: Path) -> str:
    """What a program wrote, which must have ended well and without a network but this machine's."""
    alone = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env={**os.environ, **alone}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# openai


@pytest.fixture(scope="module")
def openai_client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_openai_completions(openai_client: Any, server: Server) -> None:
    answer = openai_client.completions.create(
        model="policy", prompt=[[5, 6, 7]], max_tokens=12, seed=3, n=2, temperature=0.9, logprobs=2
    )
    prompt = GenerationPrompt(prompt_id="p", prompt=(5, 6, 7), seed=3, num_samples=2)
    with server.process.client(60) as connection:
        results = connection.generate(
            GenerateRequest(
                prompts=(prompt,), sampling=SamplingParams(max_new_tokens=12, temperature=0.9), return_text=True
            )
        )
        wanted = {result.completion.sample_index: result.completion for result in results if result.completion}
    for choice in answer.choices:
        assert choice.text == wanted[choice.index].text
        assert choice.logprobs.token_logprobs == [float(x) for x in wanted[choice.index].logprobs]
        assert all(len(top) in (2, 3) or "\ufffd" in top for top in choice.logprobs.top_logprobs)
    assert answer.system_fingerprint == "v0" and answer.usage.completion_tokens > 0


def test_openai_chat_whole_and_streamed(openai_client: Any, llama_folder: Path) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    asked = {"model": "policy", "messages": messages, "max_completion_tokens": 20, "seed": 5}
    answer = openai_client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    tokenizer = load_tokenizer(llama_folder)
    assert answer.usage.prompt_tokens == len(encode_prompt(tokenizer, messages))
    assert answer.choices[0].message.role == "assistant"
    assert all(len(entry.top_logprobs) == 2 for entry in answer.choices[0].logprobs.content)
    chunks = list(openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content and len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    stop = text[4:6]
    with openai_client.chat.completions.stream(**asked, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text.partition(stop)[0]
    assert final.choices[0].message.role == "assistant" and final.choices[0].finish_reason == "stop"


def test_openai_models_and_errors(openai_client: Any) -> None:
    assert [model.id for model in openai_client.models.list()] == ["policy"]
    assert openai_client.models.retrieve("policy").owned_by == "trimtab"
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.completions.create(model="gpt-4", prompt=TEXT)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.completions.create(model="policy", prompt=TEXT, frequency_penalty=1)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.BadRequestError) as too_long:
        openai_client.completions.create(model="policy", prompt=TEXT, max_tokens=1000)
    assert too_long.value.code == "context_length_exceeded" and "256" in str(too_long.value)


# huggingface_hub


def test_huggingface_text_generation(server: Server) -> None:
    client = InferenceClient(server.url, timeout=60)
    asked: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "seed": 8}
    whole = client.text_generation(TEXT, details=True, decoder_input_details=True, **asked)
    assert client.text_generation(TEXT, **asked) == whole.generated_text
    assert "".join(token.text for token in whole.details.prefill) == TEXT
    events = list(client.text_generation(TEXT, details=True, stream=True, **asked))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details is not None and events[-1].details.finish_reason == whole.details.finish_reason
    shown = "".join(client.text_generation(TEXT, stream=True, **asked))
    assert shown == "".join(token.text for token in whole.details.tokens if not token.special)


def test_huggingface_chat(server: Server) -> None:
    client = InferenceClient(base_url=server.url, timeout=60)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 20, "seed": 8}
    whole = client.chat_completion(**asked)
    chunks = list(client.chat_completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert whole.system_fingerprint == "v0"


def test_huggingface_asynchronous(server: Server) -> None:
    async def ask() -> list[str]:
        client = AsyncInferenceClient(server.url, timeout=60)
        return list(await asyncio.gather(*(client.text_generation(TEXT, max_new_tokens=8, seed=1) for _ in range(4))))

    assert len(set(asyncio.run(ask()))) == 1


# text-generation, TGI's own client


TGI_CALLS = """
import json, sys
from text_generation import Client
from text_generation.errors import ValidationError

client = Client(sys.argv[1], timeout=60)
whole = client.generate("The quick brown fox", do_sample=True, seed=8, max_new_tokens=20, decoder_input_details=True)
events = list(client.generate_stream("The quick brown fox", do_sample=True, seed=8, max_new_tokens=20))
assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
assert events[-1].generated_text == whole.generated_text
assert events[-1].details.finish_reason == whole.details.finish_reason
stopped = client.generate("The quick brown fox", do_sample=True, seed=8, max_new_tokens=20, stop_sequences=["o"])
assert "o" not in stopped.generated_text
chat = client.chat([{"role": "user", "content": "hello"}], max_tokens=5, seed=1)
assert chat.choices[0].message.role == "assistant"
try:
    client.generate("The quick brown fox", truncate=3)
except ValidationError as error:
    assert "truncate" in str(error), error
else:
    raise AssertionError("truncate was taken")
print(json.dumps([whole.generated_text, [token.id for token in whole.details.prefill]]))
"""


@pytest.mark.slow  # it installs packages
@pytest.mark.timeout(1800)
def test_text_generation_client(server: Server, tmp_path: Path) -> None:
    told = run(environment("text-generation==0.7.0"), "-c", TGI_CALLS, server.url, folder=tmp_path)
    text, prefill = json.loads(told)
    found = InferenceClient(server.url).text_generation(
        TEXT, details=True, decoder_input_details=True, do_sample=True, seed=8, max_new_tokens=20
    )
    assert text == found.generated_text and prefill == [token.id for token in found.details.prefill]


# lm-eval


QUESTIONS = [
    {"question": "What steers the rudder? A", "choices": [" trim tab", " dog", " ship é"], "answer": 0},
    {"question": "What does the dog do? It", "choices": [" sleeps", " steers the ship", " jumps"], "answer": 1},
    {"question": "The quick brown fox", "choices": [" jumps over the lazy dog", " sleeps"], "answer": 1},
]
TASK = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
GENERATION_TASK = {
    "task": "tiny_words",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "question",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["e", "<|end|>"], "max_gen_toks": 12, "temperature": 0},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.mark.slow  # it installs packages
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tokenized", [True, False])
def test_lm_eval_local_completions(server: Server, llama_folder: Path, tmp_path: Path, tokenized: bool) -> None:
    """Its log-likelihoods are those of the model itself, its completions those of greedy sampling."""
    _write_tasks(tmp_path)
    python = environment("lm-eval[api]==0.4.13", "transformers>=5.16,<6")
    asked = f"model=policy,base_url={server.url}/v1/completions,tokenizer={llama_folder},tokenizer_backend=huggingface"
    asked += f",tokenized_requests={tokenized},max_length=256,num_concurrent=2,max_retries=1"
    tasks = ["--tasks", "tiny_choice,tiny_words", "--include_path", str(tmp_path)]
    out = ["--output_path", str(tmp_path / "out"), "--log_samples", "--batch_size", "2" if tokenized else "1"]
    run(python, "-m", "lm_eval", "--model", "local-completions", "--model_args", asked, *tasks, *out, folder=tmp_path)
    for row in _samples(tmp_path, "tiny_choice"):
        for choice, told in zip(row["doc"]["choices"], row["resps"], strict=True):
            logprob, is_greedy = (float(told[0][0]), str(told[0][1]) == "True")
            expected, greedy = _loglikelihood(llama_folder, row["doc"]["question"], choice)
            assert math.isclose(logprob, expected, abs_tol=1e-3) and is_greedy == greedy
    texts = {row["doc"]["question"]: row["resps"][0][0] for row in _samples(tmp_path, "tiny_words")}
    client = InferenceClient(server.url)
    for question, text in texts.items():
        assert text == client.text_generation(question, max_new_tokens=12, stop=["e", "<|end|>"])


def _write_tasks(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for task in (TASK, GENERATION_TASK):
        files = {"dataset_kwargs": {"data_files": {"test": str(rows)}}}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, **files}))


def _samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == len(QUESTIONS)
    return rows


def _loglikelihood(folder: Path, context: str, continuation: str) -> tuple[float, bool]:
    """As lm-eval defines it: of the tokens that the continuation adds, and whether each is the likeliest."""
    tokenizer, model = load_tokenizer(folder), load_policy(folder)
    ids = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
    picked = [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]
    return sum(picked), all(int(logprobs[i - 1].argmax()) == ids[i] for i in range(start, len(ids)))
