"""Makes the models of a configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from trimtab.v1 import info_pb2
from trimtab_models.loading import load_classifier
from trimtab_services.reward.base import RewardModel
from trimtab_services.reward.combined import Ensemble, Formula
from trimtab_services.reward.config import (
    EnsembleConfig,
    FormulaConfig,
    FunctionConfig,
    HostedConfig,
    RemoteConfig,
    RewardConfig,
    formula_names,
)
from trimtab_services.reward.external import ExternalModel
from trimtab_services.reward.functions import RewardFunction
from trimtab_services.reward.hosted import HostedModel
from trimtab_services.reward.models import RewardModels
from trimtab_services.reward.remote import RemoteReward
from trimtab_services.reward.scorer import Scorer, canary
from trimtab_services.runtime.frozen import BatchShapes, FrozenModelService
from trimtab_services.runtime.readiness import Readiness
from trimtab_services.runtime.slots import ModelSlot
from trimtab_services.runtime.state import Runtime
from trimtab_services.runtime.threads import in_own_thread

__all__ = ["Rewards"]


class Rewards:
    """Everything that scores in one server.

    Args:
        runtime: of the server.

    Attributes:
        models: by name.
    """

    def __init__(self, runtime: Runtime[RewardConfig]) -> None:
        self._runtime = runtime
        self._config = config = runtime.config
        declared = config.declared
        hosted = {name: model for name, model in declared.items() if isinstance(model, HostedConfig)}
        slots = {name: self._slot(name, model) for name, model in hosted.items()}
        functions = [name for name, model in declared.items() if isinstance(model, FunctionConfig)]
        self._readiness = Readiness(runtime, [*hosted, *functions])
        self._hosted = FrozenModelService(
            runtime,
            [(slots[name], model) for name, model in hosted.items()],
            Scorer(BatchShapes.of(config)).compute,
            readiness=self._readiness,
        )
        self._functions: dict[str, RewardFunction] = {}
        self._external: list[ExternalModel] = []
        built: dict[str, RewardModel] = {
            name: HostedModel(slots[name], self._hosted.scheduler, model.logit or 0) for name, model in hosted.items()
        }
        for name in declared:
            self._build(name, declared, built)
        self.models = RewardModels(
            [built[name] for name in declared], max_items=config.max_items_per_request, metrics=runtime.metrics
        )

    @property
    def background(self) -> list[Callable[[], Awaitable[None]]]:
        """What has to run beside the calls."""
        return [*self._hosted.background, *([self._check_functions] if self._functions else [])]

    def describe(self, response: info_pb2.GetInfoResponse) -> None:
        """The service's part of GetInfo."""
        self._hosted.describe(response)
        self.models.describe(response)

    async def close(self) -> None:
        """Frees everything."""
        for model in self._external:
            await model.close()
        await self._hosted.scheduler.close()

    def _slot(self, name: str, model: HostedConfig) -> ModelSlot:
        load = partial(load_classifier, logit=model.logit, dtype=self._config.dtype, device=self._config.device)
        return ModelSlot(name, load, partial(canary, logit=model.logit or 0))

    def _build(self, name: str, declared: Mapping[str, Any], built: dict[str, RewardModel]) -> RewardModel:
        """The model of a name, its parts before it; the configuration has no circles."""
        if name in built:
            return built[name]

        def parts(names: Sequence[str]) -> list[RewardModel]:
            return [self._build(part, declared, built) for part in names]

        match declared[name]:
            case EnsembleConfig() as config:
                built[name] = Ensemble(name, config, parts(config.members))
            case FormulaConfig() as config:
                built[name] = Formula(name, config, parts(formula_names(config.formula)))
            case FunctionConfig() as config:
                function = RewardFunction(name, config)
                self._functions[name] = function
                built[name] = self._of_code(name, f"function: {config.function}", config, function)
            case RemoteConfig() as config:
                built[name] = self._of_code(name, f"remote: {config.url}", config, RemoteReward(name, config))
        return built[name]

    def _of_code(
        self, name: str, kind: str, config: FunctionConfig | RemoteConfig, code: RewardFunction | RemoteReward
    ) -> ExternalModel:
        model = ExternalModel(
            name,
            kind,
            code,
            max_batch_items=config.max_batch_items,
            max_queue_items=config.max_queue_items,
            metrics=self._runtime.metrics,
            charge=self._runtime.charge_tokens,
            on_fault=lambda error: self._runtime.fail(f"{name} has ended: {type(error).__name__}: {error}"),
        )
        self._external.append(model)
        return model

    async def _check_functions(self) -> None:
        """Imports every function before anybody asks for it."""

        async def check(name: str, function: RewardFunction) -> None:
            await in_own_thread(function.check)
            await self._readiness.serves(name)

        await asyncio.gather(*(check(name, function) for name, function in self._functions.items()))
