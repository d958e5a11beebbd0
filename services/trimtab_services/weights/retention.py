"""Which versions a Prune removes."""

from __future__ import annotations

from collections import defaultdict

from trimtab_services.weights.state import StoreState

__all__ = ["prunable_versions"]


def prunable_versions(state: StoreState, keep_last: int, run: str) -> list[int]:
    """Versions that nothing needs, ascending.

    Needed are the newest of each run, those that are pinned or pointed to by a channel, and every version that one of
    these is encoded against, directly or not.

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
    kept = set(state.versions) - old | state.pinned | {channel.version for channel in state.channels.values()}
    return sorted(old - _with_bases(state, kept))


def _with_bases(state: StoreState, versions: set[int]) -> set[int]:
    found: set[int] = set()
    pending = list(versions)
    while pending:
        version = pending.pop()
        if version not in found:
            found.add(version)
            pending.extend(state.versions[version].base_versions)
    return found
