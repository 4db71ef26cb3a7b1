"""Trials that are paused at a rung and go on from it, each scoring what it would have scored without the break."""

from pathlib import Path

import optuna
import pytest
from lab import is_counted, numbers
from optuna.trial import TrialState, create_trial

from search.scheduling import Ledger, Rungs, forerunners
from search.scheduling.rungs import RungPruner
from search.storage import CONTINUES, OUTCOME, PAUSED, RETRY_OF, outcome_of
from search.study import claim

SPACE = {"depth": {"low": 0.0, "high": 1.0}, "lr": {"low": 1e-5, "high": 1e-1, "log": True}}
SPACE |= {"epochs": 4, "batch_size": 32}
RUNGS = {"name": "rungs", "reduction": 2, "first_rung": 2}
RATES = [1e-5, 1e-4, 1e-3, 1e-2]


@pytest.fixture(scope="module")
def whole(new_lab):
    """Four trials that run to their end, by their rates: the loss after each epoch."""
    lab = new_lab(strategy=SPACE, metric="loss", presets={f"lr {lr:g}": {"depth": 0.5, "lr": lr} for lr in RATES})
    lab.train("budget.trials=4")
    return {trial.params["lr"]: trial.intermediate_values for trial in lab.trials()}


def places(whole) -> list[float]:
    """The rates from best to worst at the rung."""
    return sorted(whole, key=lambda lr: min(whole[lr][1], whole[lr][2]))


@pytest.fixture
def ladder(new_lab, whole):
    """The same trials, from best to worst at the rung: with the fourth, the second is to go on."""
    presets = {f"place {place}": {"depth": 0.5, "lr": lr} for place, lr in enumerate(places(whole))}
    settings = {"strategy": SPACE, "metric": "loss", "pruner": RUNGS, "budget": {"trials": 4}}
    return lambda **changes: new_lab(**settings | {"presets": presets} | changes)


def kept(lab) -> list[str]:
    return sorted(file.name for file in Path(lab.folder, "mlruns/cache/paused").glob("*/*") if file.name != "lock")


def check_ladder(lab, whole) -> None:
    """All four are told once, the two best ran to their end, with the very scores of those that never paused."""
    trials, runs = lab.trials(), lab.runs()
    told = [trial for trial in trials if is_counted(trial)]
    assert all(trial.state.is_finished() for trial in trials)
    continued = [trial.user_attrs[CONTINUES] for trial in told if CONTINUES in trial.user_attrs]
    assert len(continued) == len(set(continued)), "a trial went on twice"
    ended = {trial.params["lr"]: trial for trial in told if trial.number not in continued}
    assert len(ended) == len(told) - len(continued) == Ledger(lab.study).counted == 4
    for place, lr in enumerate(places(whole)):
        trial = ended[lr]
        epochs = 4 if place < 2 else 2
        assert trial.intermediate_values == {k: v for k, v in whole[lr].items() if k <= epochs}
        assert outcome_of(trial) == ("complete" if place < 2 else "pruned")
        run = runs[trial.number]
        history = lab.client.get_metric_history(run.info.run_id, "val_loss")
        assert {metric.step: metric.value for metric in history} == trial.intermediate_values
        if place < 2:
            assert trial.value == min(whole[lr].values()) == run.data.metrics["score"]
    assert {run.info.status for run in lab.all_runs()} <= {"FINISHED", "KILLED"}
    assert kept(lab) == []


def test_a_trial_that_goes_on_scores_what_it_would_have_scored_without_the_break(ladder, whole, capsys):
    lab = ladder()
    assert lab.run() == 0
    assert lab.outcomes() == ["complete", "pruned", "pruned", "pruned", "complete"]
    check_ladder(lab, whole)
    _, paused, _, _, promoted = lab.trials()
    assert promoted.user_attrs[CONTINUES] == 1
    assert promoted.user_attrs["seed"] == paused.user_attrs["seed"]
    runs = lab.runs()
    assert runs[4].data.tags["unfreeze.continues"] == "1"
    assert (runs[1].info.status, runs[1].data.tags["unfreeze.reason"]) == ("KILLED", "paused at epoch 2")
    seconds = [metric.value for metric in lab.client.get_metric_history(runs[4].info.run_id, "epoch_seconds")]
    assert runs[4].data.metrics["seconds"] == pytest.approx(sum(seconds))
    said = capsys.readouterr().out
    assert said.count("(paused at epoch 2)") == 3
    assert "(resumes trial 1, preset place 1)" in said
    assert lab.run() == 0
    assert len(lab.trials()) == 5


