"""The reward service's declared models: what is wrong with a configuration is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.errors import ConfigError
from trimtab_services.reward.config import RewardConfig, formula_names
from trimtab_services.runtime.config import load_config

FOLDER = {"kind": "model", "model_folder": "/models/a"}


def load(tmp_path: Path, **settings: Any) -> RewardConfig:
    file = tmp_path / "reward.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_config(RewardConfig, "reward", file, environment={})


def test_the_default_comes_first(tmp_path: Path) -> None:
    models = {"a": FOLDER, "b": FOLDER, "both": {"kind": "ensemble", "members": ["a", "own"]}}
    assert list(load(tmp_path, models=models | {"own": FOLDER}).declared) == ["a", "b", "both", "own"]
    config = load(tmp_path, model_folder="/models/own", model_name="own", models=models)
    assert list(config.declared) == ["own", "a", "b", "both"]
    assert list(load(tmp_path, models=models | {"own": FOLDER}, default_model="both").declared)[0] == "both"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set exactly one of `model_folder` and `weights`; found neither"),
        ({"models": {"a": {"kind": "model"}}}, "found neither"),
        (
            {"models": {"a": {**FOLDER, "folder": "x"}}},
            "unknown key 'models.a.folder'; allowed: cache_dir",
        ),
        ({"models": {"a": {"kind": "ensemble", "membrs": []}}}, "unknown key .*; allowed: combine, k, kind, members"),
        ({"models": {"a": {"kind": "magic"}}}, "does not match any of the expected tags: 'model', 'ensemble'"),
        (
            {"models": {"a": FOLDER, "e": {"kind": "ensemble", "members": ["a", "c"]}}},
            "models.e: 'c' is no model; known are 'a', 'e'",
        ),
        (
            {"models": {"a": {"kind": "formula", "formula": "b+1"}, "b": {"kind": "formula", "formula": "2*a"}}},
            "models: a -> b -> a: made from itself",
        ),
        ({"models": {"a": {"kind": "formula", "formula": "__import__('os')"}}}, "__import__\\(\\) is not known"),
        ({"models": {"a": FOLDER, "f": {"kind": "formula", "formula": "a."}}}, "no arithmetic expression"),
        ({"models": {"a": FOLDER, "f": {"kind": "formula", "formula": "a.b"}}}, "Attribute is no arithmetic"),
        ({"models": {"a": FOLDER, "f": {"kind": "formula", "formula": "1 + tokens"}}}, "names no reward model"),
        ({"models": {"a": {"kind": "function", "function": "nothing"}}}, "models.a.function"),
        ({"models": {"a": {"kind": "remote", "url": "ftp://x"}}}, "models.a.url"),
        ({"models": {"a": FOLDER}, "default_model": "b"}, "default_model: 'b' is no model; known are 'a'"),
        ({"models": {"reward": FOLDER}, "model_folder": "/x"}, "'reward' is the name of the service's own model"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **settings)


def test_names_of_a_formula() -> None:
    assert formula_names("0.5 * max(a, b) - 0.01 * completion_tokens if a > 0 else -1.0") == ("a", "b")
    for wrong in (
        "a if",
        "[a]",
        "'a'",
        "lambda: a",
        "a and b",
        "True",
        "1e999",
        "a ** (yield)",
        "f(a)",
        "max(a, key=b)",
    ):
        with pytest.raises(ValueError, match="."):
            formula_names(wrong)
