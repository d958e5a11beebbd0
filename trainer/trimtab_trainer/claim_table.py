"""Which claims of InstructGPT, and of DPO, a run can check, and what it measured of each.

A claim is in the table when the models that it speaks of were evaluated, under the names base, base_4x, few_shot, sft,
ppo (gamma 0), ppo_without_kl, ppo_ptx, dpo and ptx_control. Preference is by the gold score where there is one, else by
a judge that no policy was optimised against, else by the reward model that PPO learnt from, which the note then says.

DPO has two lines of its own beside the paper's, its KL to PPO's start in the note: a preference bought with more KL is
no better method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab_trainer.claims import Claim, WinRate, give_back, mean_difference, sample_mean, win_rate
from trimtab_trainer.context import StageResult
from trimtab_trainer.data.splits import HELD_OUT_GROUP

__all__ = ["Evaluated", "claim_table", "figures_of", "preference"]

_JUDGES = {
    "gold": "gold score",
    "judge": "a reward model that no policy was optimised against",
    "reward": "the reward model that PPO was trained on, which favours PPO",
}
"""What preference may be measured by, the most trustworthy first."""


@dataclass(frozen=True)
class Evaluated:
    """What is known of one model.

    Attributes:
        answers: for each prompt its answers, as saved in samples/NAME.jsonl.
        losses: [passage] summed loss of each held-out pretraining passage, nats; None when none was measured.
        tokens: [passage] counted tokens.
        figures: name to {"value", "low", "high"}, as saved in samples/NAME.json.
    """

    answers: Sequence[Sequence[Mapping[str, Any]]]
    losses: npt.NDArray[np.float64] | None = None
    tokens: npt.NDArray[np.float64] | None = None
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, key: str) -> list[list[float]]:
        """One figure of every answer, by prompt; empty when the answers do not have it."""
        if not self.answers or key not in self.answers[0][0]:
            return []
        return [[float(answer[key]) for answer in answers] for answers in self.answers]


def figures_of(model: Evaluated, *, samples: int, seed: int) -> dict[str, dict[str, float]]:
    """Means over the prompts with their 95 % intervals: reward, judge, gold and so on, and the pretraining loss."""
    found: dict[str, dict[str, float]] = {}
    for key in ("reward", "judge", "gold", "hallucinated", "kl", "ended", "tokens"):
        if values := model.of(key):
            estimate = sample_mean(values, samples=samples, seed=seed)
            found[key] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    if model.losses is not None and model.tokens is not None:
        found["pretraining_loss"] = {"value": float(model.losses.sum() / model.tokens.sum())}
    return found


def claim_table(
    models: Mapping[str, Evaluated],
    results: Mapping[str, StageResult],
    *,
    samples: int,
    seed: int,
    start: str | None = "sft",
) -> list[Claim]:
    """Every claim whose models were evaluated.

    Args:
        models: by name; all answered the same prompts.
        results: of the stages before: the reward model's accuracy, the labelers' agreement.
        samples: bootstrap resamples.
        seed: of the bootstrap.
        start: name of the model that PPO started from; None when it was not evaluated, so that the alignment tax is not
            known.
    """
    claims = []
    for ours, theirs, claim, paper in (
        ("ppo_ptx", "sft", "PPO-ptx is preferred to SFT", "preferred at every size (figure 1)"),
        ("ppo_ptx", "base", "PPO-ptx is preferred to the base model", "0.85 ± 0.03 at 175 B (section 4.1)"),
        ("ppo_ptx", "few_shot", "PPO-ptx is preferred to the few-shot prompted base", "0.71 ± 0.04 at 175 B"),
        (
            "ppo_ptx",
            "base_4x",
            "PPO-ptx is preferred to a base model four times its size",
            "1.3 B to 175 B (section 1)",
        ),
        ("sft", "few_shot", "SFT is preferred to the few-shot prompted base", "preferred at every size (figure 1)"),
        ("dpo", "sft", "DPO is preferred to SFT", "in summaries and dialogues (Rafailov et al. 2023)"),
        ("dpo", "ppo_ptx", "DPO is preferred to PPO-ptx", "0.58 by people, in summaries (Rafailov et al. 2023)"),
    ):
        if ours in models and theirs in models:
            claims.append(_preferred(models[ours], models[theirs], claim, paper, samples, seed))
    claims += _reward_model(results)
    claims += _hallucination(models, samples, seed)
    claims += _alignment_tax(models, start, samples, seed)
    claims += _over_optimization(models, samples, seed)
    return claims


def preference(ours: Evaluated, theirs: Evaluated, *, samples: int, seed: int) -> tuple[str, WinRate]:
    """By what preference is measured (a key of the answers), and our win rate over them by it."""
    key = next(key for key in _JUDGES if ours.of(key))
    return key, win_rate(ours.of(key), theirs.of(key), samples=samples, seed=seed)


def _preferred(ours: Evaluated, theirs: Evaluated, claim: str, paper: str, samples: int, seed: int) -> Claim:
    key, found = preference(ours, theirs, samples=samples, seed=seed)
    note = f"win rate by {_JUDGES[key]}, a tie is 1/2; ties {found.ties:.0%}; {found.prompts} prompts"
    ended = [(_ended(a, key), _ended(b, key)) for a, b in zip(ours.answers, theirs.answers, strict=True)]
    if both := [pair for pair in ended if all(pair)]:
        among = win_rate(*zip(*both, strict=True), samples=samples, seed=seed)
        note += f"; among answers that ended by themselves {among.value:.3f} ({among.prompts} prompts)"
    if ours.of("kl") and theirs.of("kl"):
        note += "; KL to PPO's start {:.2f} and {:.2f} nats".format(*(_mean(one.of("kl")) for one in (ours, theirs)))
    return Claim(claim, paper, found.value, found.low, found.high, found.low > 0.5, note)


def _mean(values: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(one) for one in values]))


def _ended(answers: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """One figure of those answers that ended by themselves."""
    return [float(answer[key]) for answer in answers if answer.get("ended")]


def _reward_model(results: Mapping[str, StageResult]) -> list[Claim]:
    if "reward_model" not in results or "accuracy" not in results["reward_model"].metrics:
        return []
    metrics = results["reward_model"].metrics
    low, high = metrics.get("accuracy_low"), metrics.get("accuracy_high")
    beside = [f'"the longer answer wins" {metrics["longer_wins"]:.3f}']
    beats = low is not None and low > max(0.5, metrics["longer_wins"])
    if "collect_rankings" not in results:
        if (agreement := metrics.get("labeler_agreement")) is not None:
            beside.append(f"two labelers agree on {agreement:.3f} of {metrics['labeler_agreement_pairs']:.0f} pairs")
        sources = _by_source(results["reward_model"].details)
        beside += [f"on {source} {ours:.3f} beside {rule:.3f}" for source, ours, rule in sources]
        beats = beats and all(ours > rule for _, ours, rule in sources)
        note = (
            f"held-out prompts; {'; '.join(beside)}; holds where the whole interval beats that rule and chance, and no "
            "source is below its own rule"
        )
        paper = "0.724 ± 0.004"
        return [Claim("the reward model predicts labelers", paper, metrics["accuracy"], low, high, beats, note)]
    labelers = results["collect_rankings"].metrics
    agreement = labelers["labeler_agreement"]
    beside.append(f"two labelers agree on {agreement:.3f}")
    below_oracle = True
    if "oracle" in labelers:
        beside.append(f"the gold score on {labelers['oracle']:.3f}")
        below_oracle = metrics["accuracy"] <= labelers["oracle"]
    near = low is not None and low >= agreement - 0.03
    note = f"held-out prompts; {'; '.join(beside)}; holds within 3 points of the agreement or above, interval included"
    claims = [
        Claim(
            "the reward model predicts the labelers it learnt from",
            "0.724 ± 0.004; labelers agree on 0.726 ± 0.015",
            metrics["accuracy"],
            low,
            high,
            bool(beats and near and below_oracle),
            note,
        )
    ]
    groups: Mapping[str, Any] = results["reward_model"].details.get("accuracy_by_group", {})
    held_out = next((found for name, found in groups.items() if name.split()[-1] == HELD_OUT_GROUP), None)
    if held_out is not None:
        near = (held_out["low"] or 0) >= metrics["accuracy"] - 0.05
        claims.append(
            Claim(
                "it predicts labelers whom it never saw nearly as well",
                "0.696 ± 0.009",
                held_out["value"],
                held_out["low"],
                held_out["high"],
                bool(near and (held_out["low"] or 0) > 0.5),
                f"held-out prompts; holds within 5 points of the training labelers' {metrics['accuracy']:.3f}, "
                "interval included",
            )
        )
    return claims


def _by_source(details: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Where rankings have several sources: name, accuracy and that of "the longer answer wins" there."""
    accuracy, longer = details.get("accuracy_by_source", {}), details.get("longer_wins_by_source", {})
    if len(accuracy) < 2:
        return []
    return [(source, found["value"], longer[source]["value"]) for source, found in accuracy.items()]


