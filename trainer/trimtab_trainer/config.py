"""The run spec: one YAML file that says everything about a run, checked before any heavy import.

`load_run_spec` reads a file (or a preset), puts `key=value` overrides over it and checks all of it; a wrong spec is one
`ConfigError` with a line for each problem. Models are frozen, unknown keys are errors. This module imports no torch.

A path in a spec is absolute or relative to the working directory, and may hold two placeholders: `{directory}` is the
run's own folder, `{data}` the folder `data_directory`. In place of the path of demonstrations or rankings,
`labeling:PROJECT` is a project of the labeling service, whose labels are copied into the run's folder when it begins.

A model is named by a *model reference*: `base` (the spec's `model`), the name of an earlier stage (`sft`: what that
stage hands on), a folder under it (`sft/epoch-1`, `sft/rl_init`), or the path of any Hugging Face folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trimtab.errors import ConfigError
from trimtab_trainer.dpo_config import DPOConfig
from trimtab_trainer.ppo_config import PPOConfig, RolloutSamplingConfig
from trimtab_trainer.services_config import ServicesConfig
from trimtab_trainer.stage_configs import (
    AnswersAt,
    CollectRankingsConfig,
    EvaluateConfig,
    EvaluatedModel,
    OptimizerConfig,
    Positive,
    PretrainConfig,
    RewardModelConfig,
    RLInitConfig,
    Section,
    SFTBaselineConfig,
    SFTConfig,
)

__all__ = [
    "MINIATURE",
    "PRESETS",
    "STAGES",
    "AnswersAt",
    "CollectRankingsConfig",
    "DPOConfig",
    "MiniatureConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PretrainConfig",
    "RLInitConfig",
    "RewardModelConfig",
    "RolloutSamplingConfig",
    "RunSpec",
    "SFTBaselineConfig",
    "SFTConfig",
    "StageName",
    "WandbConfig",
    "labeling_project",
    "load_run_spec",
    "preset_path",
    "spec_to_yaml",
    "with_override",
    "EvaluateConfig",
    "EvaluatedModel",
]

StageName = Literal[
    "pretrain",
    "sft",
    "collect_rankings",
    "reward_model",
    "reward_model_folds",
    "sft_baseline",
    "ppo",
    "ppo_without_ptx",
    "ppo_without_kl",
    "ptx_control",
    "dpo",
    "evaluate",
]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""Every stage, in the only order in which they make sense."""

_SECTIONS: Mapping[str, str] = {
    "reward_model_folds": "reward_model",
    "ppo_without_ptx": "ppo",
    "ppo_without_kl": "ppo",
    "ptx_control": "ppo",
}
"""Stages that repeat another one with a difference, to tell what it does, and so take its section."""

_LABELED = frozenset({"demonstrations", "rankings", "rankings_held_out"})
"""Datasets that may be a project of the labeling service."""
_LABELING = "labeling:"
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,63}")

PRESETS = ("tiny", "smollm2", "gemma3", "instructgpt", "tiny_dpo")
"""Run specs inside the package."""

MINIATURE = "miniature"
"""The value of `model` that means the untrained model of the miniature."""


