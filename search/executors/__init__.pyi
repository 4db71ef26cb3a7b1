from .executor import Executor as Executor
from .json_watcher import JsonWatcher as JsonWatcher
from .pool import run_pool as run_pool
from .selection import executor_of as executor_of
from .selection import may_start_processes as may_start_processes
