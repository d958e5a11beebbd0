"""The run spec: presets, overrides, and every mistake answered with key, value and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab.errors import ConfigError
from trimtab_trainer.config import PRESETS, RunSpec, load_run_spec, preset_path, spec_to_yaml
from trimtab_trainer.quickstart import quickstart_specs
from trimtab_trainer.services_config import ServicesConfig

SMALL = {"name": "r", "directory": "runs/r", "model": "base", "stages": ["sft"], "data_directory": "data"}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_being_written(name: str, tmp_path: Path) -> None:
    spec = load_run_spec(preset_path(name), ["services.endpoints_file=endpoints.json"])
    written = tmp_path / "spec.yaml"
    written.write_text(spec_to_yaml(spec))
    assert load_run_spec(written) == spec


def test_defaults_are_instructgpts() -> None:
    spec = load_run_spec(preset_path("instructgpt"))
    assert (spec.sft.epochs, spec.sft.batch_size, spec.sft.dropout) == (16, 32, 0.2)
    assert spec.sft.optimizer.learning_rate == 9.65e-6
    assert (spec.reward_model.epochs, spec.reward_model.batch_size) == (1, 64)
    ppo = spec.ppo
    assert ppo.iterations * ppo.prompts_per_iteration == 256_000
    assert (ppo.minibatches, ppo.epochs, ppo.kl_coef, ppo.ptx_coef, ppo.ptx_ratio) == (8, 1, 0.02, 27.8, 8)
    assert (ppo.ema_decay, ppo.optimizer.beta2, ppo.gamma, ppo.lam) == (0.992, 0.95, 1.0, 0.95)
    compared = {name: one.model for name, one in spec.evaluate.models.items()}
    assert compared["sft"] == "sft_baseline" and compared["rl_init"] == ppo.policy == "sft/rl_init"
    assert {"base", "few_shot", "ppo", "ppo_ptx"} <= compared.keys()


def test_a_preset_lies_under_the_file_and_overrides_over_it(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("preset: smollm2\nsft: {epochs: 3}\n")
    spec = load_run_spec(path, ["sft.limit=7", "ppo.optimizer.learning_rate=1e-5", "sft.limit=8", "stages=[sft]"])
    assert (spec.sft.epochs, spec.sft.limit, spec.sft.batch_size) == (3, 8, 16)
    assert spec.ppo.optimizer.learning_rate == 1e-5
    assert spec.stages == ("sft",)


def test_an_unknown_key_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_spec(write(tmp_path, sft={"optimizer": {"learning_rate": 1e-5, "lr": 3}}))
    assert "'sft.optimizer.lr'" in caught.value.message
    assert "learning_rate" in caught.value.limit and "beta1" in caught.value.limit
    assert caught.value.field == "sft.optimizer.lr" and caught.value.value == "3"


def test_each_problem_has_its_own_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_spec(write(tmp_path, name="a b", sft={"epochs": 0}, ppo={"kl_controller": "best"}))
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert "'name' has value 'a b'" in lines[0]
    assert "'sft.epochs' has value 0" in lines[1] and "greater than or equal to 1" in lines[1]
    assert "'ppo.kl_controller' has value 'best'" in lines[2] and "adaptive" in lines[2]


@pytest.mark.parametrize("override", ["top_p=0.8", "top_k=50", "min_new_tokens=4"])
def test_truncated_sampling_is_refused_with_its_reason(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="renormalise"):
        load_run_spec(write(tmp_path), [f"ppo.sampling.{override}"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": ["reward_model", "sft"]}, "in the order"),
        ({"stages": ["sft", "sft"]}, "each once"),
        ({"precision": "bfloat16"}, "allowed on cpu: float32"),
        ({"stages": ["collect_rankings"]}, "set `miniature`"),
        ({"model": "miniature"}, "`miniature` must be there"),
        ({"data_directory": None}, "sft.demonstrations is '{data}/demonstrations.jsonl.gz'; set `data_directory`"),
        (
            {"services": {"endpoints_file": "e", "reward": {}}},
            "exactly one of `addresses`, `endpoints_file`, `dns` and",
        ),
        ({"ppo": {"minibatches": 7}}, "a divisor of 512"),
        ({"sft": {"pretraining": None}}, "`pretraining` must name"),
        ({"collect_rankings": {"corrupted_answers": 8}}, "allowed: 4..9"),
        ({"sft": {"pretraining": "labeling:p"}}, "sft.pretraining is 'labeling:p'; projects of the labeling service"),
        ({"sft": {"demonstrations": "labeling:../p"}}, "sft.demonstrations is 'labeling:../p'; behind labeling:"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_run_spec(write(tmp_path, **changes))


def test_given_endpoints_are_for_what_the_spec_does_not_say(tmp_path: Path) -> None:
    def services(given: object) -> ServicesConfig:
        found = load_run_spec(write(tmp_path, services=given), endpoints_file=Path("given.json")).services
        assert found is not None
        return found

    for empty in (None, {}):
        assert services(empty).endpoints_file == Path("given.json")
    with_token = services({"token_file": "run.token", "reward": {"addresses": ["h:1"]}})
    assert with_token.token_file == Path("run.token") and with_token.of("reward").addresses == ("h:1",)
    assert with_token.of("labeling").endpoints_file == Path("given.json")
    assert services({"endpoints_file": "own.json"}).endpoints_file == Path("own.json")
    with pytest.raises(ConfigError, match="key 'services' has value 'here'"):
        services("here")


@pytest.mark.parametrize("override", ["sft.epochs", "=3", "sft..epochs=3", "sft.epochs=[1"])
def test_a_bad_override_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        load_run_spec(write(tmp_path), [override])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml"):
        load_run_spec(tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        load_run_spec(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="allowed: tiny, smollm2, gemma3, instructgpt"):
        preset_path("huge")


def test_placeholders_of_paths(tmp_path: Path) -> None:
    spec = load_run_spec(write(tmp_path))
    assert spec.path("{data}/a.jsonl") == Path("data/a.jsonl")
    assert spec.path("{directory}/data/b.jsonl") == Path("runs/r/data/b.jsonl")


def test_a_labeling_project_stands_for_its_copy_in_the_runs_folder(tmp_path: Path) -> None:
    spec = load_run_spec(write(tmp_path, sft={"demonstrations": "labeling:answers"}))
    assert dict(spec.data_paths())["sft.demonstrations"] == "labeling:answers"
    assert spec.path("labeling:answers") == Path("runs/r/labels/answers.jsonl")


def test_every_field_is_documented() -> None:
    undocumented = []
    pending: list[tuple[str, type]] = [("", RunSpec)]
    while pending:
        prefix, model = pending.pop()
        for name, field in model.model_fields.items():
            kinds = [
                k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(k, "model_fields")
            ]
            pending += [(f"{prefix}{name}.", kind) for kind in kinds]
            if not field.description and not kinds:
                undocumented.append(prefix + name)
    assert undocumented == []


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, trimtab_trainer.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("full", [False, True])
def test_every_spec_of_the_quickstart_is_valid(tmp_path: Path, full: bool) -> None:
    specs = quickstart_specs(tmp_path, "tiny", None, full=full)
    loaded = {name: load_run_spec(_saved(tmp_path / f"{name}.yaml", spec)) for name, spec in specs.items()}
    assert list(loaded) == (["base-4x", "seed-1", "seed-2", "seed-3"] if full else ["quickstart"])
    assert [name for name, spec in loaded.items() if "ppo_without_kl" in spec.stages] == (["seed-1"] if full else [])


def _saved(path: Path, spec: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump({"name": "r", "directory": "runs/r", **spec}))
    return path


@pytest.mark.parametrize(("model", "full", "words"), [("gemma3", False, "--data"), ("smollm2", True, "--full")])
def test_a_quickstart_on_human_data_says_what_it_needs(tmp_path: Path, model: str, full: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        quickstart_specs(tmp_path, model, None, full=full)
