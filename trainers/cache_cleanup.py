"""What nobody has used for long, removed from the caches below one folder."""

from collections.abc import Iterator
from pathlib import Path

from trainers.data import PixelCache
from trainers.reuse import ActivationStore


def drop_unused(cache: Path, before: float, only_finds: bool = False) -> Iterator[tuple[Path, int]]:
    """Remove entries of the caches of images and activations, but those that a process is building.

    Args:
        cache: ``data.cache``.
        before: Seconds since 1970; what was used last before goes.
        only_finds: Nothing is removed.

    Yields:
        Each entry that was removed, or would be, with its bytes.
    """
    for store in (PixelCache(cache, 0), ActivationStore(cache, 0)):
        for path, size in store.sizes().items():
            try:
                is_old = path.stat().st_mtime < before
            except FileNotFoundError:
                continue
            if is_old and (only_finds or store.removed(path)):
                yield path, size