def test_paused_trials_go_on_with_what_is_frozen_read_from_the_cache(ladder, whole):
    lab = ladder(reuse="on")
    lab.train()
    check_ladder(lab, whole)
    assert lab.runs()[4].data.tags["unfreeze.reuse"].startswith("reuse")


def test_through_all_rungs_each_trial_does_what_it_would_have_done_alone(new_lab):
    space = SPACE | {"batch_size": 16, "augment": "light", "ema": 0.9}
    # In an order in which several are paused that turn out to be among the best.
    values = [(1.0, 3e-3), (0.2, 1e-3), (0.2, 3e-3), (1.0, 1e-3), (1.0, 1e-4), (0.2, 1e-4), (1.0, 1e-2), (0.2, 1e-2)]
    presets = {f"{depth} {lr:g}": {"depth": depth, "lr": lr} for depth, lr in values}
    alone, climbing = (
        new_lab(strategy=space, metric="loss", presets=presets, pruner=pruner, budget={"trials": 8})
        for pruner in ({"name": "none"}, {"name": "rungs", "reduction": 2})
    )
    alone.train()
    climbing.train()
    whole = {(trial.params["depth"], trial.params["lr"]): trial.intermediate_values for trial in alone.trials()}
    told = climbing.trials()
    assert Ledger(climbing.study).counted == len(whole) == 8
    for trial in told:
        values = whole[trial.params["depth"], trial.params["lr"]]
        assert trial.intermediate_values == {k: v for k, v in values.items() if k <= trial.last_step}
    paused_at = {
        trial.user_attrs[PAUSED] for trial in told if CONTINUES in trial.user_attrs and PAUSED in trial.user_attrs
    }
    assert paused_at == {2}, "one went on and was paused once more"
    assert len({trial.last_step for trial in told}) == 3
    assert sum(len(trial.intermediate_values) for trial in told if CONTINUES not in trial.user_attrs) < 4 * 8
    assert kept(climbing) == []


def test_linear_probes_are_paused_one_by_one(ladder):
    presets = {f"lr {lr:g}": {"depth": 0, "lr": lr} for lr in reversed(RATES)}
    lab = ladder(presets=presets, reuse="on")
    lab.train()
    assert lab.outcomes() == ["complete", "pruned", "pruned", "pruned", "complete"]
    assert lab.trials()[4].user_attrs[CONTINUES] == 1


def test_what_cannot_go_on_within_the_budget_is_not_kept(ladder):
    lab = ladder()
    lab.train("budget.trials=3")
    assert lab.outcomes() == ["complete", "pruned", "pruned", None]
    assert kept(lab) == []
    lab.train()
    assert lab.outcomes() == ["complete", "pruned", "pruned", "pruned"]


def test_a_run_whose_low_rungs_see_fewer_images_says_so(ladder, whole):
    shares = [{**RUNGS, "low_rung_images": share} for share in (0.5, 1.0)]
    short, full = (ladder(pruner=pruner) for pruner in shares)
    short.train()
    full.train()
    assert {run.data.params.get("low_rung_images") for run in short.runs().values()} == {"0.5"}
    assert {run.data.params.get("low_rung_images") for run in full.runs().values()} == {None}
    first, other = (lab.trials()[0].intermediate_values for lab in (short, full))
    assert first[1] != other[1]
    assert short.run("pruner.low_rung_images=0.25") == 2


