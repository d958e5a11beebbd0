"""One table of reasons: the same in the proto and in Python, and nothing of an error is lost on the wire."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from trimtab import AsyncClient
from trimtab.client import Client
from trimtab.errors import DOMAIN, REASONS, ConfigError, InternalError, Reason, TrimtabError
from trimtab.rpc_errors import to_status
from trimtab.v1 import errors_pb2, info_pb2, info_pb2_grpc


def test_reasons_are_those_of_the_proto() -> None:
    names = [name.removeprefix("REASON_") for name in errors_pb2.Reason.keys() if name != "REASON_UNSPECIFIED"]  # noqa: SIM118
    assert names == [reason.value for reason in Reason]


def test_every_reason_has_code_and_class() -> None:
    assert set(REASONS) == set(Reason)
    for reason, (code, kind) in REASONS.items():
        assert isinstance(code, grpc.StatusCode) and code is not grpc.StatusCode.OK
        assert issubclass(kind, TrimtabError) and kind("x", reason=reason).reason is reason
    defaults = {kind.default_reason for _, kind in REASONS.values()}
    assert all(REASONS[reason][1].default_reason in defaults for reason in Reason)


def test_the_protos_comments_name_the_tables_codes() -> None:
    """The comment of each value starts with its gRPC code, which is documentation that must not go stale."""
    from pathlib import Path

    proto = (Path(__file__).parents[2] / "protos/trimtab/v1/errors.proto").read_text().splitlines()
    for reason in Reason:
        line = next(i for i, text in enumerate(proto) if text.strip().startswith(f"REASON_{reason.value} ="))
        assert proto[line - 1].strip().startswith(f"// {REASONS[reason][0].name}: "), reason


class Failing(info_pb2_grpc.InfoServiceServicer):
    """Answers every call with the error that it was told."""

    def __init__(self) -> None:
        self.status: grpc.Status | None = None
        self.hang_s = 0.0

    def GetInfo(self, request, context):
        if self.hang_s:
            import time

            time.sleep(self.hang_s)
        if self.status is not None:
            context.abort_with_status(self.status)
        return info_pb2.GetInfoResponse(state=info_pb2.SERVICE_STATE_SERVING)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Failing, str]]:
    servicer = Failing()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    info_pb2_grpc.add_InfoServiceServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer, target
    server.stop(None).wait()


def sync_call(target: str, timeout_s: float = 5.0) -> TrimtabError:
    with Client(target) as client, pytest.raises(TrimtabError) as caught:
        client.info(timeout_s=timeout_s)
    return caught.value


def aio_call(target: str, timeout_s: float = 5.0) -> TrimtabError:
    async def call() -> TrimtabError:
        async with AsyncClient(target) as client:
            with pytest.raises(TrimtabError) as caught:
                await client.info(timeout_s=timeout_s)
        return caught.value

    return asyncio.run(call())


CALLS = pytest.mark.parametrize("call", [sync_call, aio_call])


@CALLS
@pytest.mark.parametrize("reason", Reason)
def test_nothing_of_an_error_is_lost(served, call, reason: Reason) -> None:
    servicer, target = served
    code, kind = REASONS[reason]
    sent = kind(
        "prompts[3].seed: é 1 is above 0\nnext line",
        reason=reason,
        field="prompts[3].seed",
        value="é 1",
        limit=0,
        metadata={"served_version": "7", "holder": "ann"},
        retry_after_s=1.25,
    )
    servicer.status = to_status(sent, "/trimtab.v1.InfoService/GetInfo")
    assert servicer.status.code is code
    got = call(target)
    assert type(got) is kind
    for name in ("message", "reason", "field", "value", "limit", "retry_after_s"):
        assert getattr(got, name) == getattr(sent, name), name
    assert got.metadata == sent.metadata | {"method": "/trimtab.v1.InfoService/GetInfo"}


@CALLS
def test_the_bare_error(served, call) -> None:
    servicer, target = served
    servicer.status = to_status(InternalError("broken"))
    got = call(target)
    assert (got.message, got.field, got.value, got.limit, got.metadata, got.retry_after_s) == (
        "broken", "", "", "", {}, None,
    )  # fmt: skip


def test_a_local_error_is_a_fault_of_the_server() -> None:
    assert to_status(ConfigError("x", field="y")).code is grpc.StatusCode.INTERNAL


@CALLS
def test_a_reason_of_a_newer_server_keeps_the_class_of_its_code(served, call) -> None:
    from google.protobuf import any_pb2
    from google.rpc import code_pb2, error_details_pb2, status_pb2
    from grpc_status import rpc_status

    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain=DOMAIN, metadata={"limit": "3"}))
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too much", details=[packed])
    servicer, target = served
    servicer.status = rpc_status.to_status(status)
    got = call(target)
    assert type(got) is REASONS[Reason.QUEUE_FULL][1] and (got.message, got.limit) == ("too much", "3")


@CALLS
def test_connection_refused(call) -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port
        held.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{held.getsockname()[1]}"
        got = call(target)
    assert type(got).__name__ == "Unavailable" and got.reason is Reason.UNREACHABLE
    assert got.message.startswith(f"{target}: cannot be reached")


@CALLS
def test_deadline(served, call) -> None:
    servicer, target = served
    servicer.status, servicer.hang_s = None, 0.6
    try:
        got = call(target, 0.2)
    finally:
        servicer.hang_s = 0.0
    assert type(got).__name__ == "DeadlineExceeded" and got.reason is Reason.DEADLINE_EXCEEDED
    assert got.message == f"{target}: GetInfo was not done within 0.2 s"
