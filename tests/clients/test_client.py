"""Both clients against a real server: deadlines, retries and tokens."""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from certificate_files import make_pair
from trimtab import AsyncClient, Client, GenerateRequest, GenerationPrompt, TLSConfig, Token, rpcs
from trimtab.channel import MAX_TRIES, is_loopback, retry_delay_s
from trimtab.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    TrimtabError,
    Unavailable,
)
from trimtab.rpc_errors import to_status
from trimtab.rpcs import Rpc
from trimtab.v1 import reward_pb2, weights_pb2

RPCS: dict[str, Rpc] = {rpc.path: rpc for rpc in vars(rpcs).values() if isinstance(rpc, Rpc)}
UNARY = {
    rpcs.INFO: "info",
    rpcs.SCORE: "score",
    rpcs.RANK: "rank",
    rpcs.LOGPROBS: "logprobs",
    rpcs.ACQUIRE_LEASE: "acquire_lease",
    rpcs.RELEASE_LEASE: "release_lease",
    rpcs.FIND_MISSING_BLOBS: "find_missing_blobs",
    rpcs.PUBLISH: "publish",
    rpcs.GET_MANIFEST: "get_manifest",
    rpcs.LIST_VERSIONS: "list_versions",
    rpcs.LIST_CHANNELS: "list_channels",
    rpcs.SET_CHANNEL: "set_channel",
    rpcs.PIN: "pin",
    rpcs.PRUNE: "prune",
    rpcs.START_RUN: "start_run",
    rpcs.GET_RUN: "get_run",
    rpcs.LIST_RUNS: "list_runs",
    rpcs.STOP_RUN: "stop_run",
    rpcs.RESUME_RUN: "resume_run",
    rpcs.CHECKPOINT_RUN: "checkpoint_run",
    rpcs.DELETE_RUN: "delete_run",
    rpcs.CREATE_PROJECT: "create_project",
    rpcs.GET_PROJECT: "get_project",
    rpcs.LIST_PROJECTS: "list_projects",
    rpcs.UPDATE_PROJECT: "update_project",
    rpcs.WITHDRAW_TASKS: "withdraw_tasks",
    rpcs.RESET_QUALIFICATION: "reset_qualification",
    rpcs.GET_AGREEMENT: "get_agreement",
    rpcs.CREATE_ACCOUNT: "create_account",
    rpcs.UPDATE_ACCOUNT: "update_account",
    rpcs.LIST_ACCOUNTS: "list_accounts",
    rpcs.LIST_AUDIT_EVENTS: "list_audit_events",
}
STREAMS_BOTH = (rpcs.SCORE_STREAM, rpcs.LOGPROBS_STREAM, rpcs.REPORT_EVENTS)
STREAMS_IN = (rpcs.IMPORT_TASKS,)
STREAMS_OUT = (rpcs.GENERATE, rpcs.WATCH, rpcs.WATCH_RUN, rpcs.WATCH_RUN_LOG, rpcs.EXPORT_LABELS)


class Everything(grpc.GenericRpcHandler):
    """Answers every rpc of the package: first with the errors it was given, then with an empty reply."""

    def __init__(self) -> None:
        self.errors: list[TrimtabError | grpc.StatusCode] = []
        self.hang = threading.Event()
        self.hang.set()
        self.reset()

    def reset(self) -> None:
        self.calls: Counter[str] = Counter()
        self.deadlines: list[float | None] = []
        self.tokens: list[str | None] = []
        self.ended = threading.Event()

    def service(self, details):
        rpc = RPCS[details.method]

        def answer(request, context):
            self.calls[details.method] += 1
            self.deadlines.append(context.time_remaining())
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            context.add_callback(self.ended.set)
            if self.errors:
                error = self.errors.pop(0)
                if isinstance(error, grpc.StatusCode):
                    context.abort(error, error.name)
                context.abort_with_status(to_status(error))
            self.hang.wait(5)
            return rpc.response()

        def stream(request, context):
            first = answer(request, context)
            for _ in request if rpc in STREAMS_BOTH else range(2):
                yield first
            while details.method == rpcs.WATCH.path and context.is_active():
                time.sleep(0.01)

        kinds = {
            "deserializer": {"request_deserializer": rpc.request.FromString},
            "serializer": {"response_serializer": rpc.response.SerializeToString},
        }
        options = kinds["deserializer"] | kinds["serializer"]
        if rpc in STREAMS_BOTH:
            return grpc.stream_stream_rpc_method_handler(stream, **options)
        if rpc in STREAMS_OUT:
            return grpc.unary_stream_rpc_method_handler(stream, **options)
        if rpc in STREAMS_IN:
            return grpc.stream_unary_rpc_method_handler(answer, **options)
        return grpc.unary_unary_rpc_method_handler(answer, **options)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Everything, str]]:
    handler = Everything()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[handler])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler, target
    handler.hang.set()
    server.stop(None).wait()