@pytest.mark.parametrize("harm", ["truncated", "no state", "gone"])
def test_a_trial_whose_file_is_gone_stays_paused_and_one_whose_file_is_damaged_starts_anew(
    ladder, whole, harm, capsys, monkeypatch
):
    def interrupted(open_study, ledger, room):
        if ledger.counted == 3:
            raise KeyboardInterrupt
        return claim(open_study, ledger, room)

    lab = ladder()
    with monkeypatch.context() as patch:
        patch.setattr("search.study.loop.claim", interrupted)
        assert lab.run() == 130
    assert kept(lab) == ["1.pt"]
    (file,) = Path(lab.folder, "mlruns/cache/paused").glob("*/1.pt")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:5000] if harm == "truncated" else b"nothing of the kind")
    capsys.readouterr()
    lab.train()
    if harm == "gone":
        assert lab.outcomes() == ["complete", "pruned", "pruned", "pruned"]
    else:
        assert "trial 4 starts anew, and does not resume trial 1: " in capsys.readouterr().out
        check_ladder(lab, whole)


def test_a_trial_that_cannot_be_kept_just_ends(ladder, capsys):
    lab = ladder()
    (lab.folder / "mlruns" / "cache").mkdir()
    (lab.folder / "mlruns" / "cache" / "paused").write_text("not a folder")
    lab.train()
    assert lab.outcomes() == ["complete", "pruned", "pruned", "pruned"]
    assert "trial 1 cannot resume later: " in capsys.readouterr().out
    assert all(PAUSED not in trial.user_attrs for trial in lab.trials())


ENDS = {
    "while it is paused": ("search.trials.snapshots", "", "save_state", "before", 1),
    "between the file and tell": ("search.trials.snapshots", "", "save_state", "after", 1),
    "after a paused trial was told": ("optuna.study", "Study", "tell", "after", 2),
    "after a trial was queued to go on": ("search.trials.pausing", "", "queue_again", "after", 1),
    "when it has taken up its state": ("search.trials.record", "Record", "restore", "after", 1),
    "two epochs on": ("search.trials.record", "Record", "add", "before", 12),
    "before the one that went on is told": ("optuna.study", "Study", "tell", "before", 5),
    "before what is kept is removed": ("search.study.loop", "", "drop_paused", "before", 5),
}


CTRL_C = ("while it is paused", "two epochs on")


@pytest.mark.slow
@pytest.mark.parametrize(("end", "signal_number"), [*((end, 9) for end in ENDS), *((end, 2) for end in CTRL_C)])
def test_however_it_ends_nothing_is_lost_and_none_goes_on_twice(ladder, whole, end, signal_number):
    lab = ladder()
    process = lab.start_and_end(ENDS[end], signal_number)
    _, err = process.communicate()
    assert process.wait() == (-9 if signal_number == 9 else 130), err
    before = [trial for trial in lab.trials() if trial.state.is_finished()]
    lab.train()
    assert [lab.trials()[trial.number] for trial in before] == before
    check_ladder(lab, whole)
    if end == "between the file and tell":
        again = next(trial for trial in lab.trials() if trial.user_attrs.get(RETRY_OF) == 1)
        assert lab.runs()[again.number].data.tags["unfreeze.continues"] == "1"
    if end == "two epochs on":
        # The next attempt begins where the one that went on did.
        *_, killed, again = lab.trials()
        assert (killed.user_attrs[CONTINUES], again.user_attrs[CONTINUES], again.user_attrs[RETRY_OF]) == (1, 1, 4)
        assert lab.runs()[5].data.tags["unfreeze.continues"] == "1"


def test_rungs_stand_at_whole_epochs_each_so_many_times_as_far():
    assert [step for step in range(1, 30) if Rungs(1, 3).epoch_of(step)] == [1, 3, 9, 27]
    assert [step for step in range(1, 30) if Rungs(2, 2, 3).epoch_of(step)] == [6, 12, 24]
    assert Rungs(2, 2, 3).epoch_of(12) == 4
    assert [Rungs(1, 3).room(reached) for reached in (1, 2, 3, 5, 6, 9)] == [1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_at_a_rung_the_best_go_on_by_their_best_epoch_so_far(direction):
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction, pruner=RungPruner(Rungs(2, 2)))
    goes_on = []
    for losses in ((3, 5), (2, 9), (4, 4), (9, 1), (1, 2)):
        trial = study.ask()
        for epoch, loss in enumerate(losses, start=1):
            trial.report(sign * loss, epoch)
            assert epoch == 2 or not trial.should_prune()
        goes_on.append(not trial.should_prune())
        study.tell(trial, state=TrialState.PRUNED)
    assert goes_on == [True, True, False, True, True]


