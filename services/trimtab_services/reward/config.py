"""Configuration of the reward service: its models by name, of several kinds."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab_services.runtime.config import FrozenModelConfig, ModelSource, check_one_source

__all__ = [
    "COMPLETION_VARIABLES",
    "FORMULA_FUNCTIONS",
    "EnsembleConfig",
    "FormulaConfig",
    "FunctionConfig",
    "HostedConfig",
    "RemoteConfig",
    "RewardConfig",
    "RewardModelConfig",
    "formula_names",
    "formula_variables",
]

COMPLETION_VARIABLES = ("completion_tokens", "completion_characters", "tokens")
"""What a formula knows of an item besides rewards."""

FORMULA_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
}
"""What a formula may call."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostedConfig(ModelSource):
    """A sequence classifier that this process computes, from a folder or from a channel."""

    kind: Literal["model"] = Field(default="model", description="A sequence classifier.")
    logit: int | None = Field(
        default=None, ge=0, description="Which of several outputs is the score. Unset: the model must have one."
    )


class EnsembleConfig(_Section):
    """Several models, one reward, and how far they are apart."""

    kind: Literal["ensemble"]
    members: tuple[str, ...] = Field(min_length=2, description="Names of models of this service, at least 2.")
    combine: Literal["mean", "min", "mean_minus_std"] = Field(
        default="mean", description="mean_minus_std: mean less `k` population standard deviations."
    )
    k: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="Weight of the spread in mean_minus_std.")


class FormulaConfig(_Section):
    """An arithmetic expression over rewards of other models and the size of the completion."""

    kind: Literal["formula"]
    formula: str = Field(
        min_length=1,
        max_length=1000,
        description="Such as `helpful - 0.01 * completion_tokens`. Names are models of this service, or "
        + ", ".join(COMPLETION_VARIABLES)
        + "; functions are "
        + ", ".join(FORMULA_FUNCTIONS)
        + ".",
    )

    @model_validator(mode="after")
    def _is_expression(self) -> FormulaConfig:
        if not formula_names(self.formula):
            raise ValueError(f"{self.formula!r} names no reward model")
        return self


class _External(_Section):
    timeout_s: float = Field(default=30.0, gt=0, le=3600, description="Most seconds of one call.")
    max_batch_items: int = Field(default=64, ge=1, le=4096, description="Most items of one call.")
    max_queue_items: int = Field(default=100_000, ge=1, description="Most items waiting.")


class FunctionConfig(_External):
    """A Python function, run in a process of its own: what it breaks, or never ends, is its own."""

    kind: Literal["function"]
    function: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`module:name` of a function(prompts, completions) that returns a number for each pair.",
    )
    directory: Path | None = Field(default=None, description="Folder that the module is imported from first.")


class RemoteConfig(_External):
    """A reward server elsewhere, over HTTP."""

    kind: Literal["remote"]
    url: str = Field(pattern=r"^https?://", description="Such as `http://rewards:5000/get_reward`.")
    protocol: Literal["openrlhf", "trimtab"] = Field(
        default="openrlhf", description="openrlhf: `/get_reward`. trimtab: `/v1/score` of another reward service."
    )
    model: str = Field(default="", description="Its model, where the protocol names one.")
    token_file: Path | None = Field(default=None, description="File that holds a bearer token, re-read for each call.")

    @model_validator(mode="after")
    def _no_secrets(self) -> RemoteConfig:
        if "@" in urlsplit(self.url).netloc:
            raise ValueError("url: a user and a password in it would be shown; put a token into `token_file`")
        if self.token_file is not None and not os.access(self.token_file, os.R_OK):
            raise ValueError(f"token_file: {self.token_file}: no such file, or it cannot be read")
        return self


RewardModelConfig = Annotated[
    HostedConfig | EnsembleConfig | FormulaConfig | FunctionConfig | RemoteConfig, Field(discriminator="kind")
]


