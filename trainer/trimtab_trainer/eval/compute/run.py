"""What each stage of a run did, from its own events, and the ledger of it (`ledger`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.errors import ConfigError
from trimtab_trainer.config import STAGES, RunSpec, StageName, load_run_spec
from trimtab_trainer.eval.compute.ledger import Ledger, Pretraining, Work, make_ledger
from trimtab_trainer.reporter import stage_metrics
from trimtab_trainer.run import RunOutcome, read_outcome

__all__ = ["pretraining_of", "run_ledger"]

_PPO = ("ppo", "ppo_without_ptx", "ppo_without_kl")
_MEASURING = ("collect_rankings", "sft_baseline", "evaluate")
"""Stages that sample and score and train nothing."""


def run_ledger(directory: Path, *, pretraining: Pretraining | None = None) -> Ledger:
    """The compute ledger of a run.

    A step that a killed run made twice is counted once: what the result needs, not what accidents cost.

    Args:
        directory: of the run, finished or not.
        pretraining: see `make_ledger`.

    Raises:
        ConfigError: there is no run in this folder.
        CorruptData: its state is not what a run writes.
    """
    outcome = read_outcome(directory)
    spec = load_run_spec(directory / "spec.yaml").model_copy(update={"directory": directory})
    run = _Run(directory, spec, outcome, stage_metrics(directory / "events.jsonl"))
    stages: list[StageName] = [stage for stage in spec.stages if stage in outcome.results or run.steps(stage)]
    work = {stage: run.work(stage) for stage in stages}
    folders = run.folders({one.model for done in work.values() for one in done})
    missing = {stage: [*run.missing(stage, work[stage]), *_no_folder(work[stage], folders)] for stage in stages}
    known = {stage: [one for one in done if one.model in folders] for stage, done in work.items()}
    from trimtab_trainer.eval.compute.model_flops import model_size  # torch and transformers: heavy

    return make_ledger(
        known,
        missing,
        outcome.seconds,
        sizes={name: model_size(folder) for name, folder in folders.items()},
        count=_counter(folders),
        pretraining=pretraining,
    )


def pretraining_of(directory: Path, tokens: float) -> Pretraining:
    """6 N D of a run's base model over so many tokens.

    Raises:
        ConfigError: there is no run, or its base model's config.json is not there.
    """
    outcome = read_outcome(directory)
    spec = load_run_spec(directory / "spec.yaml").model_copy(update={"directory": directory})
    folder = _Run(directory, spec, outcome, {}).folders({"base"}).get("base")
    if folder is None:
        raise ConfigError(
            f"pretraining-tokens: the base model of {directory} has no config.json at {spec.model}; give "
            "--pretraining-flops",
            field="pretraining-tokens",
            value=spec.model,
        )
    from trimtab_trainer.eval.compute.model_flops import model_size

    parameters = model_size(folder).formula
    return Pretraining(6.0 * parameters * tokens, f"6 · {parameters:,} · {tokens:,.0f} stated tokens")


@dataclass(frozen=True)
class _Run:
    """A run's folder, read; `metrics` are those of every step by stage."""

    directory: Path
    spec: RunSpec
    outcome: RunOutcome
    metrics: Mapping[str, Mapping[int, Mapping[str, float]]]

    def steps(self, stage: StageName) -> Sequence[Mapping[str, float]]:
        return list(self.metrics.get(stage, {}).values())

    def total(self, stage: StageName, name: str) -> float:
        """The sum of a count over the stage's steps and its end."""
        ends = self.outcome.results[stage].metrics.get(name, 0.0) if stage in self.outcome.results else 0.0
        return _sum(self.steps(stage), name) + ends

    def work(self, stage: StageName) -> list[Work]:
        if stage in _PPO:
            return self._ppo(stage)
        if stage in _MEASURING:
            return self._measuring(stage)
        model = self._trained(stage)
        tokens, sequences = self.total(stage, "tokens_trained"), self.total(stage, "sequences_trained")
        predicted = self.total(stage, "tokens")
        length, share = tokens / max(sequences, 1.0), predicted / max(tokens, 1.0)
        evaluated = self.total(stage, "tokens_evaluated")
        work = [
            Work("model: training", model, "training", tokens, sequences, predicted),
            Work("model: held-out rows", model, "forward", evaluated, evaluated / max(length, 1.0), evaluated * share),
            Work(
                "reference: log-probs of the answers",
                self.spec.dpo.policy,
                "forward",
                self.total(stage, "tokens_referenced"),
                self.total(stage, "sequences_referenced"),
                self.total(stage, "answer_tokens_referenced"),
            ),
        ]
        return [one for one in work if one.tokens and one.sequences]

    def _ppo(self, stage: StageName) -> list[Work]:
        policy, reward = self.spec.ppo.policy, self.spec.ppo.reward_model
        sampled, answers = self.total(stage, "tokens_sampled"), self.total(stage, "sequences_sampled")
        completions = sum(
            step.get("completion_tokens", 0.0) * step.get("sequences_sampled", 0.0) for step in self.steps(stage)
        )
        length, share = sampled / max(answers, 1.0), completions / max(sampled, 1.0)

        def read(what: str, model: str, name: str, *, training: bool = False, predicts: bool = True) -> Work:
            tokens = self.total(stage, name)
            return Work(
                what,
                model,
                "training" if training else "forward",
                tokens,
                tokens / max(length, 1.0),
                tokens * share if predicts else 0.0,
            )

        ptx, passages = self.total(stage, "ptx_tokens_trained"), self.total(stage, "ptx_sequences_trained")
        work = [
            read("policy: sampling", policy, "tokens_sampled"),
            read("reward model: scores", reward, "tokens_sampled", predicts=False),
            read("reference: log-probs", policy, "tokens_sampled"),
            read("policy: log-probs before the update", policy, "tokens_recomputed"),
            read("value model: values before the update", reward, "tokens_sampled", predicts=False),
            read("value model: update", reward, "value_tokens_trained", training=True, predicts=False),
            read("policy: PPO update", policy, "tokens_trained", training=True),
            Work("policy: pretraining gradients", policy, "training", ptx, passages, ptx - passages),
        ]
        return [one for one in work if one.tokens]

    def _measuring(self, stage: StageName) -> list[Work]:
        work, ppo, judge = [], self.spec.ppo, self.spec.evaluate.judge
        steps = self.metrics.get(stage, {})
        parts = self._sampled(stage)
        for name, model, of_model in parts:
            tokens, passages = _sum(of_model, "tokens_evaluated"), _sum(of_model, "sequences_evaluated")
            work += [
                _answers(f"{name}: sampling", model, of_model, "tokens_sampled"),
                Work(f"{name}: held-out passages", model, "forward", tokens, passages, tokens - passages),
            ]
        every = [step for _, _, of_model in parts for step in of_model]
        referenced = _answers("reference: log-probs", ppo.policy, every, "tokens_scored")
        work += [replace(referenced, what="reward model: scores", model=ppo.reward_model, predicted=0.0), referenced]
        judged = steps.get(len(self.spec.evaluate.models) + 1)
        if stage == "evaluate" and judge is not None and judged is not None:
            tokens, sequences = (judged.get(name, 0.0) for name in ("tokens_scored", "sequences_scored"))
            work.append(Work("judge: scores", judge, "forward", tokens, sequences))
        return [one for one in work if one.tokens]

    def _sampled(self, stage: StageName) -> list[tuple[str, str, list[Mapping[str, float]]]]:
        """Whose answers a stage that measures sampled: name, model reference, and the steps that did it."""
        steps = self.metrics.get(stage, {})
        if stage == "evaluate":  # a step for each model, behind them the judge's
            models = enumerate(self.spec.evaluate.models.items(), 1)
            return [(name, one.model, [steps[number]]) for number, (name, one) in models if number in steps]
        model = self.spec.collect_rankings.model if stage == "collect_rankings" else "sft"
        return [("policy", model, list(steps.values()))]

    def missing(self, stage: StageName, work: Sequence[Work]) -> list[str]:
        """What the stage did that no event tells."""
        if not work:
            return ["its events have no counts of tokens: the run was made before they were written"]
        if stage == "evaluate" and self.spec.miniature is not None:
            return ["the cloze test of the miniature"]
        if stage == "reward_model":
            return ["the offset's forwards over demonstrations"] if self.spec.reward_model.demonstrations else []
        if stage == "reward_model_folds":
            return ["the forwards over held-out rankings"]
        if stage == "dpo" and not self.total(stage, "sequences_referenced"):
            return ["the reference's log-probs of the answers, which no event counts before the end of the stage"]
        return []

    def _trained(self, stage: StageName) -> str:
        """A model reference for what a stage trains; all of its models have one shape."""
        if stage == "reward_model_folds":  # what it trains is not kept
            return "reward_model" if "reward_model" in self.outcome.results else self.spec.reward_model.initial_model
        result = self.outcome.results.get(stage)
        if result is not None and result.model is not None:
            return stage
        config = self.spec.stage_config(stage)  # not done yet: what it started from
        return str(getattr(config, "initial_model", getattr(config, "policy", "untrained")))

    def folders(self, references: set[str]) -> dict[str, Path]:
        """The folders of model references; those without a config.json are left out."""
        found = {reference: self._folder(reference) for reference in references}
        return {reference: folder for reference, folder in found.items() if (folder / "config.json").is_file()}

    def _folder(self, reference: str) -> Path:
        """As `StageContext.resolve_model`, for a run that is over and may have been moved."""
        first, _, rest = reference.partition("/")
        if reference == "base" and "pretrain" in self.outcome.results:
            return self._folder("pretrain")
        if reference in ("base", "untrained"):
            untrained = self.directory / "models" / "untrained"
            return untrained if untrained.is_dir() else Path(self.spec.model)
        if first in STAGES and not rest:
            result = self.outcome.results.get(first)
            return self.directory / (result.model if result and result.model else f"models/{first}")
        return self.directory / "models" / reference if first in STAGES else Path(reference)


def _sum(steps: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(step.get(name, 0.0) for step in steps)


def _answers(what: str, model: str, steps: Sequence[Mapping[str, float]], tokens: str) -> Work:
    """A model's forward over all answers of some steps, its `tokens` being prompts and answers."""
    read, answers = _sum(steps, tokens), _sum(steps, "tokens_in_answers")
    return Work(what, model, "forward", read, _sum(steps, "sequences_sampled"), answers)


def _no_folder(work: Sequence[Work], folders: Mapping[str, Path]) -> list[str]:
    return [f"{one.what}: the model {one.model} is not there any more" for one in work if one.model not in folders]


def _counter(folders: Mapping[str, Path]) -> Callable[[Work], float | None]:
    def count(work: Work) -> float | None:
        from trimtab_trainer.eval.compute.model_flops import count_flops

        try:
            return count_flops(folders[work.model], work)
        except RuntimeError:  # the meta device cannot run this model
            return None

    return count
