"""Who trains the trials: this process, or a pool of worker processes on this machine or on a Ray cluster.

Workers train trials with :mod:`search.trials`; processes are started by :mod:`search.processes`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
