"""Which versions a Prune removes."""

from __future__ import annotations

from collections import defaultdict

from trimtab_services.weights.state import StoreState

__all__ = ["prunable_versions"]


def prunable_versions(state: StoreState, keep_last: int, run: str) -> list[int]:
    """Versions that are not among the newest of their run, not pinned and not pointed to by a channel; ascending.

    Args:
        state: of the store.
        keep_last: the newest versions of each run that are kept, at least 1.
        run: only versions of this run; empty means all runs.
    """
    by_run: dict[str, list[int]] = defaultdict(list)
    for version in sorted(state.versions):
        row = state.versions[version]
        if not run or row.run == run:
            by_run[row.run].append(version)
    old = {version for versions in by_run.values() for version in versions[:-keep_last]}
    pointed_to = {channel.version for channel in state.channels.values()}
    return sorted(old - state.pinned - pointed_to)
