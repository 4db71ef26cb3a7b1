"""Frozen blocks computed once: the cut in a model's graph, the stored activations, and whether reading them pays.

Nothing is trained here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
