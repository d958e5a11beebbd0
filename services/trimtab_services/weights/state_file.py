"""The file `state.json` of a store: read, and replaced whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from trimtab.errors import ConfigError, NotFound
from trimtab_services.weights.files import Files
from trimtab_services.weights.state import MANIFESTS, StoreState

__all__ = ["StateFile", "read_state"]

_PATH = "state.json"


def read_state(files: Files, location: str) -> StoreState | None:
    """What the file says; None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return StoreState.model_validate_json(files.read(_PATH))
    except NotFound:
        return None
    except ValidationError as error:
        line = " ".join(str(error).split())[:300]
        raise ConfigError(f"store: {location}: {_PATH} is damaged: {line}", field="store") from None


class StateFile:
    """The state of a store that this process writes.

    Args:
        files: the store's files.
        location: of the store, for messages.
        on_move: called after channels have moved.

    Raises:
        ConfigError: the store is damaged.
    """

    def __init__(self, files: Files, location: str, on_move: Callable[[], object]) -> None:
        self.writing = threading.Lock()
        """Held while the state is changed."""
        self._files = files
        self._location = location
        self._on_move = on_move
        self._must_reload = False
        self.now = self._load()
        """The state that counts; never changed in place."""

    @contextmanager
    def changing(self) -> Iterator[StoreState]:
        """A copy of the state to change; it counts once it is written. An error leaves the state as it was."""
        with self.writing:
            state = self.current().copied()
            yield state
            self.write(state)

    def current(self) -> StoreState:
        """The state to start a change from; the caller holds `writing`."""
        if self._must_reload:  # the last write failed half-way: what is on disk decides
            self.now = self._load()
            self._must_reload = False
            self._on_move()
        return self.now

    def write(self, state: StoreState, *, always: bool = False) -> None:
        """Makes a state the one that counts; the caller holds `writing`.

        Args:
            state: the new one.
            always: writes one that has not changed, too: a bucket refuses a writer that another has followed.
        """
        if state == self.now and not always:
            return
        moved = state.channels != self.now.channels
        self._must_reload = True
        self._files.write(_PATH, state.model_dump_json().encode())
        self._must_reload = False
        self.now = state.copied()
        if moved:
            self._on_move()

    def _load(self) -> StoreState:
        """Reads the state and removes manifests of publications that were never committed."""
        manifests = {path: _version_of(path) for path in self._files.list(MANIFESTS)}
        state = read_state(self._files, self._location)
        if state is None:
            if manifests:
                raise ConfigError(f"store: {self._location} has manifests but no {_PATH}; it is damaged", field="store")
            state = StoreState()
            self._files.write(_PATH, state.model_dump_json().encode())
        state.next_version = max([state.next_version, *(version + 1 for version in manifests.values())])
        for path, version in manifests.items():
            if version not in state.versions:
                self._files.remove(path)
        lost = sorted(set(state.versions) - set(manifests.values()))
        if lost:
            raise ConfigError(f"store: {self._location}: the manifest of version {lost[0]} is gone", field="store")
        return state


def _version_of(path: str) -> int:
    stem = path.rpartition("/")[2].removesuffix(".pb")
    return int(stem) if stem.isdecimal() else 0