class RewardConfig(FrozenModelConfig):
    """What `trimtab serve reward` takes. `model_folder` or `weights` is the model that is called `model_name`."""

    logit: int | None = Field(
        default=None, ge=0, description="Which output of the service's own model is the score, where it has several."
    )
    models: dict[str, RewardModelConfig] = Field(
        default_factory=dict, description="Further models by name. With any, `model_folder` and `weights` may be unset."
    )
    default_model: str = Field(
        default="",
        description="Model of a request that names none. Empty: the service's own, or the first of `models`.",
    )

    @property
    def declared(self) -> dict[str, HostedConfig | EnsembleConfig | FormulaConfig | FunctionConfig | RemoteConfig]:
        """All models by name, the default one first."""
        own = {}
        if self.model_folder is not None or self.weights is not None:
            own = {self.model_name or "reward": HostedConfig(**self.source.model_dump(), logit=self.logit)}
        everything = {**own, **self.models}
        first = self.default_model or next(iter(everything))
        return {first: everything[first], **everything}

    @model_validator(mode="after")
    def _one_source(self) -> RewardConfig:
        if not self.models or self.model_folder is not None or self.weights is not None:
            check_one_source(self.model_folder, self.weights)
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> RewardConfig:
        own = self.model_name or "reward"
        has_own = self.model_folder is not None or self.weights is not None
        if has_own and own in self.models:
            raise ValueError(f"models: {own!r} is the name of the service's own model; give one of them another name")
        known = {*self.models, *([own] if has_own else [])}
        if self.default_model and self.default_model not in known:
            raise ValueError(f"default_model: {self.default_model!r} is no model; known are {_listed(known)}")
        for name, model in self.models.items():
            for part in _parts(model):
                if part not in known:
                    raise ValueError(f"models.{name}: {part!r} is no model; known are {_listed(known)}")
        self._check_circles()
        self._check_caches()
        return self

    def _check_caches(self) -> None:
        """Raises ValueError when two models would clear each other's cache."""
        taken: dict[Path, str] = {}
        hosted = {name: model for name, model in self.models.items() if isinstance(model, HostedConfig)}
        sources = {self.model_name or "reward": self.cache_directory}
        sources |= {name: model.cache_directory for name, model in hosted.items()}
        for name, directory in sources.items():
            if directory is None:
                continue
            other = taken.setdefault(directory.resolve(), name)
            if other != name:
                raise ValueError(f"models.{name}: cache_directory {directory} is {other}'s; each needs one of its own")

    def _check_circles(self) -> None:
        """Raises ValueError when a model is, in the end, made from itself."""
        done: set[str] = set()

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise ValueError(f"models: {' -> '.join((*path[path.index(name) :], name))}: made from itself")
            model = self.models.get(name)
            if name in done or model is None:
                return
            for part in _parts(model):
                visit(part, (*path, name))
            done.add(name)

        for name in self.models:
            visit(name, ())


def formula_variables(formula: str) -> tuple[str, ...]:
    """Which of `COMPLETION_VARIABLES` a checked formula reads."""
    names = {node.id for node in ast.walk(ast.parse(formula, mode="eval")) if isinstance(node, ast.Name)}
    return tuple(name for name in COMPLETION_VARIABLES if name in names)


def formula_names(formula: str) -> tuple[str, ...]:
    """Names of the models in a formula, in order, each once.

    Raises:
        ValueError: no expression, or one of something else than arithmetic.
    """
    try:
        tree = ast.parse(formula, mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"no arithmetic expression: {getattr(error, 'msg', error)}") from None
    names: dict[str, None] = {}
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        _check_node(node)
        if isinstance(node, ast.Name):
            if node in functions:
                if node.id not in FORMULA_FUNCTIONS:
                    raise ValueError(f"{node.id}() is not known; functions are {', '.join(FORMULA_FUNCTIONS)}")
            elif node.id not in COMPLETION_VARIABLES:
                names[node.id] = None
    return tuple(names)


_ALLOWED = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.IfExp,
    ast.Compare,
    ast.cmpop,
)


def _check_node(node: ast.AST) -> None:
    if not isinstance(node, _ALLOWED):
        raise ValueError(f"{type(node).__name__} is no arithmetic")
    if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.keywords):
        raise ValueError("a function is called by its name, without keywords")
    if isinstance(node, ast.Constant) and (
        isinstance(node.value, bool) or not isinstance(node.value, int | float) or not math.isfinite(node.value)
    ):
        raise ValueError(f"{node.value!r} is no finite number")


def _parts(model: BaseModel) -> tuple[str, ...]:
    if isinstance(model, EnsembleConfig):
        return model.members
    return formula_names(model.formula) if isinstance(model, FormulaConfig) else ()


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
