"""Augmented images of which a study's trials read what is frozen."""

from lab import SMALL, scored


def test_a_study_of_views_reads_what_is_frozen_and_scores_as_one_that_computes_it(new_lab):
    space = SMALL["strategy"] | {"depth": {"low": 0, "high": 3}, "epochs": 3, "augment": "light", "views": 2}
    read, computed = (new_lab(strategy=space, reuse=reuse, metric="loss") for reuse in ("on", "off"))
    assert (read.run(), computed.run()) == (0, 0)
    assert scored(read.trials()) == scored(computed.trials())
    assert {run.data.tags["unfreeze.reuse"] for run in read.runs().values()} == {"reuse: as asked"}
    # Of each depth one for validation and one for each view.
    depths = {trial.params["depth"] for trial in read.trials()}
    assert len(list((read.folder / "mlruns" / "cache" / "activations").iterdir())) == 3 * len(depths)
