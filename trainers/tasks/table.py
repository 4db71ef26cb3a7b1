"""The table of tasks."""

from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.detection import DETECTION
from trainers.tasks.multilabel import MULTILABEL
from trainers.tasks.regression import REGRESSION
from trainers.tasks.segmentation import SEGMENTATION
from trainers.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION, DETECTION)}
