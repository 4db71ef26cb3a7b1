"""Processes: started from a warm one, talked to by pipes, stopped by signals and time limits, joined in rank groups.

It knows no study and no store.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
