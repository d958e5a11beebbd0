"""The processes of a run that spans several: how they start, find one another, watch one another and end together.

Every process is told its place by the environment variables of torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT, where rank 0 listens. On one machine rank 0 starts the others itself (`leading(processes=N)`).

Each rank says once a second in rank 0's store that it lives; rank 0 looks whether all do, and whether the processes
that it started have ended, and all look whether one has failed. The first failure is written down with its rank, host
and error, and all ranks end by it: rank 0's collectives break, or it is at no collective and the next wait tells it
(`Orders.fail`), so that the run ends as FAILED; the others have nothing to save and just end. What is silent for
`SILENCE_S` is lost, and a collective that lasts `COLLECTIVE_TIMEOUT_S` has failed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from trimtab.errors import ConfigError, TrimtabError, Unavailable
from trimtab_trainer.config import RunSpec
from trimtab_trainer.context import Orders
from trimtab_trainer.memory import out_of_memory
from trimtab_trainer.optimization import compute_environment
from trimtab_trainer.places import Place
from trimtab_trainer.world import World

__all__ = ["COLLECTIVE_TIMEOUT_S", "JOIN_TIMEOUT_S", "SILENCE_S", "follow", "leading"]

JOIN_TIMEOUT_S = 600.0
"""How long ranks wait for one another at the start: nodes of a cluster may come one by one."""
SILENCE_S = 60.0
"""A rank that has not said for so long that it lives is lost."""
COLLECTIVE_TIMEOUT_S = 600.0
"""Longest wait of one rank for another within a step."""
_END_S = 30.0
"""What rank 0 gets to write down how the run ended, once a rank is lost."""
_FOREVER = timedelta(days=365)
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class _Setup:
    """What rank 0 tells the others of the run before anything else.

    Attributes:
        device: `cpu` or `cuda`.
        threads, deterministic: as in the run's spec.
    """

    device: str
    threads: int
    deterministic: bool

    @property
    def backend(self) -> str:
        return "cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo"


@contextmanager
def leading(place: Place, orders: Orders, spec: RunSpec, *, start: Sequence[str] | None = None) -> Iterator[World]:
    """Rank 0 of a run: waits until all ranks are there; they follow what the body calls, and end with it.

    Args:
        place: of this process.
        orders: of the run; a lost rank and a stop that another rank was asked for come there.
        spec: of the run; with device `cuda` each rank takes the GPU of its local rank.
        start: command of the other ranks, which this one then starts on this machine. None: somebody else does.

    Raises:
        ConfigError: the device is one GPU, or a rank has none.
        Unavailable: the port is taken; a rank did not come within `JOIN_TIMEOUT_S`; or was lost, with its error.
    """
    if ":" in spec.device:
        raise ConfigError(
            f"device: {spec.device} is one GPU, and the run has {place.size} processes, each with its own; "
            "allowed: cuda",
            field="device",
            value=spec.device,
            limit="cuda",
        )
    setup = _Setup(spec.device, spec.threads, spec.deterministic)
    store = _store(place, listen=place.rank_0_listens)
    store.set("setup", json.dumps(asdict(setup)))
    children = _start(place, start) if start is not None else {}
    watch = _LeadersWatch(place, orders, children)
    try:
        watch.wait_for_all()
        watch.start()
        with _world(place, setup, store, watch) as world:
            try:
                yield world
            except BaseException as error:
                watch.tell(_told(place, error))  # ends the others, wherever they are
                raise
            watch.end()
            world.dismiss()
    except BaseException as error:
        watch.tell(_told(place, error))  # those that still wait for the last to come
        raise
    finally:
        watch.end()
        _end(children)


def follow(place: Place) -> int:
    """Any other rank of a run: does what rank 0 calls until the run is over; returns the exit code of the process.

    The first SIGINT or SIGTERM asks the whole run to stop, which lets the step end and saves a checkpoint.
    """
    stops = _stop_signals()
    store = _store(place, listen=False)
    store.set(f"joined/{place.rank}", _name(place))
    store.wait(["setup"], timedelta(seconds=JOIN_TIMEOUT_S))
    setup = _Setup(**json.loads(store.get("setup")))
    watch = _FollowersWatch(place, stops)
    watch.start()
    try:
        with compute_environment(threads=setup.threads, deterministic=setup.deterministic):
            with _world(place, setup, store) as world:
                world.follow()
                watch.end()
        return 0
    except BaseException as error:
        if _is_of_a_peer(error):  # the watch ends the process once it knows who that was
            time.sleep(SILENCE_S + _END_S)
        watch.tell(_told(place, error))
        if isinstance(error, TrimtabError):
            raise
        traceback.print_exc()
        return 1


@contextmanager
def _world(place: Place, setup: _Setup, store: Store, watch: _LeadersWatch | None = None) -> Iterator[World]:
    device = torch.device(setup.device)
    if device.type == "cuda":
        device = torch.device("cuda", place.local_rank)
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"device: rank {place.rank} needs GPU {place.local_rank}, but torch sees "
                f"{torch.cuda.device_count()} on {socket.gethostname()}; start at most one process for each GPU",
                field="device",
                value=place.local_rank,
                limit=torch.cuda.device_count(),
            )
        torch.cuda.set_device(device)
    dist.init_process_group(
        setup.backend,
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )
    control: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
    world = World(place.rank, place.size, device, control, watch)
    world.enter()
    try:
        yield world
    except BaseException:
        _abort()  # a collective may wait for who is gone
        raise
    finally:
        world.leave()
        dist.destroy_process_group()


def _abort() -> None:
    """Ends collectives under way: NCCL's end by nothing else, gloo's break with the connection to a peer."""
    with suppress(RuntimeError):
        if dist.group.WORLD is not None:
            dist.group.WORLD.abort()


class _Watch(threading.Thread):
    """Says that this rank lives and looks whether another has failed.

    Attributes:
        lost: the first failure of a rank, in words; empty as long as there is none.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(name="ranks", daemon=True)
        self._store, self._place = _store(place, listen=False), place  # of its own: others may block theirs
        self._over = threading.Event()
        self._beats = 0
        self.lost = ""

    def end(self) -> None:
        """The run is over: whoever goes now is not lost."""
        self._over.set()

    def tell(self, failure: str) -> None:
        """Writes down a failure for all ranks, unless another one came first."""
        with suppress(RuntimeError):
            self._store.compare_set("failed", "", failure)

    def run(self) -> None:
        """Once a second until the end."""
        while not self._pause():
            try:
                self._beats += 1
                self._store.set(f"alive/{self._place.rank}", str(self._beats))
                self._look()
                if not self.lost and self._store.check(["failed"]):
                    self.lost = self._store.get("failed").decode()
            except RuntimeError:  # the store is rank 0's, or the launcher's
                self.lost = self.lost or f"rank 0 is gone: {self._place.address}:{self._place.port} does not answer"
            if self.lost and not self._over.is_set():
                self._act()
                return

    def _pause(self) -> bool:
        """Waits a second; returns whether the run is over."""
        return self._over.wait(1.0)

    def _look(self) -> None:
        raise NotImplementedError

    def _act(self) -> None:
        raise NotImplementedError