class MiniatureConfig(Section):
    """The closed world of the quickstart: its datasets are written to `{directory}/data` when the run starts."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the world's rows.")
    width: Literal[64, 128] = Field(default=64, description="Hidden size of the base: 0.16 M or 0.6 M parameters.")
    pretrain: Positive = Field(default=60_000, description="Documents to pretrain on.")
    pretrain_held_out: Positive = Field(default=500, description="Documents for the held-out loss.")
    demonstrations: Positive = Field(default=400, description="Demonstrations.")
    prompts: Positive = Field(default=10_000, description="Prompts for rankings and PPO.")
    prompts_held_out: Positive = Field(default=500, description="Prompts for every evaluation.")


class WandbConfig(Section):
    """Where Weights & Biases keeps the run; its own environment variables hold the login."""

    project: str = Field(min_length=1, description="Name of the project there.")
    entity: str | None = Field(default=None, description="User or team. null: the login's own.")
    mode: Literal["online", "offline"] = Field(default="online", description="offline: into the run's folder only.")


class RunSpec(Section):
    """Everything about a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,63}$", description="Letters, digits, '-' and '_'; at most 63.")
    directory: Path = Field(description="The run's own folder: checkpoints, models, events.")
    model: str = Field(description=f"Folder of the base model, or `{MINIATURE}`: its untrained model.")
    stages: tuple[StageName, ...] = Field(
        min_length=1, description=f"In this order: {', '.join(STAGES)}; any may be left out."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="All randomness of the run follows from it.")
    data_directory: Path | None = Field(default=None, description="What `{data}` in a path stands for.")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: autocast over float32 weights; only on a GPU."
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Compute threads. 0: what torch chooses.")
    deterministic: bool = Field(
        default=False, description="A killed and resumed run ends bit-identical, at equal device and threads."
    )
    gradient_checkpointing: bool = Field(default=False, description="Recomputes activations: less memory, more time.")
    tensorboard: bool = Field(default=True, description="Writes the metrics of every step to DIR/tensorboard too.")
    wandb: WandbConfig | None = Field(default=None, description="Sends them to Weights & Biases too. null: no.")
    miniature: MiniatureConfig | None = Field(default=None, description="Writes the miniature's datasets. null: none.")
    services: ServicesConfig | None = Field(default=None, description="Needed by every stage that samples.")
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    collect_rankings: CollectRankingsConfig = CollectRankingsConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    sft_baseline: SFTBaselineConfig = SFTBaselineConfig()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunSpec:
        order = [STAGES.index(stage) for stage in self.stages]
        if order != sorted(set(order)):
            raise ValueError(
                f"stages are {', '.join(self.stages)}; allowed: each once, in the order {', '.join(STAGES)}"
            )
        if self.precision == "bfloat16" and self.device == "cpu":
            raise ValueError("precision is bfloat16 and device is cpu; allowed on cpu: float32")
        if "collect_rankings" in self.stages and self.miniature is None:
            raise ValueError(
                "stage collect_rankings has simulated labelers, which know the miniature only: set `miniature`"
            )
        if self.model == MINIATURE and self.miniature is None:
            raise ValueError(f"model is {MINIATURE}, so the section `miniature` must be there")
        for key, path in self.data_paths():
            _check_project(key, path)
            if self.data_directory is None and "{data}" in path:
                raise ValueError(f"{key} is {path!r}; set `data_directory`, which {{data}} stands for, or {key}")
        for stage, key, reference in self.model_references():
            maker = reference.partition("/")[0]
            if maker in STAGES and maker not in self.stages[: self.stages.index(stage)]:
                raise ValueError(
                    f"{key} is {reference!r}, but stage {maker} does not run before {stage}; stages are "
                    f"{', '.join(self.stages)}"
                )
        return self

    def stage_config(self, stage: StageName) -> BaseModel:
        """The section of a stage."""
        config: BaseModel = getattr(self, _SECTIONS.get(stage, stage))
        return config

    def model_references(self) -> Iterator[tuple[StageName, str, str]]:
        """(stage, key, model reference) of every stage that runs."""
        for stage in self.stages:
            config = self.stage_config(stage)
            section = _SECTIONS.get(stage, stage)
            for key in ("initial_model", "model", "policy", "reward_model", "judge"):
                if isinstance(value := getattr(config, key, None), str):
                    yield stage, f"{section}.{key}", value
            if isinstance(config, EvaluateConfig):
                for name, one in config.models.items():
                    yield stage, f"evaluate.models.{name}", one.model

    def data_paths(self) -> list[tuple[str, str]]:
        """(key, path as written) of every dataset that the stages read, each once."""
        return list(dict.fromkeys(self._data_paths()))

    def _data_paths(self) -> Iterator[tuple[str, str]]:
        keys = ("text", "held_out", "demonstrations", "pretraining", "pretraining_held_out", "rankings",
                "rankings_held_out", "prompts", "prompts_held_out")  # fmt: skip
        for stage in self.stages:
            if stage == "dpo":
                yield from self._rankings()
                continue
            config = self.stage_config(stage)
            if isinstance(config, EvaluateConfig) and any(one.demonstrations for one in config.models.values()):
                yield "sft.demonstrations", self.sft.demonstrations
            mixes = not isinstance(config, SFTConfig) or config.pretraining_mix or config.rl_init is not None
            for key in keys:
                if isinstance(value := getattr(config, key, None), str) and (mixes or key != "pretraining"):
                    yield f"{_SECTIONS.get(stage, stage)}.{key}", value

    def _rankings(self) -> Iterator[tuple[str, str]]:
        """What `dpo` reads: the reward model's rankings."""
        config = self.reward_model
        yield "reward_model.rankings", config.rankings
        if config.rankings_held_out is not None:
            yield "reward_model.rankings_held_out", config.rankings_held_out

    def path(self, written: str) -> Path:
        """A data path with its placeholders filled in; of a labeling project the copy in the run's folder."""
        if (project := labeling_project(written)) is not None:
            return self.directory / "labels" / f"{project}.jsonl"
        return Path(
            written.replace("{directory}", str(self.directory)).replace("{data}", str(self.data_directory or ""))
        )


