"""Configuration: layers, one-line errors, and who may be reached from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab_services.runtime.config import ModelServiceConfig, ServerTLS, ServiceConfig, is_loopback, load_config


def load(tmp_path: Path, yaml: str, overrides=None, environment=None) -> ModelServiceConfig:
    file = tmp_path / "reward.yaml"
    file.write_text(yaml)
    return load_config(ModelServiceConfig, "reward", file, overrides, environment or {})


def test_environment_goes_over_the_file_and_options_over_both(tmp_path):
    config = load(
        tmp_path,
        "weights: {address: 'a:1', channel: reward/serving}\ngrpc_port: 1\nhttp_port: 1\nhealth_port: 1\n",
        overrides={"http_port": 3, "weights.channel": "mine/serving", "drain_s": None},
        environment={"TRIMTAB_REWARD__HTTP_PORT": "2", "TRIMTAB_REWARD__HEALTH_PORT": "2", "TRIMTAB_OTHER__X": "1"},
    )
    assert (config.grpc_port, config.health_port, config.http_port) == (1, 2, 3)
    assert config.weights is not None
    assert (config.weights.address, config.weights.channel) == ("a:1", "mine/serving")
    assert config.drain_s == 30.0


def test_nested_environment(tmp_path):
    environment = {"TRIMTAB_REWARD__WEIGHTS__ADDRESS": "b:2", "TRIMTAB_REWARD__LOG__LEVEL": "debug"}
    config = load(tmp_path, "weights: {address: 'a:1', channel: c}", environment=environment)
    assert config.weights is not None
    assert (config.weights.address, config.weights.channel, config.log.level) == ("b:2", "c", "debug")


@pytest.mark.parametrize(
    ("yaml", "environment", "parts"),
    [
        ("model_folder: /m\ngrpc_prot: 3", {}, ["reward.yaml", "'grpc_prot'", "grpc_port"]),
        ("model_folder: /m\ngrpc_port: abc", {}, ["'grpc_port'", "'abc'", "integer"]),
        ("model_folder: /m\ngrpc_port: 70000", {}, ["'grpc_port'", "70000", "65535"]),
        ("model_folder: /m\nlog: {levl: x}", {}, ["'log.levl'", "calls, format, level, prompts"]),
        ("model_folder: /m\nlog: {level: loud}", {}, ["'log.level'", "'loud'", "'warning'"]),
        ("weights: {address: a}", {}, ["'weights.channel'", "missing"]),
        ("", {}, ["model_folder", "weights", "neither"]),
        ("model_folder: /m\nweights: {address: a, channel: b}", {}, ["exactly one", "both"]),
        ("- a\n- b", {}, ["reward.yaml", "mapping", "list"]),
        ("{a", {}, ["reward.yaml", "not a YAML file"]),
        ("model_folder: /m", {"TRIMTAB_REWARD__PROT": "1"}, ["TRIMTAB_REWARD__PROT", "'prot'", "grpc_port"]),
        ("model_folder: /m", {"TRIMTAB_REWARD__GRPC_PORT": "x"}, ["environment", "'grpc_port'", "'x'"]),
    ],
)
def test_a_wrong_key_is_one_line_that_names_key_value_and_allowed(tmp_path, yaml, environment, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, yaml, environment=environment)
    assert "\n" not in caught.value.message
    for part in parts:
        assert part in caught.value.message


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml"):
        load_config(ServiceConfig, "weights", tmp_path / "absent.yaml", None, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


def test_beyond_loopback_needs_tls_and_tokens_or_mtls_or_insecure(tmp_path):
    file = tmp_path / "pem"
    file.write_text("x")
    tls = ServerTLS(certificate_file=file, key_file=file)
    mutual = ServerTLS(certificate_file=file, key_file=file, client_ca_file=file)
    for bad in ({}, {"tls": tls}, {"tokens_file": file}):
        with pytest.raises(ConfigError) as caught:
            load_config(ServiceConfig, "weights", None, {"host": "0.0.0.0", **bad}, {})
        for word in ("0.0.0.0", "tls", "tokens_file", "client_ca_file", "insecure: true"):
            assert word in caught.value.message
    for good in ({"tls": tls, "tokens_file": file}, {"tls": mutual}, {"insecure": True}):
        load_config(ServiceConfig, "weights", None, {"host": "0.0.0.0", **good}, {})


def test_missing_certificate_is_named(tmp_path):
    overrides = {"tls.certificate_file": tmp_path / "no.pem", "tls.key_file": tmp_path / "no.key"}
    with pytest.raises(ConfigError, match=r"tls\.certificate_file: .*no\.pem"):
        load_config(ServiceConfig, "weights", None, overrides, {})