@pytest.fixture
def served(running) -> tuple[Everything, str]:
    handler, target = running
    handler.errors.clear()
    handler.hang.set()
    handler.reset()
    return handler, target


def sync_unary(target: str, method: str, request, timeout_s: float | None = None, **options):
    with Client(target, **options) as client:
        arguments = () if method == "info" else (request,)
        return getattr(client, method)(*arguments, timeout_s=timeout_s)


def aio_unary(target: str, method: str, request, timeout_s: float | None = None, **options):
    async def call():
        async with AsyncClient(target, **options) as client:
            arguments = () if method == "info" else (request,)
            return await getattr(client, method)(*arguments, timeout_s=timeout_s)

    return asyncio.run(call())


BOTH = pytest.mark.parametrize("unary", [sync_unary, aio_unary])
CHANNELS = weights_pb2.ListChannelsRequest()


def test_every_rpc_of_the_protos_is_in_the_table() -> None:
    assert set(UNARY) | set(STREAMS_BOTH) | set(STREAMS_IN) | set(STREAMS_OUT) == set(RPCS.values())
    from trimtab.v1 import generation_pb2, info_pb2, labeling_pb2, reference_pb2, trainer_pb2

    modules = (generation_pb2, info_pb2, labeling_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2)
    services = [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]
    paths = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert paths == set(RPCS)


# Deadlines


@BOTH
def test_every_call_carries_a_deadline(served, unary) -> None:
    handler, target = served
    unary(target, "list_channels", CHANNELS, timeout_s=7)
    unary(target, "list_channels", CHANNELS)
    # grpc rounds what it sends upwards, to three digits
    assert [round(deadline) for deadline in handler.deadlines] == [7, 60]


def test_streams_carry_a_deadline(served) -> None:
    handler, target = served
    with Client(target, timeout_s=9) as client:
        list(client.watch_run(rpcs.WATCH_RUN.request()))
        list(client.score_stream(iter([reward_pb2.ScoreStreamRequest()])))
        list(client.report_events(iter([rpcs.REPORT_EVENTS.request()]), timeout_s=3))

    async def call() -> None:
        async def one(request):
            yield request

        async with AsyncClient(target, timeout_s=9) as client:
            assert [reply async for reply in client.watch_run(rpcs.WATCH_RUN.request())]
            assert [reply async for reply in client.score_stream(one(reward_pb2.ScoreStreamRequest()))]

    asyncio.run(call())
    assert [round(deadline) for deadline in handler.deadlines] == [9, 9, 3, 9, 9]


@BOTH
def test_unary_deadline_names_method_and_seconds(served, unary) -> None:
    handler, target = served
    handler.hang.clear()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        unary(target, "list_channels", CHANNELS, timeout_s=0.3)
    handler.hang.set()
    assert time.monotonic() - started < 2
    assert caught.value.message == f"{target}: ListChannels was not done within 0.3 s"
    assert handler.calls[rpcs.LIST_CHANNELS.path] == 1


def test_stream_deadline(served) -> None:
    _, target = served
    with Client(target) as client, pytest.raises(DeadlineExceeded, match="Watch was not done within 0.3 s"):
        list(client.watch(weights_pb2.WatchRequest(channel="a"), timeout_s=0.3))

    async def call() -> None:
        async with AsyncClient(target) as client:
            with pytest.raises(DeadlineExceeded, match="Watch was not done within 0.3 s"):
                async for _ in client.watch(weights_pb2.WatchRequest(channel="a"), timeout_s=0.3):
                    pass

    asyncio.run(call())


def test_who_stops_reading_frees_the_server(served) -> None:
    handler, target = served
    with Client(target) as client:
        replies = client.watch(weights_pb2.WatchRequest(channel="a"))
        next(replies)
        assert not handler.ended.is_set()
        replies.close()
        assert handler.ended.wait(5)


# Retries


