"""What can be known of a run before anything is loaded: that its model, its data and its services' addresses exist.

Whether a labeling project has what a dataset of the run is to be made of is asked by `data.labeling`.
"""

from __future__ import annotations

from pathlib import Path

from trimtab.errors import ConfigError
from trimtab_trainer.config import MINIATURE, STAGES, RunSpec, labeling_project
from trimtab_trainer.services_config import OF_SAMPLING, ServiceName

__all__ = ["NEED_SERVICES", "check_inputs", "check_services"]

NEED_SERVICES = frozenset(
    {"collect_rankings", "sft_baseline", "ppo", "ppo_without_ptx", "ppo_without_kl", "dpo", "evaluate"}
)
"""Stages that work with services."""


def check_inputs(spec: RunSpec) -> None:
    """Refuses a spec whose inputs are not there.

    Raises:
        ConfigError: names the key and the whole path.
    """
    check_services(spec)
    _check_models(spec)
    for key, written in spec.data_paths():
        if "{directory}" in written or labeling_project(written) is not None:
            continue  # the run writes it
        path = spec.path(written)
        if not path.exists():
            raise _missing(key, path, "no such file")
    if spec.services is not None:
        for name in _needed_services(spec):
            file = spec.services.of(name).endpoints_file
            if file is not None and not Path(file).is_file():
                raise _missing(f"services.{name}", Path(file), "no such file; `trimtab up` writes it")


def check_services(spec: RunSpec) -> None:
    """Refuses a spec that names no services for stages and datasets that need them; no file is looked for.

    Raises:
        ConfigError: names the stages, or the key of the dataset.
    """
    needy = _needy_stages(spec)
    if needy and spec.services is None:
        raise ConfigError(
            f"services: not set, but {', '.join(needy)} work with services; set services.endpoints_file, or "
            "--endpoints, to the endpoints.json that `trimtab up` writes; the Helm chart gives a run those of its "
            "release",
            field="services",
        )
    for name in _needed_services(spec):
        if spec.services is None or not spec.services.knows(name):
            by = _labeled(spec) if name == "labeling" else f"{', '.join(needy)} work with it"
            raise ConfigError(
                f"services.{name}: no addresses, but {by}; give it an entry, or set services.endpoints_file, or "
                "--endpoints, to the endpoints.json that `trimtab up` writes; the Helm chart gives a run those of its "
                "release",
                field=f"services.{name}",
            )


def _needed_services(spec: RunSpec) -> list[ServiceName]:
    of_stages = OF_SAMPLING if _needy_stages(spec) else ()
    return [*of_stages, *(["labeling"] if _labeled(spec) else [])]


def _labeled(spec: RunSpec) -> str:
    """The datasets that are labeling projects, in words; empty when there is none."""
    return ", ".join(f"{key} is {path!r}" for key, path in spec.data_paths() if labeling_project(path) is not None)


def _needy_stages(spec: RunSpec) -> list[str]:
    return [stage for stage in spec.stages if stage in NEED_SERVICES]


def _check_models(spec: RunSpec) -> None:
    if spec.model != MINIATURE:
        folder = Path(spec.model)
        if not folder.is_dir():
            raise _missing("model", folder, "no such folder")
        if not (folder / "config.json").is_file():
            raise _missing("model", folder, "no model folder (it has no config.json)")
        if not any(folder.glob("*.safetensors")):
            raise _missing("model", folder, "no *.safetensors file; nothing else is ever loaded")
    for _, key, reference in spec.model_references():
        folder = Path(reference)
        if reference != "base" and folder.parts[:1] not in [(stage,) for stage in STAGES]:
            if not (folder / "config.json").is_file():
                raise _missing(key, folder, "neither an earlier stage nor a model folder (it has no config.json)")


def _missing(key: str, path: Path, what: str) -> ConfigError:
    return ConfigError(f"{key}: {path.absolute()}: {what}", field=key, value=path)