class _FollowersWatch(_Watch):
    """Of a rank that has nothing to save: it ends the process. It hears of the process's signals, too.

    Args:
        place: of the process.
        stops: of `_stop_signals`.
    """

    def __init__(self, place: Place, stops: socket.socket) -> None:
        super().__init__(place)
        self._stops = stops

    def _pause(self) -> bool:
        if select.select([self._stops], [], [], 1.0)[0]:
            self._stops.recv(1)
            if self._store.check([f"stop/{self._place.rank}"]):
                os._exit(130)  # the second one
            self._store.set(f"stop/{self._place.rank}", "1")
            self._store.set("stop", "1")
        return self._over.is_set()

    def _look(self) -> None:
        pass

    def _act(self) -> None:
        print(f"rank {self._place.rank} ends: {self.lost}", file=sys.stderr, flush=True)
        os._exit(1)


class _LeadersWatch(_Watch):
    """Of rank 0: finds out which rank is silent or has ended, and tells the run."""

    def __init__(self, place: Place, orders: Orders, children: Mapping[int, subprocess.Popen[bytes]]) -> None:
        super().__init__(place)
        self._orders, self._children = orders, children
        self._names: dict[int, str] = {}
        self._heard: dict[int, tuple[bytes, float]] = {}

    def wait_for_all(self) -> None:
        """Until every rank has come.

        Raises:
            Unavailable: one did not come in time, or ended before.
        """
        give_up = time.monotonic() + JOIN_TIMEOUT_S
        missing = set(range(1, self._place.size))
        while missing := {rank for rank in missing if not self._store.check([f"joined/{rank}"])}:
            late = time.monotonic() > give_up
            if ended := self._ended() or (
                f"rank {', '.join(map(str, sorted(missing)))} of {self._place.size} did not come to "
                f"{self._place.address}:{self._place.port} within {JOIN_TIMEOUT_S:g} s"
                if late
                else ""
            ):
                self.tell(ended)
                raise Unavailable(ended, field="rank", value=min(missing))
            time.sleep(0.1)
        self._names = {rank: self._store.get(f"joined/{rank}").decode() for rank in range(1, self._place.size)}

    def check(self) -> None:
        """Raises Unavailable where a rank is lost."""
        if self.lost:
            raise Unavailable(self.lost, field="rank")

    def explain(self, error: Exception) -> Exception:
        """The lost rank instead of the error of a collective that broke by it; another error is itself."""
        if not _is_of_a_peer(error):
            return error
        give_up = time.monotonic() + SILENCE_S + 5.0
        while not self.lost and time.monotonic() < give_up:
            time.sleep(0.1)
        return Unavailable(self.lost, field="rank") if self.lost else error

    def _look(self) -> None:
        if self._store.check(["stop"]):
            self._orders.stop()
        if self._store.check(["failed"]):
            return  # in the words of the rank itself
        ended, now = self._ended(), time.monotonic()
        for rank, name in self._names.items():
            beat = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b""
            before, since = self._heard.get(rank, (b"-", now))
            self._heard[rank] = (beat, now if beat != before else since)
            if now - self._heard[rank][1] > SILENCE_S:
                ended = ended or f"{name} has been silent for {SILENCE_S:g} s"
        if ended:
            self.tell(ended)

    def _ended(self) -> str:
        """The first of the processes started here that has ended, in words."""
        for rank, child in self._children.items():
            if (code := child.poll()) is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                if code == -signal.SIGKILL:
                    how += ", as by the system when memory is full"
                return f"{self._names.get(rank, f'rank {rank} of {self._place.size} (process {child.pid})')} {how}"
        return ""

    def _act(self) -> None:
        for child in self._children.values():  # one that hangs holds up the collectives of the others
            child.kill()
        self._orders.fail(Unavailable(self.lost, field="rank"))
        _abort()
        if not self._over.wait(_END_S + SILENCE_S):
            print(f"rank 0 ends, its last collective does not: {self.lost}", file=sys.stderr, flush=True)
            os._exit(1)


