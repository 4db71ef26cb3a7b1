"""A trial that another host takes for dead while it is trained."""

from lab import SMALL
from optuna.trial import TrialState

from search.reporting import Terminal
from search.scheduling import Ledger
from search.scheduling.retry import kill
from search.storage import CHECKPOINT, outcome_of
from search.study import claim, prepare, run_trials
from search.trials import Asked, Sampled, run_trial


def test_what_a_trial_comes_to_that_was_taken_for_dead_is_left_out_and_the_study_goes_on(new_lab, capsys):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 0.5})
    with Terminal("accuracy") as terminal:
        open_study = prepare(lab.config("budget.trials=2"), terminal)
        ledger = Ledger(open_study.study)
        ((asked, sampled),) = claim(open_study, ledger, 2).items()
        assert isinstance(asked, Asked)
        assert isinstance(sampled, Sampled)
        # As another host does that has not heard of it for minutes.
        (running,) = open_study.study.get_trials(states=(TrialState.RUNNING,))
        assert kill(lab.study, running, 2, "its heart has stopped")
        told = run_trial(open_study, ledger, asked, sampled)
        assert outcome_of(told) == "killed"
        run_trials(open_study, ledger, lambda: True, terminal.say)
        open_study.tracker.flush()
    assert "trial 0 was taken for dead by another process, and is tried again" in capsys.readouterr().out
    assert lab.outcomes() == ["killed", "complete", "complete"]
    assert lab.trials()[1].params == running.params
    assert lab.statuses() == ["KILLED", "FINISHED", "FINISHED"]
    assert 0 not in lab.checkpoints()
    assert CHECKPOINT not in lab.trials()[0].user_attrs
