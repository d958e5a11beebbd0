"""TLS, mTLS and tokens, through the SDK and the command line; every refusal is one clear line within seconds."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from certificate_files import Pair, make_pair
from running import FREE_PORTS, RunningServer, client, running
from trimtab import AsyncClient, Client, TLSConfig
from trimtab.errors import PermissionDenied, Reason, Unauthenticated, Unavailable
from trimtab.types import ScoreItem, ScoreRequest
from trimtab.v1 import trainer_pb2 as pb
from trimtab_services.runtime.config import ClientTLS, ServerTLS
from trimtab_services.trainer import main
from trimtab_services.trainer.config import TrainerServiceConfig

REQUEST = ScoreRequest(items=(ScoreItem(token_ids=(5, 6)),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server_pair(folder: Path) -> Pair:
    return make_pair(folder, "server")


@pytest.fixture(scope="module")
def client_pair(folder: Path) -> Pair:
    return make_pair(folder, "client")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Path:
    entries = {
        "secret-score": {"name": "filter", "scopes": ["score"]},
        "secret-runs": {"name": "ui", "scopes": ["runs"]},
    }
    path = folder / "tokens.json"
    path.write_text(json.dumps(entries))
    for token in entries:
        (folder / token).write_text(token)
    (folder / "unknown").write_text("no-such-token")
    return path


@pytest.fixture(scope="module")
def guarded(reward_folder: Path, server_pair: Pair, tokens: Path) -> Iterator[RunningServer]:
    """A reward service with TLS and tokens."""
    tls = {"certificate_file": server_pair.certificate, "key_file": server_pair.key}
    with running("reward", model_folder=reward_folder, tls=tls, tokens_file=tokens) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(reward_folder: Path, server_pair: Pair, client_pair: Pair) -> Iterator[RunningServer]:
    """A reward service that asks for client certificates."""
    tls = {
        "certificate_file": server_pair.certificate,
        "key_file": server_pair.key,
        "client_ca_file": client_pair.certificate,
    }
    with running("reward", model_folder=reward_folder, tls=tls) as server:
        yield server


def test_tokens_and_scopes(guarded: RunningServer, server_pair: Pair) -> None:
    tls = TLSConfig(ca_file=server_pair.certificate)
    with client(guarded, tls=tls, token="secret-score") as connection:
        assert len(connection.score(REQUEST).scores) == 1
    with client(guarded, tls=tls, token="secret-runs") as connection:
        with pytest.raises(PermissionDenied) as denied:
            connection.score(REQUEST)
        assert denied.value.limit == "score"
    for token, reason in ((None, Reason.TOKEN_MISSING), ("wrong", Reason.TOKEN_UNKNOWN)):
        with client(guarded, tls=tls, token=token) as connection, pytest.raises(Unauthenticated) as unknown:
            connection.score(REQUEST)
        assert unknown.value.reason is reason


def test_mutual_tls(mutual: RunningServer, server_pair: Pair, client_pair: Pair) -> None:
    tls = TLSConfig(server_pair.certificate, client_pair.certificate, client_pair.key)
    with client(mutual, tls=tls) as connection:
        assert len(connection.score(REQUEST).scores) == 1
        assert connection.info().state == "SERVING"


def test_a_client_takes_renewed_certificates_for_its_next_call(
    mutual: RunningServer, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    held = make_pair(tmp_path, "stranger")
    tls = TLSConfig(server_pair.certificate, held.certificate, held.key)
    with client(mutual, tls=tls) as connection:
        with pytest.raises(Unavailable):
            connection.score(REQUEST, timeout_s=3)
        held.certificate.unlink()
        with pytest.raises(Unavailable):  # a renewal under way is no other error
            connection.score(REQUEST, timeout_s=3)
        renew(held, client_pair)
        assert len(connection.score(REQUEST).scores) == 1


def test_an_asynchronous_client_takes_them_too(
    mutual: RunningServer, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    held = make_pair(tmp_path, "stranger")

    async def work() -> None:
        async with AsyncClient(
            mutual.target, tls=TLSConfig(server_pair.certificate, held.certificate, held.key)
        ) as connection:
            with pytest.raises(Unavailable):
                await connection.score(REQUEST, timeout_s=3)
            renew(held, client_pair)
            assert len((await connection.score(REQUEST)).scores) == 1

    asyncio.run(work())


def renew(held: Pair, other: Pair) -> None:
    shutil.copy(other.key, held.key)
    shutil.copy(other.certificate, held.certificate)


def test_a_replica_reached_by_its_address_has_the_name_s_certificate(reward_folder: Path, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "named", host="reward-headless.rlhf.svc")
    files = {"certificate_file": pair.certificate, "key_file": pair.key}
    with running("reward", model_folder=reward_folder, tls=files) as server:
        named = TLSConfig(pair.certificate, server_name="reward-headless.rlhf.svc")
        with client(server, tls=named) as connection:
            assert len(connection.score(REQUEST).scores) == 1
        with client(server, tls=TLSConfig(pair.certificate)) as connection, pytest.raises(Unavailable):
            connection.info(timeout_s=5)


@pytest.mark.parametrize("which", ["no certificate", "another's certificate", "another root", "plain text"])
def test_a_failed_handshake_is_unavailable_within_the_deadline(
    which: str, mutual: RunningServer, server_pair: Pair, client_pair: Pair
) -> None:
    tls = {
        "no certificate": TLSConfig(server_pair.certificate),
        "another's certificate": TLSConfig(server_pair.certificate, server_pair.certificate, server_pair.key),
        "another root": TLSConfig(client_pair.certificate, client_pair.certificate, client_pair.key),
        "plain text": None,
    }[which]
    began = time.monotonic()
    with client(mutual, tls=tls) as connection, pytest.raises(Unavailable) as refused:
        connection.score(REQUEST, timeout_s=3)
    assert mutual.target in refused.value.message and time.monotonic() - began < 6


def test_tls_towards_plain_text(reward_folder: Path, server_pair: Pair) -> None:
    with running("reward", model_folder=reward_folder) as server:
        tls = TLSConfig(server_pair.certificate)
        with client(server, tls=tls) as connection, pytest.raises(Unavailable, match=server.target):
            connection.score(REQUEST, timeout_s=3)


def score_command(server: RunningServer, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimtab", "score", "--target", server.target, "--timeout", "5"]
    pair = ["--prompt", "a", "--completion", "b"]
    return subprocess.run([*command, *map(str, options), *pair], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "token"), ("unknown", "token"), ("secret-runs", "score"), ("secret-none", "secret-none")],
    ids=["missing", "unknown", "without the scope", "no file"],
)
def test_the_command_line_says_what_is_wrong_with_a_token(
    guarded: RunningServer, server_pair: Pair, folder: Path, token: str | None, words: str
) -> None:
    options = ("--token-file", folder / token) if token else ()
    told = score_command(guarded, "--ca-file", server_pair.certificate, *options)
    assert told.returncode != 0 and words in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1, told.stderr


def test_the_command_line_over_tls_and_mutual_tls(
    guarded: RunningServer, mutual: RunningServer, server_pair: Pair, client_pair: Pair, folder: Path
) -> None:
    root = ("--ca-file", server_pair.certificate)
    told = score_command(guarded, *root, "--token-file", folder / "secret-score")
    assert told.returncode == 0, told.stderr
    told = score_command(mutual, *root, "--certificate-file", client_pair.certificate, "--key-file", client_pair.key)
    assert told.returncode == 0, told.stderr
    told = score_command(mutual, *root, "--certificate-file", client_pair.certificate)
    assert told.returncode == 2 and "belong together" in told.stderr
    told = score_command(mutual, *root)
    assert told.returncode != 0 and mutual.target in told.stderr


def test_a_run_reports_over_tls_with_its_token(
    tmp_path: Path, server_pair: Pair, tokens: Path, folder: Path, llama_folder: Path
) -> None:
    rows = tmp_path / "demonstrations.jsonl"
    rows.write_text('{"prompt": "the dog", "completion": "It sleeps."}\n' * 4)
    sft = {"demonstrations": str(rows), "pretraining": None, "rl_init": None, "epochs": 1, "held_out_fraction": 0}
    spec = {"name": "r", "directory": "r", "model": str(llama_folder), "data_directory": str(tmp_path)}
    tls = ServerTLS(certificate_file=server_pair.certificate, key_file=server_pair.key)
    reach = ClientTLS(ca_file=server_pair.certificate)
    with pytest.raises(ValueError, match="report_tls"):
        TrainerServiceConfig(directory=tmp_path / "runs", tls=tls, tokens_file=tokens, **FREE_PORTS)
    config = TrainerServiceConfig(
        directory=tmp_path / "runs",
        tls=tls,
        tokens_file=tokens,
        token_file=folder / "secret-runs",
        report_tls=reach,
        drain_s=5.0,
        **FREE_PORTS,
    )
    server = RunningServer(config, "trainer", "trimtab.v1.TrainerService", main.build)
    try:
        with Client(server.target, token="secret-runs", tls=TLSConfig(server_pair.certificate)) as connection:
            text = yaml.safe_dump({**spec, "stages": ["sft"], "sft": sft})
            connection.start_run(pb.StartRunRequest(name="guarded", spec_yaml=text), timeout_s=60)
            events = [r.event for r in connection.watch_run(pb.WatchRunRequest(name="guarded"), timeout_s=60)]
        assert events[-1].run_ended.state == pb.RUN_STATE_SUCCEEDED
    finally:
        server.stop()
