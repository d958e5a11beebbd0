"""A store that another process writes: read, watched and served, never changed.

Any number of these may serve one store. They keep nothing of their own: whatever the writer has committed is on the
disk or in the bucket that they share, and a look every second tells what is new.
"""

from __future__ import annotations

import logging

from trimtab.errors import TrimtabError
from trimtab_services.weights.catalog import Catalog
from trimtab_services.weights.files import Files
from trimtab_services.weights.opening import open_files
from trimtab_services.weights.state import StoreState
from trimtab_services.weights.state_file import read_state

__all__ = ["ReadReplica"]

_log = logging.getLogger(__name__)


class ReadReplica(Catalog):
    """What a writer has committed, as of the last `refresh`.

    Args:
        location: folder or fsspec URL.
        files: instead of what `location` opens.

    Raises:
        ConfigError: the store cannot be opened, or is damaged.
    """

    def __init__(self, location: str, *, files: Files | None = None) -> None:
        super().__init__(files if files is not None else open_files(location), lambda: self._seen)
        self._location = location
        self._seen = read_state(self.files, location) or StoreState()
        self._failing = False

    def refresh(self) -> None:
        """Reads the state anew and tells whoever watches. What cannot be read now keeps the state seen before."""
        try:
            state = read_state(self.files, self._location) or StoreState()
        except (TrimtabError, OSError) as error:
            if not self._failing:
                _log.warning("the store cannot be read", extra={"error": str(error)})
            self._failing = True
            return
        self._failing = False
        moved = state.channels != self._seen.channels
        self._seen = state
        if moved:
            self.on_move()
