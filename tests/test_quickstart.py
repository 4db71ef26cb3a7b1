"""The promise of the quickstart: good enough on digits, and the printed model is the one scored."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from copies import copies

from search import compose_study
from trainers import open_data

PREDICT = """
import json, sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
images = np.load("images.npy")
print(json.dumps(mlflow.pyfunc.load_model(sys.argv[2]).predict(list(images))["label"].tolist()))
"""


@pytest.mark.slow
def test_the_winner_reaches_95_percent_and_predicts_the_same_elsewhere(tmp_path: Path):
    import numpy as np
    import torch

    # Of its presets that which trains everything: a winner of more is no worse on the images that it is chosen by.
    others = [f"~presets.{name}" for name in ("linear_probe", "last_block", "full_layer_decay")]
    words = ["study=quickstart", "budget.trials=1", "probe_sweep=0", *others]
    process = copies().start("import sys; from search.run import main; sys.exit(main())", words, tmp_path, os.environ)
    out, error = process.communicate()
    assert process.returncode == 0, error
    score = float(re.search(r"test accuracy (\d\.\d+)", out)[1])
    uri = re.search(r"Model:\s+(\S+)", out)[1]
    assert score >= 0.95

    settings = compose_study(["study=quickstart", f"data.cache={tmp_path / 'mlruns' / 'cache'}"]).data
    data = open_data(task="classification", in_chans=3, **settings.model_dump())
    images, targets = next(data.test.batches(torch.arange(len(data.test)), len(data.test), torch.device("cpu")))
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    (tmp_path / "predict.py").write_text(PREDICT)
    store = f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    found = subprocess.run(
        [sys.executable, "predict.py", store, uri], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    labels = json.loads(found.strip().splitlines()[-1])
    right = sum(label == data.classes[target] for label, target in zip(labels, targets.tolist(), strict=True))
    assert round(right / len(labels), 4) == score
