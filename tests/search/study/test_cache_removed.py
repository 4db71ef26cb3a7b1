"""The folder of the caches is removed while a study runs."""

import shutil
from dataclasses import replace

from search.reporting import Terminal
from search.scheduling import Ledger
from search.study import prepare, run_trials
from search.tracking import EpochEnded, TrialStarted


def test_a_study_whose_cache_is_removed_ends_as_if_nothing_had_happened(new_lab):
    lab = new_lab(budget={"trials": 3}, strategy={"depth": 0.5, "lr": 1e-3, "epochs": 2, "batch_size": 32}, reuse="on")
    cache = lab.folder / "mlruns" / "cache"
    removed = []

    def remove(event):
        if isinstance(event, TrialStarted | EpochEnded) and cache.exists():
            removed.append(sorted(path.name for path in cache.iterdir()))
            shutil.rmtree(cache)

    config = lab.config("checkpoints.every_minutes=1e-6")
    with Terminal(config.metric) as terminal:
        open_study = prepare(config, terminal)
        watched = replace(open_study, listeners=(*open_study.listeners, remove))
        try:
            run_trials(watched, Ledger(open_study.study), lambda: True, terminal.say)
            open_study.tracker.flush()
        finally:
            open_study.tracker.close()
    assert lab.outcomes() == ["complete"] * 3
    assert lab.checkpoints() == {0, 1, 2}
    assert {"activations", "images", "running", "spool"} <= set().union(*removed)