def _hallucination(models: Mapping[str, Evaluated], samples: int, seed: int) -> list[Claim]:
    if not {"base", "ppo_ptx"} <= models.keys() or not models["ppo_ptx"].of("hallucinated"):
        return []
    invented = {name: model.of("hallucinated") for name, model in models.items()}
    found = mean_difference(invented["ppo_ptx"], invented["base"], samples=samples, seed=seed)
    rates = ", ".join(
        f"{name} {_mean(invented[name]):.3f}"
        for name in ("base", "few_shot", "sft", "ppo", "ppo_ptx")
        if name in invented
    )
    return [
        Claim(
            "PPO-ptx invents less than the base model",
            "0.41 to 0.21 of closed-domain answers (section 1)",
            found.value,
            found.low,
            found.high,
            found.high < 0,
            f"change of the share of answers with a statement that the text does not support: {rates}",
        )
    ]


def _alignment_tax(models: Mapping[str, Evaluated], start: str | None, samples: int, seed: int) -> list[Claim]:
    if start is None or start not in models or (tokens := models[start].tokens) is None:
        return []
    needed = {"start": start, "ppo": "ppo", "ptx": "ppo_ptx"}
    losses = {key: models[name].losses for key, name in needed.items() if name in models}
    known = {key: value for key, value in losses.items() if value is not None}
    if len(known) < len(needed):
        return []
    found = give_back(known, tokens, samples=samples, seed=seed)
    note = "(loss after PPO - after PPO-ptx) / (loss after PPO - at its start), equal iterations"
    if "ptx_control" in models and (control := models["ptx_control"].losses) is not None:
        only = give_back({**known, "ptx": control}, tokens, samples=samples, seed=seed)
        note += f"; the same ptx steps without RL give {only.returned.value:.2f}"
        if only.returned.high >= found.returned.low:
            note += ", so this run shows what pretraining gives back, not that it must be mixed with RL"
    return [
        Claim(
            "PPO alone forgets what was pretrained",
            "regressions on public NLP sets (section 4.2)",
            found.tax.value,
            found.tax.low,
            found.tax.high,
            found.tax.low > 0,
            "change of the loss on held-out pretraining text, nats of a token",
        ),
        Claim(
            "pretraining gradients give it back",
            "regressions recovered at gamma >= 20 (appendix E)",
            found.returned.value,
            found.returned.low,
            found.returned.high,
            found.returned.low > 0.6,
            note,
        ),
    ]


def _over_optimization(models: Mapping[str, Evaluated], samples: int, seed: int) -> list[Claim]:
    if not {"ppo", "ppo_without_kl"} <= models.keys() or not models["ppo"].of("gold"):
        return []
    near, far = models["ppo"], models["ppo_without_kl"]
    proxy = mean_difference(far.of("reward"), near.of("reward"), samples=samples, seed=seed)
    gold = mean_difference(far.of("gold"), near.of("gold"), samples=samples, seed=seed)
    kl = [_mean(model.of("kl")) for model in (near, far)]
    return [
        Claim(
            "optimised on without a KL penalty, reward rises and gold falls",
            "a penalty to mitigate over-optimisation (section 3.5); Gao et al. 2022",
            gold.value,
            gold.low,
            gold.high,
            proxy.low > 0 and gold.high < 0,
            f"change of gold from a KL of {kl[0]:.1f} to {kl[1]:.1f} nats, while the reward changes by "
            f"{proxy.value:.3f} ({proxy.low:.3f} to {proxy.high:.3f})",
        )
    ]
