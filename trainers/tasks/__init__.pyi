from .table import TASKS as TASKS
from .task import Answers as Answers
from .task import Dense as Dense
from .task import Scale as Scale
from .task import Task as Task
from .task import percentiles as percentiles
