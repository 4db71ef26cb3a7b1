"""Optuna's and MLflow's stores: how they are opened, locked and retried, and the names of attributes in them.

What is written to the stores is decided in the rooms above; MLflow's runs are written in :mod:`search.tracking`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
