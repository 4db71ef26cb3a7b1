"""Optuna's and MLflow's stores: opened, locked, and asked again where they do not answer; names of attributes.

What is written there is decided in the rooms above.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
