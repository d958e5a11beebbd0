"""verl: rewards of a Trimtab service through `custom_reward_function`.

In a file of yours, `rewards.py`:

    from trimtab.integrations.verl import compute_score, compute_score_batch

and on verl's command line (newer versions put `reward.` in front of each key):

    custom_reward_function.path=rewards.py
    custom_reward_function.name=compute_score
    +custom_reward_function.reward_kwargs.address=127.0.0.1:50051

With verl's reward manager `batch` the name is `compute_score_batch`, which needs one request where the other manager
needs one for each sample. verl itself is not run in Trimtab's tests: these are the signatures of its documentation and
of its reward managers, tested against a real reward service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab.integrations.rewards import Conversation, RemoteRewards

__all__ = ["compute_score", "compute_score_batch"]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    address: str,
    prompt_key: str = "prompt",
    **options: Any,
) -> float:
    """The raw reward of one sample.

    verl gives a function no prompt: the dataset has to have it in `extra_info`.

    Args:
        data_source: not used.
        solution_str: the completion.
        ground_truth: not used.
        extra_info: with the prompt: a text, or messages.
        address: host:port of the reward service.
        prompt_key: where in `extra_info` the prompt is.
        options: further attributes of `RemoteRewards`.

    Raises:
        DataError: there is no prompt.
        TrimtabError: what the service answered.
    """
    return _rewards([solution_str], [extra_info], ["solution_str"], address, prompt_key, options)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[object],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    address: str,
    prompt_key: str = "prompt",
    **options: Any,
) -> list[float]:
    """The raw rewards of a batch, in its order; arguments and errors as in `compute_score`."""
    names = [f"solution_strs[{index}]" for index in range(len(solution_strs))]
    return _rewards(solution_strs, extra_infos, names, address, prompt_key, options)


def _rewards(
    solutions: Sequence[str],
    extra_infos: Sequence[Mapping[str, Any] | None],
    names: Sequence[str],
    address: str,
    prompt_key: str,
    options: Mapping[str, Any],
) -> list[float]:
    prompts = [_prompt(extra_info, prompt_key, name) for extra_info, name in zip(extra_infos, names, strict=True)]
    return RemoteRewards(address, **options).of_pairs(prompts, solutions, names)


def _prompt(extra_info: Mapping[str, Any] | None, key: str, name: str) -> str | Conversation:
    prompt = (extra_info or {}).get(key)
    if prompt is None:
        raise DataError(
            f"{name}: its extra_info has no {key!r}; verl gives a reward function no prompt, so the dataset must have "
            "it there, under the key that reward_kwargs.prompt_key says",
            field=f"extra_info.{key}",
        )
    return prompt if isinstance(prompt, str) else list(prompt)  # a Parquet file has messages as an array
