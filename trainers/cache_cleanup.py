"""Removing entries that were not used for long from the caches below one folder."""

from collections.abc import Iterator
from pathlib import Path

from trainers.data import PixelCache
from trainers.reuse import ActivationStore


def drop_unused(cache: Path, before: float, only_finds: bool = False) -> Iterator[tuple[Path, int]]:
    """Remove old entries of the caches of images and activations, but no entry that a process is building.

    Args:
        cache: ``data.cache``.
        before: Seconds since 1970; entries last used before that time are removed.
        only_finds: Only find the entries, and remove none.

    Yields:
        Each entry that was removed, or would be removed, with its bytes.
    """
    for store in (PixelCache(cache, 0), ActivationStore(cache, 0)):
        for path, size in store.sizes().items():
            try:
                is_old = path.stat().st_mtime < before
            except FileNotFoundError:
                continue
            if is_old and (only_finds or store.removed(path)):
                yield path, size
