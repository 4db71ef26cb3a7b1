"""What a fine-tuning strategy is, the space it is sampled from, and what it does to a model."""

import lazy_loader

# Lazy, so that reading a configuration does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
