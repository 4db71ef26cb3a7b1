"""Large libraries are imported without the garbage collector, which does its work as before afterwards."""

import subprocess
import sys

CODE = """
import gc
from search.processes.imports import importing

passes = []
gc.callbacks.append(lambda phase, info: passes.append(phase))
with importing():
    import torch
    assert not passes
count = gc.get_freeze_count()
assert count > 100_000
assert gc.isenabled()
with importing():
    cycle = []
    cycle.append(cycle)
del cycle
assert gc.get_freeze_count() == count
assert gc.collect() > 0
gc.unfreeze()
gc.disable()
with importing():
    pass
assert not gc.isenabled()
"""


def test_nothing_is_collected_while_libraries_are_imported_and_what_they_made_is_not_looked_at_later():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
