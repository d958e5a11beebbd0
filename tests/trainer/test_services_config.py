"""How a run, as a client, reaches each of its services."""

from __future__ import annotations

from pathlib import Path

import pytest

from certificate_files import make_pair
from trimtab import Client
from trimtab.errors import ConfigError, Unavailable
from trimtab_trainer.services_config import ServicesConfig

from ..services.weights.conftest import RunningStore


def test_a_service_without_addresses_is_named() -> None:
    config = ServicesConfig.model_validate({"reward": {"addresses": ["h:1"]}})
    assert config.of("reward").addresses == ("h:1",)
    with pytest.raises(ConfigError, match="services.weights: no addresses; give it an entry, or set services.endpoin"):
        config.of("weights")


def test_a_service_behind_a_name_is_reached_by_its_address_over_tls_under_that_name(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "weights", host="weights.rlhf.svc")
    (tmp_path / "token").write_text("a" * 20)
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"{'a' * 20}: {{name: run, scopes: [weights.publish]}}\n")
    tls = {"certificate_file": pair.certificate, "key_file": pair.key}
    store = RunningStore(store=str(tmp_path / "store"), tls=tls, tokens_file=tokens)
    try:
        secrets = {"token_file": tmp_path / "token", "tls": {"ca_file": pair.certificate}}
        given = {"endpoints_file": "e.json", "weights": {"endpoint_slices": "rlhf/weights:grpc"}, **secrets}
        config = ServicesConfig.model_validate(given)
        with Client(store.target, **config.credentials("weights")) as client:
            assert client.info(timeout_s=10).state.value == "SERVING"
        config = ServicesConfig.model_validate({**given, "weights": {"addresses": [store.target]}})
        with Client(store.target, **config.credentials("weights")) as client, pytest.raises(Unavailable):
            client.info(timeout_s=3)
    finally:
        store.stop()
