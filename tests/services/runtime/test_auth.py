"""Tokens and scopes."""

from __future__ import annotations

import json

import pytest

from trimtab.errors import ConfigError, PermissionDenied, Reason, Unauthenticated
from trimtab.v1 import generation_pb2, info_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2
from trimtab_services.runtime.auth import METHODS, SCOPES, Identity, TokenTable, check_scope, policy_of

ENTRY = {"name": "trainer", "scopes": ["score"]}


def test_every_rpc_of_the_contract_has_a_policy_with_a_known_scope():
    for module in (generation_pb2, info_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                policy = METHODS[f"/{service.full_name}/{method.name}"]
                assert policy.scope in SCOPES or service.name == "InfoService"
                assert policy.needs_token


def test_a_method_outside_the_table_needs_admin():
    assert policy_of("/trimtab.v1.New/Method").scope == "admin"


def test_yaml_and_json(tmp_path):
    for name, text in (("t.yaml", "abc: {name: trainer, scopes: [score]}"), ("t.json", json.dumps({"abc": ENTRY}))):
        (tmp_path / name).write_text(text)
        identity = TokenTable(tmp_path / name).identify("Bearer abc")
        assert identity == Identity("trainer", frozenset({"score"}))


def test_missing_and_unknown_tokens(tmp_path):
    (tmp_path / "t").write_text(json.dumps({"abc": ENTRY}))
    table = TokenTable(tmp_path / "t")
    for header in (None, "", "Basic abc", "Bearer", "Bearer "):
        with pytest.raises(Unauthenticated) as caught:
            table.identify(header)
        assert caught.value.reason == Reason.TOKEN_MISSING
    with pytest.raises(Unauthenticated) as caught:
        table.identify("Bearer abd")
    assert caught.value.reason == Reason.TOKEN_UNKNOWN
    assert "abd" not in caught.value.message


def test_re_read_when_changed_and_last_good_kept(tmp_path):
    file = tmp_path / "t"
    file.write_text(json.dumps({"abc": ENTRY}))
    table = TokenTable(file, recheck_s=0.0)
    file.write_text(json.dumps({"rotated": ENTRY}))
    assert table.identify("Bearer rotated").name == "trainer"
    with pytest.raises(Unauthenticated):
        table.identify("Bearer abc")
    file.write_text("{broken")
    assert table.identify("Bearer rotated").name == "trainer"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "at least one token"),
        ("[a]", "at least one token"),
        ("secret: {name: x}", "must have the keys"),
        ("secret: {name: '', scopes: []}", "`name`"),
        ("secret: {name: x, scopes: all}", "`scopes` must be a list"),
        ("secret: {name: x, scopes: [scor]}", "'scor'"),
        ("{secret", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_without_telling_a_token(tmp_path, text, part):
    (tmp_path / "t").write_text(text)
    with pytest.raises(ConfigError) as caught:
        TokenTable(tmp_path / "t")
    assert part in caught.value.message
    assert "secret" not in caught.value.message


def test_scopes():
    check_scope(Identity("a", frozenset({"score"})), "score")
    check_scope(Identity("a", frozenset({"admin"})), "score")
    check_scope(Identity("a"), "score")
    check_scope(Identity("a", frozenset()), "")
    check_scope(Identity("a", frozenset({"label"})), "label.read")
    with pytest.raises(PermissionDenied) as caught:
        check_scope(Identity("a", frozenset({"logprobs"})), "score")
    assert caught.value.limit == "score"
    with pytest.raises(PermissionDenied):
        check_scope(Identity("a", frozenset({"label.read"})), "label")