def _stop_signals() -> socket.socket:
    """A socket with a byte for each SIGINT and SIGTERM, at once: the main thread may be long in a collective."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.detach())
    for number in _STOPS:
        signal.signal(number, lambda number, frame: None)
    return heard


def _store(place: Place, *, listen: bool) -> Store:
    try:
        return TCPStore(
            place.address,
            place.port,
            place.size,
            listen,
            timedelta(seconds=JOIN_TIMEOUT_S),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        what = "cannot listen on" if listen else f"found nobody for {JOIN_TIMEOUT_S:g} s at"
        raise Unavailable(
            f"rank {place.rank} {what} {place.address}:{place.port}: {str(error).splitlines()[0]}",
            field="MASTER_PORT",
            value=place.port,
        ) from error


def _start(place: Place, command: Sequence[str]) -> dict[int, subprocess.Popen[bytes]]:
    """The other ranks as processes of this machine, by rank."""
    children = {}
    for rank in range(1, place.size):
        environment = replace(place, rank=rank, local_rank=rank).environment()
        children[rank] = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
    return children


def _end(children: Mapping[int, subprocess.Popen[bytes]]) -> None:
    """Waits for the processes started here; those that do not end are killed."""
    give_up = time.monotonic() + _END_S
    for child in children.values():
        try:
            child.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another rank has gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _name(place: Place) -> str:
    return f"rank {place.rank} of {place.size} ({socket.gethostname()}, process {os.getpid()})"


def _told(place: Place, error: BaseException) -> str:
    if told := out_of_memory(error):
        return f"{_name(place)}: {told}"
    text = error.message if isinstance(error, TrimtabError) else str(error) or "no further words"
    return f"{_name(place)}: {type(error).__name__}: {text}"
