"""A trial that another host takes for dead while it is trained."""

from lab import SMALL
from optuna.trial import TrialState

from search.ledger import Ledger
from search.outcome import CHECKPOINT, outcome_of
from search.preparation import prepare
from search.recovery import kill
from search.terminal import Terminal
from search.trial import Asked, Sampled, run_trial
from search.working import claim, work


def test_what_a_trial_comes_to_that_was_taken_for_dead_is_left_out_and_the_study_goes_on(new_lab, capsys):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 0.5})
    with Terminal("accuracy") as terminal:
        bench = prepare(lab.config("budget.trials=2"), terminal)
        ledger = Ledger(bench.study)
        ((asked, sampled),) = claim(bench, ledger, 2).items()
        assert isinstance(asked, Asked)
        assert isinstance(sampled, Sampled)
        # As another host does that has not heard of it for minutes.
        (running,) = bench.study.get_trials(states=(TrialState.RUNNING,))
        assert kill(lab.study, running, 2, "its heart has stopped")
        told = run_trial(bench, ledger, asked, sampled)
        assert outcome_of(told) == "killed"
        work(bench, ledger, lambda: True, terminal.say)
        bench.tracker.flush()
    assert "trial 0 was taken for dead by another process, and is tried again" in capsys.readouterr().out
    assert lab.outcomes() == ["killed", "complete", "complete"]
    assert lab.trials()[1].params == running.params
    assert lab.statuses() == ["KILLED", "FINISHED", "FINISHED"]
    assert 0 not in lab.checkpoints()
    assert CHECKPOINT not in lab.trials()[0].user_attrs
