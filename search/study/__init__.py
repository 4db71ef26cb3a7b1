"""One study's life: opened, presets queued, probes swept, trials run until the budget ends, the winner crowned.

Nights, generations, clean-up and the repetition of a logged trial are here too. A single trial runs in
:mod:`search.trials`; :mod:`search.reporting` shows a study.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