@BOTH
@pytest.mark.parametrize("rpc", UNARY, ids=lambda rpc: rpc.path.rsplit("/", 1)[-1])
def test_only_what_is_safe_to_repeat_is_repeated(served, unary, rpc: Rpc, monkeypatch) -> None:
    handler, target = served
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    handler.errors = [Unavailable("draining", reason=Reason.DRAINING) for _ in range(10)]
    from trimtab.types import LogProbsItem, LogProbsRequest, RankRequest, ScoreItem, ScoreRequest

    records = {
        rpcs.SCORE: ScoreRequest(items=(ScoreItem(prompt="a", completion="b"),)),
        rpcs.RANK: RankRequest(prompt="a", answers=("b", "c")),
        rpcs.LOGPROBS: LogProbsRequest(items=(LogProbsItem(token_ids=(1, 2)),)),
    }
    with pytest.raises(Unavailable) as caught:
        unary(target, UNARY[rpc], records.get(rpc, rpc.request()), timeout_s=0.25)  # time for a second try, no third
    assert caught.value.reason is Reason.DRAINING
    assert handler.calls[rpc.path] == (2 if rpc.repeatable else 1)


@BOTH
def test_tries_are_bounded(served, unary) -> None:
    handler, target = served
    handler.errors = [Unavailable("draining", reason=Reason.DRAINING) for _ in range(10)]
    with pytest.raises(Unavailable):
        unary(target, "list_channels", CHANNELS, timeout_s=30)
    assert handler.calls[rpcs.LIST_CHANNELS.path] == MAX_TRIES


@BOTH
def test_a_try_that_succeeds_is_the_answer(served, unary) -> None:
    handler, target = served
    handler.errors = [Overloaded("full", retry_after_s=0.15), Unavailable("draining", reason=Reason.DRAINING)]
    started = time.monotonic()
    unary(target, "list_channels", CHANNELS)
    assert handler.calls[rpcs.LIST_CHANNELS.path] == 3
    assert time.monotonic() - started >= 0.15 + 0.2


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("wrong", field="a"),
        NotFound("none"),
        Overloaded("full, and nobody knows for how long"),
        Overloaded("full for longer than you wait", retry_after_s=100),
    ],
    ids=lambda error: error.message[:20],
)
def test_what_cannot_help_is_not_tried(served, unary, error: TrimtabError) -> None:
    handler, target = served
    handler.errors = [error]
    started = time.monotonic()
    with pytest.raises(type(error)):
        unary(target, "list_channels", CHANNELS)
    assert handler.calls[rpcs.LIST_CHANNELS.path] == 1 and time.monotonic() - started < 2


@BOTH
def test_a_call_that_nobody_here_cancelled_is_tried_again(served, unary) -> None:
    handler, target = served
    handler.errors = [grpc.StatusCode.CANCELLED]  # what a server that ends gives the calls in flight
    unary(target, "list_channels", CHANNELS)
    assert handler.calls[rpcs.LIST_CHANNELS.path] == 2


@BOTH
def test_a_server_that_ends_during_a_call_is_unavailable(unary) -> None:
    handler = Everything()
    handler.hang.clear()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[handler])
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with futures.ThreadPoolExecutor(1) as pool:
        # Publish is not repeated, so it tells of the end itself.
        call = pool.submit(unary, target, "publish", weights_pb2.PublishRequest())
        while not handler.calls:
            time.sleep(0.01)
        server.stop(None).wait(1)
        with pytest.raises(Unavailable) as caught:
            call.result(20)
    handler.hang.set()
    assert caught.value.reason is Reason.UNREACHABLE and caught.value.message.startswith(f"{target}: ")


def test_closing_a_client_cancels_its_calls(served) -> None:
    handler, target = served
    handler.hang.clear()
    client = Client(target)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.list_channels, CHANNELS)
        while not handler.calls:
            time.sleep(0.01)
        client.close()
        with pytest.raises(Cancelled):
            call.result(20)
    handler.hang.set()
    assert handler.calls[rpcs.LIST_CHANNELS.path] == 1


def test_streams_are_never_repeated_by_the_client(served) -> None:
    handler, target = served
    handler.errors = [Unavailable("draining", reason=Reason.DRAINING)]
    request = GenerateRequest(prompts=(GenerationPrompt(prompt_id="a", prompt="b"),))
    with Client(target) as client, pytest.raises(Unavailable):
        list(client.generate(request))
    assert handler.calls[rpcs.GENERATE.path] == 1


