from .table import TASKS as TASKS
from .task import Scale as Scale
from .task import Task as Task
