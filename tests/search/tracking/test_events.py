"""Events that a worker tells the command's process, one JSON line each."""

import json

import pytest

from search.tracking import EpochEnded, TrialEnded, TrialPlanned, TrialStarted, as_json, from_json
from strategies import Strategy
from trainers import EpochResult

STARTED = TrialStarted(
    3, "key", Strategy(optimizer="sgd", lr=0.1), "depth 0", "resnet18", "hub", "ab", 0, 7, "f", attempt=1, preset="full"
)
EPOCH = EpochEnded(3, "key", EpochResult(2, {"val_accuracy": 0.5, "train_loss": 1.5}, 0.25, 4), 0.5, 1.5, worker=2)
ENDED = TrialEnded(3, "key", "pruned", "stopped after epoch 4", 0, False, None, 1.5, 0.5, continues=1, peak_bytes=9)


@pytest.mark.parametrize("event", [STARTED, EPOCH, ENDED], ids=lambda event: type(event).__name__)
def test_an_event_comes_out_of_its_line_as_it_went_in(event):
    assert from_json(json.loads(json.dumps(as_json(event)))) == event


def test_what_only_mlflow_needs_is_not_passed_on_and_other_lines_are_no_events():
    assert as_json(TrialPlanned("key", Strategy(), [], "no reuse", 10)) is None
    assert from_json({"event": "said", "text": "hello"}) is None
