"""Labelled images: found, checked, split, decoded once, and handed out in batches on the device."""

import lazy_loader

# Lazy, so that a caller that needs only `decode` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