def paused(losses, epoch, **attrs):
    reports = dict(enumerate(losses, start=1))
    attrs = {PAUSED: epoch, **attrs}
    return create_trial(state=TrialState.PRUNED, value=losses[-1], intermediate_values=reports, user_attrs=attrs)


def test_of_paused_trials_the_best_of_the_furthest_rung_goes_on_first():
    study = optuna.create_study()
    for losses in ((5.0, 5.0), (4.0, 4.0), (3.0, 3.0), (2.0, 2.0)):
        study.add_trial(paused(losses, 2))
    study.add_trials([paused((loss,), 1) for loss in (1.0, 9.0)])
    rungs = Rungs(1, 2)

    def due(*gone):
        found = rungs.due(study.get_trials(), study.direction, lambda trial: trial.number not in gone)
        return found and found.number

    assert due() == 3
    assert due(3) == 2
    # Of those at epoch 1 there are six, of which three may go on: 4, and 3 and 2, which are further.
    assert due(3, 2) == 4
    assert due(3, 2, 4) is None
    study.enqueue_trial({}, user_attrs={CONTINUES: 3})
    assert due() == 2


def test_what_failed_or_was_killed_takes_no_place_at_a_rung():
    study = optuna.create_study()
    failed = create_trial(state=TrialState.FAIL, intermediate_values={1: 0.1}, user_attrs={OUTCOME: "failed"})
    study.add_trials([failed, create_trial(state=TrialState.FAIL, intermediate_values={1: 0.2})])
    study.add_trials([paused((loss,), 1) for loss in (2.0, 1.0)])
    rungs = Rungs(1, 2)
    assert rungs.due(study.get_trials(), study.direction, lambda trial: True).number == 3
    # One that failed when it went on does not go on again, and leaves its place to the next.
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={OUTCOME: "failed", CONTINUES: 3}))
    assert rungs.due(study.get_trials(), study.direction, lambda trial: True).number == 2
    # One that was killed then may.
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={OUTCOME: "killed", CONTINUES: 2}))
    assert rungs.due(study.get_trials(), study.direction, lambda trial: True).number == 2


def test_only_what_can_still_go_on_within_the_budget_is_kept():
    study = optuna.create_study()
    study.add_trials([paused((loss,), 1) for loss in (1.0, 2.0, 3.0, 4.0)])
    rungs = Rungs(1, 2)

    def needed(to_come):
        return rungs.needed(study.get_trials(), study.direction, to_come)

    assert needed(0) == {0, 1}
    assert needed(2) == {0, 1, 2}
    assert needed(None) == {0, 1, 2, 3}
    study.enqueue_trial({}, user_attrs={CONTINUES: 0})
    assert needed(0) == {0, 1, 4}
    study.ask()
    study.tell(4, 0.5)
    assert needed(0) == {1}


def test_a_trial_and_what_it_goes_on_with_count_as_one():
    study = optuna.create_study()
    ledger = Ledger(study)

    def counted():
        ledger.refresh()
        assert Ledger(study).counted == ledger.counted
        return ledger.counted

    study.add_trials([paused((1.0,), 1), paused((2.0,), 1)])
    assert counted() == 2
    study.enqueue_trial({"lr": 0.1}, user_attrs={CONTINUES: 0})
    assert counted() == 1
    study.tell(study.ask(), state=TrialState.FAIL)
    study.enqueue_trial({"lr": 0.1}, user_attrs={CONTINUES: 0, RETRY_OF: 2})
    assert counted() == 1
    ledger.take(study.tell(study.ask(), 1.0))
    assert counted() == 2
    assert numbers(ledger.ranked) == [3]
    assert list(forerunners(study.get_trials(), study.get_trials()[3].user_attrs)) == [2, 0]
