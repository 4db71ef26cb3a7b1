from .penalties import learn_relationship as learn_relationship
from .total import Holding as Holding
from .total import SourceClasses as SourceClasses
