from .choosing import choose_study as choose_study
from .words import EFFORTS as EFFORTS
from .words import asks_for_auto as asks_for_auto
