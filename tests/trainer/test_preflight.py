"""What is missing is named, with key and path, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from trimtab.errors import ConfigError
from trimtab_trainer.cli import run
from trimtab_trainer.config import RunSpec
from trimtab_trainer.preflight import check_inputs, check_services

DATASETS = ("demonstrations", "rankings", "prompts", "pretrain")


@pytest.fixture
def fields(tmp_path: Path, llama_folder: Path) -> dict[str, Any]:
    for name in DATASETS:
        (tmp_path / f"{name}.jsonl.gz").touch()
    (tmp_path / "endpoints.json").write_text("{}")
    return {
        "name": "r",
        "directory": tmp_path / "run",
        "model": str(llama_folder),
        "data_directory": tmp_path,
        "stages": ["sft", "reward_model", "ppo"],
        "services": {"endpoints_file": tmp_path / "endpoints.json"},
    }


def test_a_spec_whose_inputs_are_there_passes_and_leaves_no_trace(fields: dict[str, Any]) -> None:
    check_inputs(RunSpec.model_validate(fields))
    assert not fields["directory"].exists()


def test_a_missing_model_is_named(fields: dict[str, Any], tmp_path: Path) -> None:
    for name, words in (("nowhere", "no such folder"), ("empty", "no config.json"), ("pickled", "no \\*.safetensors")):
        if name != "nowhere":
            (tmp_path / name).mkdir()
        if name == "pickled":
            (tmp_path / name / "config.json").write_text("{}")
            (tmp_path / name / "pytorch_model.bin").touch()
        with pytest.raises(ConfigError, match=words) as caught:
            check_inputs(RunSpec.model_validate({**fields, "model": str(tmp_path / name)}))
        assert caught.value.field == "model" and str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize(
    ("dataset", "key"),
    [
        ("demonstrations", "sft.demonstrations"),
        ("rankings", "reward_model.rankings"),
        ("prompts", "ppo.prompts"),
        ("pretrain", "sft.pretraining"),
    ],
)
def test_a_missing_dataset_is_named(fields: dict[str, Any], tmp_path: Path, dataset: str, key: str) -> None:
    path = tmp_path / f"{dataset}.jsonl.gz"
    path.unlink()
    with pytest.raises(ConfigError, match="no such file") as caught:
        check_inputs(RunSpec.model_validate(fields))
    assert caught.value.field == key and str(path) in caught.value.message


def test_what_the_run_itself_writes_is_not_asked_for(fields: dict[str, Any]) -> None:
    check_inputs(RunSpec.model_validate({**fields, "ppo": {"prompts": "{directory}/data/prompts.jsonl"}}))


def test_services_are_asked_for_where_a_stage_needs_them(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="services: not set, but ppo work"):
        check_inputs(RunSpec.model_validate({**fields, "services": None}))
    check_inputs(RunSpec.model_validate({**fields, "services": None, "stages": ["sft"]}))
    (tmp_path / "endpoints.json").unlink()
    with pytest.raises(ConfigError, match="services.generation: .*endpoints.json: no such file; `trimtab up`"):
        check_inputs(RunSpec.model_validate(fields))


def test_of_a_run_elsewhere_no_file_is_looked_for(fields: dict[str, Any], tmp_path: Path) -> None:
    elsewhere = {**fields, "model": "/models/x", "services": {"endpoints_file": tmp_path / "absent.json"}}
    check_services(RunSpec.model_validate({**elsewhere, "data_directory": "/data"}))
    with pytest.raises(ConfigError, match="services: not set, but ppo work"):
        check_services(RunSpec.model_validate({**elsewhere, "services": None}))


def test_a_labeling_project_needs_the_service_and_no_other(fields: dict[str, Any], tmp_path: Path) -> None:
    labeled = {**fields, "stages": ["sft"], "sft": {"demonstrations": "labeling:answers"}}
    check_inputs(RunSpec.model_validate(labeled))
    check_inputs(RunSpec.model_validate({**labeled, "services": {"labeling": {"addresses": ["h:1"]}}}))
    with pytest.raises(ConfigError, match="services.labeling: no addresses, but sft.demonstrations is 'labeling:answ"):
        check_services(RunSpec.model_validate({**labeled, "services": None}))
    (tmp_path / "endpoints.json").unlink()
    with pytest.raises(ConfigError, match="services.labeling: .*endpoints.json: no such file"):
        check_inputs(RunSpec.model_validate(labeled))


def test_a_run_on_labels_is_told_of_labeling_alone_and_takes_the_given_endpoints(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    labeled = {**fields, "stages": ["sft"], "sft": {"demonstrations": "labeling:answers"}, "services": None}
    (file := tmp_path / "spec.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(labeled, default=str))))
    arguments = [str(file), "--check", "--offline", "--set", "services.token_file=run.token"]
    with pytest.raises(ConfigError, match="^services.labeling: no addresses, but .*--endpoints") as caught:
        CliRunner().invoke(run, arguments, catch_exceptions=False)
    assert "generation" not in caught.value.message
    endpoints = ["--endpoints", str(tmp_path / "endpoints.json")]
    assert CliRunner().invoke(run, [*arguments, *endpoints], catch_exceptions=False).exit_code == 0


def test_an_offline_check_says_that_a_labeling_project_is_not_asked_about(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    labeled = {**fields, "stages": ["sft"], "sft": {"demonstrations": "labeling:answers"}}
    (file := tmp_path / "spec.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(labeled, default=str))))
    for options in (["--check", "--offline"], ["--check-spec"]):
        done = CliRunner().invoke(run, [str(file), *options], catch_exceptions=False)
        assert done.exit_code == 0
        assert "sft.demonstrations: labeling:answers is not asked about here" in done.output
    with pytest.raises(ConfigError, match="offline: only with --check"):
        CliRunner().invoke(run, [str(file), "--offline"], catch_exceptions=False)
    file.write_text(yaml.safe_dump(json.loads(json.dumps(fields, default=str))))
    assert "asked" not in CliRunner().invoke(run, [str(file), "--check"], catch_exceptions=False).output


def test_the_address_of_labeling_alone_is_not_enough_to_sample(fields: dict[str, Any]) -> None:
    for services in ({"labeling": {"addresses": ["h:1"]}}, {"token_file": "run.token"}, {}):
        with pytest.raises(ConfigError, match="services.generation: no addresses, but ppo work with it"):
            check_services(RunSpec.model_validate({**fields, "services": services}))
    pods = {name: {"addresses": ["h:1"]} for name in ("generation", "reward", "reference", "weights")}
    check_services(RunSpec.model_validate({**fields, "services": pods}))
    with pytest.raises(ConfigError, match="services.labeling: no addresses, but reward_model.rankings is 'labeling:p'"):
        check_services(RunSpec.model_validate({**fields, "services": pods, "reward_model": {"rankings": "labeling:p"}}))


def test_demonstrations_that_an_evaluation_shows_are_asked_for(fields: dict[str, Any], tmp_path: Path) -> None:
    models = {"few_shot": {"model": "base", "demonstrations": 3}}
    spec = RunSpec.model_validate({**fields, "stages": ["evaluate"], "evaluate": {"models": models}})
    check_inputs(spec)
    (tmp_path / "demonstrations.jsonl.gz").unlink()
    with pytest.raises(ConfigError, match="sft.demonstrations: .*no such file"):
        check_inputs(spec)
