"""The learnt policy: what a study trains next, and for how long, from what fine-tunings elsewhere have taught.

The policy predicts each strategy's final score and seconds, and takes the step with the largest expected improvement
for its seconds. This room knows neither Optuna nor torch; it computes with numpy. docs/learned-search.md explains it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
