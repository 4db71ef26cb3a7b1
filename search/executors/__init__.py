"""Who trains the trials: a pool of worker processes on this machine, or on a Ray cluster.

How a worker trains one is in :mod:`search.trials`; how processes start is in :mod:`search.processes`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