def test_delays_grow_and_keep_to_the_deadline() -> None:
    error = Unavailable("x")
    for tries, least in ((1, 0.1), (2, 0.2), (3, 0.4)):
        delay = retry_delay_s(error, tries, 100)
        assert delay is not None and least <= delay <= 1.25 * least
    assert retry_delay_s(error, MAX_TRIES, 100) is None
    assert retry_delay_s(error, 1, 0.05) is None
    assert retry_delay_s(DeadlineExceeded("x"), 1, 100) is None


# Tokens


@BOTH
def test_token_travels(served, unary) -> None:
    handler, target = served
    unary(target, "list_channels", CHANNELS, token="s3cret")
    unary(target, "list_channels", CHANNELS)
    assert handler.tokens == ["Bearer s3cret", None]


def test_token_file_is_read_again(served, tmp_path: Path) -> None:
    handler, target = served
    file = tmp_path / "token"
    file.write_text("first\n")
    with Client(target, token=Token(file=file)) as client:
        client.list_channels(CHANNELS)
        file.write_text("second-one\n")
        client.list_channels(CHANNELS)
        link = tmp_path / "next"  # how a mounted Secret changes: another file under the same name and of the same size
        link.write_text("third-one!\n")
        os.replace(link, file)
        client.list_channels(CHANNELS)
        file.unlink()
        with pytest.raises(ConfigError, match="token_file"):
            client.list_channels(CHANNELS)
    assert handler.tokens == ["Bearer first", "Bearer second-one", "Bearer third-one!"]


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_token_file_that_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="token_file"):
        Token(file=file)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_no_token_in_plaintext_beyond_this_host(client: type) -> None:
    async def opened(target: str, **options) -> None:
        made = client(target, **options)
        closing = made.close()
        if closing is not None:
            await closing

    for target in ("10.0.0.5:50051", "example.org:50051", "[2001:db8::1]:50051", "127.0.0.1.example.org:50051"):
        with pytest.raises(ConfigError, match="in plaintext"):
            asyncio.run(opened(target, token="s3cret"))
        asyncio.run(opened(target))
        asyncio.run(opened(target, token="s3cret", insecure=True))
        asyncio.run(opened(target, token="s3cret", tls=TLSConfig()))
    for target in ("127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"):
        asyncio.run(opened(target, token="s3cret"))


def test_loopback() -> None:
    assert is_loopback("localhost") and is_loopback("::1") and is_loopback("[::1]") and is_loopback("127.3.2.1")
    assert not is_loopback("localhost.example.org") and not is_loopback("0.0.0.0") and not is_loopback("")


@pytest.mark.parametrize("target", ["", "host", "host:", ":50051", "host:port", "host:0", "host:65536", "host:-1"])
def test_target(target: str) -> None:
    with pytest.raises(ConfigError, match="no host:port"):
        Client(target)


def test_tls_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls.ca_file"):
        Client("a:1", tls=TLSConfig(ca_file=tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="belong together"):
        Client("a:1", tls=TLSConfig(key_file=tmp_path / "none.pem"))


def test_a_closed_client_says_so() -> None:
    closed = Client("127.0.0.1:9")
    closed.close()
    closed.close()  # twice is fine
    request = GenerateRequest(prompts=(GenerationPrompt(prompt_id="a", prompt="b"),))
    for call in (closed.info, closed.health, lambda: list(closed.generate(request))):
        with pytest.raises(FailedPrecondition, match="127.0.0.1:9: this client is closed"):
            call()

    async def work() -> None:
        client = AsyncClient("127.0.0.1:9")
        await client.close()
        with pytest.raises(FailedPrecondition, match="this client is closed"):
            await client.info()
        with pytest.raises(FailedPrecondition, match="this client is closed"):
            async for _ in client.generate(request):
                pass

    asyncio.run(work())


def test_a_connection_that_speaks_another_language_says_so(served, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "server")
    key_and_chain = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[served[0]])
    with_tls = f"localhost:{server.add_secure_port('localhost:0', grpc.ssl_server_credentials(key_and_chain))}"
    server.start()
    tls = TLSConfig(ca_file=pair.certificate)
    sync_unary(with_tls, "list_channels", CHANNELS, tls=tls)
    sync_unary(with_tls, "list_channels", CHANNELS, tls=TLSConfig(ca_file=str(pair.certificate)))
    with pytest.raises(Unavailable, match="as servers do that want TLS"):
        sync_unary(with_tls, "list_channels", CHANNELS, timeout_s=2)
    with pytest.raises(Unavailable, match="it does not speak TLS there"):
        sync_unary(served[1], "list_channels", CHANNELS, timeout_s=2, tls=tls)
    server.stop(None).wait()