def labeling_project(path: str) -> str | None:
    """The project of the labeling service that stands in place of a data path; None where a path does."""
    return path.removeprefix(_LABELING) if path.startswith(_LABELING) else None


def _check_project(key: str, path: str) -> None:
    project = labeling_project(path)
    if project is None:
        return
    if key.rpartition(".")[2] not in _LABELED:
        raise ValueError(f"{key} is {path!r}; projects of the labeling service have demonstrations and rankings only")
    if _PROJECT.fullmatch(project) is None:
        raise ValueError(
            f"{key} is {path!r}; behind {_LABELING} stands the name of a project: 1 to 63 letters, digits, '-' and '_'"
        )


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"preset: {name!r}: no such preset; allowed: {', '.join(PRESETS)}",
            field="preset",
            value=name,
            limit=", ".join(PRESETS),
        )
    return Path(str(resources.files("trimtab_trainer") / "presets" / f"{name}.yaml"))


def load_run_spec(path: str | Path, overrides: Sequence[str] = (), *, endpoints_file: Path | None = None) -> RunSpec:
    """Reads and checks a run spec.

    Args:
        path: YAML file. Its key `preset` puts a preset underneath it.
        overrides: `key=value`, dots reach into sections (`ppo.sampling.max_new_tokens=48`), values are YAML; the later
            one wins.
        endpoints_file: where the services are of which the spec does not say it.

    Raises:
        ConfigError: one line for each problem, with the key, its value and what is allowed.
    """
    written = _with_preset(_read_yaml(Path(path)))
    for override in overrides:
        written = with_override(written, override)
    if endpoints_file is not None:
        written = _with_endpoints(written, endpoints_file)
    try:
        return RunSpec.model_validate(written)
    except ValidationError as error:
        problems = error.errors()
        lines = [f"{path}: {line}" for line in map(_explain, problems)]
        first = problems[0]
        raise ConfigError(
            "\n".join(lines),
            field=_key(first),
            value=None if first["type"] == "missing" else first["input"],
            limit=_allowed(first),
        ) from None


def spec_to_yaml(spec: RunSpec) -> str:
    """The whole spec, defaults included, as YAML that `load_run_spec` reads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", field="spec", value=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not a YAML file: {' '.join(str(error).split())}", field="spec", value=path
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must hold a mapping of keys, found a {type(content).__name__}", field="spec", value=path
        )
    return content


def _with_preset(written: dict[str, Any]) -> dict[str, Any]:
    if "preset" not in written:
        return written
    above = {key: value for key, value in written.items() if key != "preset"}
    return _merge(_with_preset(_read_yaml(preset_path(str(written["preset"])))), above)


def _with_endpoints(written: dict[str, Any], endpoints_file: Path) -> dict[str, Any]:
    services = written.get("services") or {}
    if not isinstance(services, dict) or services.get("endpoints_file") is not None:
        return written
    return {**written, "services": {**services, "endpoints_file": str(endpoints_file)}}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def with_override(written: dict[str, Any], override: str) -> dict[str, Any]:
    """A written spec with one `key=value` put over it, as `load_run_spec` takes them.

    Raises:
        ConfigError: it is not of that form, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key or "" in key.split("."):
        raise ConfigError(
            f"override {override!r}: allowed is key=value, such as ppo.iterations=20", field=key, value=override
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: not YAML: {' '.join(str(error).split())}", field=key, value=text
        ) from None
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return _merge(written, nested)


def _key(problem: ErrorDetails) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _explain(problem: ErrorDetails) -> str:
    """One line: key, value, what is allowed."""
    key = _key(problem)
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r} (value {_short(problem['input'])}); allowed: {_allowed(problem)}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    if problem["type"] == "value_error":
        return f"{key}: {reason}" if key else reason
    return f"key {key!r} has value {_short(problem['input'])}; allowed: {reason[0].lower()}{reason[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _allowed(problem: ErrorDetails) -> str:
    """The keys allowed beside an unknown one, or what pydantic says about a wrong value."""
    if problem["type"] != "extra_forbidden":
        return problem["msg"]
    model: type[BaseModel] = RunSpec
    for part in problem["loc"][:-1]:
        field = model.model_fields.get(str(part))
        model = next(_models(field.annotation if field else None), model)
    return ", ".join(sorted(model.model_fields))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as `SFTConfig` or `RLInitConfig | None`."""
    choices: Iterable[Any] = (annotation, *getattr(annotation, "__args__", ()))
    for choice in choices:
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            yield choice
