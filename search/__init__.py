"""How many strategies are tried: configuration, the Optuna study, tracking and what comes out of it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import lazy_loader


def _refuse_shadows() -> None:
    """Refuse files of the same names as our packages: ``python -m`` looks into the current folder first."""
    for name in ("strategies", "trainers"):
        spec, here = find_spec(name), Path.cwd()
        found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        # Elsewhere the packages may be apart, as on Ray's workers.
        if found is not None and here != Path(__file__).resolve().parents[1] and here in found.parents[:2]:
            line = (
                f"{found} hides Unfreeze's own package {name!r}: go to another folder, give the file another "
                "name, or start Python with -P"
            )
            # This is the first word while python -m looks for a command.
            if sys.argv[:1] == ["-m"]:
                sys.stderr.write(f"error: {line}\n")
                raise SystemExit(2)
            raise ImportError(line)


_refuse_shadows()

# torch's threads wait for one another by spinning, by default for so long that two commands on one CPU take twenty
# times as long as one (python -m benchmarks.sharing). libgomp reads this once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Lazy, so that help, listings and configuration errors do not wait for torch, optuna and mlflow.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
