from .penalties import learn_relationship as learn_relationship
from .total import SourceClasses as SourceClasses
from .total import TotalPenalty as TotalPenalty
