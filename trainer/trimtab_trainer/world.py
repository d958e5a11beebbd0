"""The ranks of a run as one: what rank 0 calls is called by all, and what a call makes on all can be named in the next.

Calls travel pickled over gloo: the ranks of a run trust one another like threads of one process, and their ports must
be open to nobody else. Models and what is `Mirrored` cross as numbers, once a call has returned them on every rank;
the other ranks keep them for as long as rank 0 does.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from trimtab.errors import TrimtabError

__all__ = ["Mirrored", "Peers", "World"]

R = TypeVar("R")


class Mirrored:
    """What exists on every rank once a call has made it, and crosses later calls as a reference."""


class Peers(Protocol):
    """What rank 0 knows of the others' lives."""

    def check(self) -> None:
        """Raises Unavailable where one is lost."""
        ...

    def explain(self, error: Exception) -> Exception:
        """What to raise instead of an error of a call: the rank that is lost, where it came of that; else itself."""
        ...


class World:
    """The ranks of a run, and the objects that exist on all of them. One is current between `enter` and `leave`.

    Args:
        rank: of this process.
        size: processes.
        device: of this process.
        control: gloo group that calls travel by; it waits for as long as rank 0 has nothing to do for the others.
        peers: on rank 0, what it knows of the others.

    Attributes:
        mesh: all ranks in a row, over which tensors are cut.
    """

    current: World | None = None

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        control: dist.ProcessGroup,
        peers: Peers | None = None,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.mesh = DeviceMesh(device.type, list(range(size)))
        self._control = control
        self._peers = peers
        self._inside = False  # of a call that all ranks make
        self._made = 0
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._objects: dict[int, object] = {}  # kept by the other ranks for as long as rank 0 has it
        self._gone: list[int] = []

    def enter(self) -> None:
        """Makes this the world of the process."""
        World.current = self

    def leave(self) -> None:
        """The process is on its own again."""
        World.current = None

    @property
    def inside(self) -> bool:
        """Whether all ranks are at the present call."""
        return self._inside

    def knows(self, value: object) -> bool:
        """Whether an object exists on every rank."""
        return value in self._numbers

    def call(self, function: Callable[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]) -> R:
        """On rank 0: calls a function here and on all others.

        Raises:
            Unavailable: a rank was lost.
        """
        gone, self._gone = self._gone, []
        try:
            self._send((function, tuple(args), dict(kwargs), gone))
            result = self._run(function, args, kwargs)
        except TrimtabError:
            raise
        except Exception as error:
            explained = self._peers.explain(error) if self._peers else error
            if explained is error:
                raise
            raise explained from error
        if self._peers:
            self._peers.check()  # collectives that were aborted return anything
        return result

    def follow(self) -> None:
        """On the others: does what rank 0 calls until it says that the run is over."""
        while (message := self._received()) is not None:
            function, args, kwargs, gone = message
            for number in gone:
                del self._objects[number]
            with suppress(TrimtabError):  # of what all ranks know: rank 0 has it too, and says what comes next
                self._run(function, args, kwargs)
            del message, args, kwargs  # they may hold the last reference to a model

    def dismiss(self) -> None:
        """On rank 0: tells the others that the run is over."""
        self._send(None)

    def _run(self, function: Callable[..., R], args: Iterable[Any], kwargs: Mapping[str, Any]) -> R:
        self._inside = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._inside = False
        if isinstance(result, Mirrored | PreTrainedModel) and not self.knows(result):
            self._remember(result)
        return result

    def _remember(self, value: Any) -> None:
        number, self._made = self._made, self._made + 1
        self._numbers[value] = number
        if self.rank == 0:
            weakref.finalize(value, lambda: self._gone.append(number))
        else:
            self._objects[number] = value

    def _send(self, message: object) -> None:
        stream = io.BytesIO()
        _Pickler(stream, self._numbers).dump(message)
        content = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(content)]), src=0, group=self._control)
        dist.broadcast(content, src=0, group=self._control)

    def _received(self) -> Any:
        length = torch.empty(1, dtype=torch.long)
        dist.broadcast(length, src=0, group=self._control)
        message = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(message, src=0, group=self._control)
        return _Unpickler(io.BytesIO(message.numpy().tobytes()), self._objects).load()


class _Pickler(pickle.Pickler):
    """Writes objects that all ranks have as their numbers."""

    def __init__(self, file: io.BytesIO, numbers: Mapping[object, int]) -> None:
        super().__init__(file)
        self._numbers = numbers

    def persistent_id(self, obj: object) -> int | None:
        return self._numbers.get(obj) if isinstance(obj, Mirrored | PreTrainedModel) else None


class _Unpickler(pickle.Unpickler):
    """Reads them back."""

    def __init__(self, file: io.BytesIO, objects: Mapping[int, object]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: int) -> object:
        return self._objects[pid]
