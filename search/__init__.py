"""How many strategies are tried: configuration, the Optuna study, tracking and what comes out of it."""

import lazy_loader

# Lazy, so that help, listings and configuration errors do not wait for torch, optuna and mlflow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
