"""The promise of the quickstart: good enough on digits."""

import os
import re
from pathlib import Path

import pytest
from copies import copies


@pytest.mark.slow
def test_the_winner_reaches_95_percent(tmp_path: Path):
    # Of its presets that which trains everything, in three epochs of five: a winner of more is no worse on the images
    # that it is chosen by.
    others = [f"~presets.{name}" for name in ("linear_probe", "last_block", "full_layer_decay")]
    words = ["study=quickstart", "budget.trials=1", "probe_sweep=0", "strategy.epochs=3", *others]
    process = copies().start("import sys; from search.run import main; sys.exit(main())", words, tmp_path, os.environ)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert float(re.search(r"test accuracy (\d\.\d+)", out)[1]) >= 0.95
