"""Processes: forked, spoken to by pipes, stopped by signals and time limits, joined in rank groups.

What a process trains is decided in the rooms above; this room opens no study and no store.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
