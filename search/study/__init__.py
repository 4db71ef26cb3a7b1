"""One study's life: opened, presets queued, probes swept, trials run until the budget ends, the winner crowned.

How a single trial runs is in :mod:`search.trials`; what is shown of a study in :mod:`search.reporting`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
