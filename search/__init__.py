"""How many strategies are tried: configuration, the Optuna study, tracking and what comes out of it."""

import os

import lazy_loader

# torch's threads wait for one another by spinning, by default for so long that two commands on one CPU take twenty
# times as long as one (python -m benchmarks.sharing). libgomp reads this once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Lazy, so that help, listings and configuration errors do not wait for torch, optuna and mlflow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
