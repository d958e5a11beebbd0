"""`trimtab generate` and `logprobs`: one call each, answers as text or as JSON lines."""

from __future__ import annotations

import json
from typing import Any

import click

from trimtab.cli.connect import client_of, connection_options
from trimtab.cli.rows import json_option
from trimtab.types import (
    GenerateRequest,
    GenerationPrompt,
    LogProbsItem,
    LogProbsOptions,
    LogProbsRequest,
    Priority,
    SamplingParams,
)

__all__ = ["generate", "logprobs"]


@click.command()
@click.argument("prompts", nargs=-1, required=True)
@click.option("--samples", default=1, show_default=True, help="Completions of each prompt.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--max-new-tokens", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
@json_option
@connection_options
def generate(
    prompts: tuple[str, ...],
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    as_json: bool,
    **connection: Any,
) -> None:
    """Complete PROMPTS with the policy that is served; each completion is printed the moment it ends."""
    request = GenerateRequest(
        prompts=tuple(
            GenerationPrompt(prompt_id=str(index), prompt=prompt, seed=seed, num_samples=samples)
            for index, prompt in enumerate(prompts)
        ),
        sampling=SamplingParams(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens),
        priority=Priority.INTERACTIVE,
        return_text=True,
    )
    with client_of("generation", **connection) as client:
        for result in client.generate(request):
            done = result.completion
            if done is None:
                continue
            if as_json:
                row = {
                    "prompt": prompts[int(result.prompt_id)],
                    "completion": done.text,
                    "finish_reason": done.finish_reason.value,
                    "token_ids": done.token_ids,
                    "logprobs": done.logprobs.tolist(),
                    "version": result.served.version,
                }
                click.echo(json.dumps(row))
            else:
                click.echo(f"--- {prompts[int(result.prompt_id)]}\n{done.text}")


@click.command()
@click.argument("token_ids", nargs=-1, type=int, required=True)
@click.option("--start-index", default=1, show_default=True, help="First token whose log-prob is wanted.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connection_options
def logprobs(
    token_ids: tuple[int, ...], start_index: int, temperature: float, as_json: bool, **connection: Any
) -> None:
    """Log-probs of TOKEN_IDS under the reference policy, one a line."""
    request = LogProbsRequest(
        items=(LogProbsItem(token_ids=token_ids, start_index=start_index),),
        options=LogProbsOptions(temperature=temperature),
        priority=Priority.INTERACTIVE,
    )
    with client_of("reference", **connection) as client:
        reply = client.logprobs(request)
    found, asked = reply.results[0], token_ids[start_index:]
    if as_json:
        row = {"token_ids": asked, "logprobs": found.logprobs.tolist(), "version": reply.served.version}
        click.echo(json.dumps(row))
        return
    for token, logprob in zip(asked, found.logprobs.tolist(), strict=True):
        click.echo(f"{token}\t{logprob:.6f}")
