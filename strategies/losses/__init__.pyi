from .imbalance import class_weights as class_weights
from .imbalance import sampling_order as sampling_order
from .losses import LOSSES as LOSSES
from .losses import distillation as distillation
from .region_losses import PIXEL_LOSSES as PIXEL_LOSSES
