"""Which trial comes next, and how far it is trained: samplers, pruners, rungs, retries, the ledger, termination.

This room reads and tells Optuna's trials; it trains nothing and writes nothing to MLflow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
