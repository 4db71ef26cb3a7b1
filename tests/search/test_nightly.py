"""Nights of one study, and nights that overlap."""

import re

import pytest
from digit_folders import write_digits
from lab import SMALL

from search.nightly import main
from search.storage import FEATURES, lock_of
from search.study import lock_place
from search.study.similar import distance, strategies_of_similar
from search.winner.champion import RESCORED

# A night as short as it takes: the budget is in trials.
NIGHT = "budget.hours=1"


def night(lab, *words: str) -> int:
    hours = [] if any(word.startswith("budget.hours=") for word in words) else [NIGHT]
    return main([f"study={lab.file}", *hours, *words])


def alias(lab, name: str) -> str:
    return str(lab.client.get_registered_model("lab").aliases[name])


@pytest.mark.slow
def test_nights_in_which_classes_come_go_and_are_renamed(new_lab, tmp_path):
    learns = {"depth": 1.0, "lr": {"choices": [1e-2]}, "epochs": 12, "batch_size": 32}
    five = dict.fromkeys("56789")
    first = write_digits(tmp_path / "first", five | dict.fromkeys("01"), train=60, test=40)
    data = (
        SMALL["data"] | {"source": "folder", "root": first} | dict.fromkeys(("limit_train", "limit_val", "limit_test"))
    )
    lab = new_lab(data=data, strategy=learns, metric="accuracy")
    summary = tmp_path / "night.md"

    # The first has a champion at its end.
    assert night(lab, "budget.trials=1", "--summary", str(summary)) == 0
    said = summary.read_text()
    assert re.match(r"# Night of \d{4}-\d\d-\d\d, 0 h \d\d min\n", said)
    assert "- Trials: 1 new, 1 in all" in said
    assert "- Champion: version 1 of lab: there was no champion" in said
    assert alias(lab, "champion") == "1"

    # The second goes on, and what it finds is better by chance at most: the same strategy with another seed.
    begun = lab.trials()[0]
    assert night(lab, "budget.trials=2", "--summary", str(summary)) == 0
    said = summary.read_text()
    assert lab.trials()[0] == begun
    assert "- Trials: 1 new, 2 in all" in said
    assert re.search(
        r"- Champion: version 1 of lab stays; .*(it is the champion already|not better beyond chance)", said
    )

    # In the third there are two more classes, which come first and last by name: a model that knows them is better.
    root = write_digits(tmp_path / "more", five | {"0": "!zero", "1": "~one"}, train=60, test=40)
    assert night(lab, f"data.root={root}", "budget.trials=1", "--summary", str(summary)) == 0
    said = summary.read_text()
    assert "## lab.2" in said
    assert re.search(r"- New images: version 1 of lab: accuracy 0\.\d{4} \(.*\) on 200 test images new to it; ", said)
    unknown = "it does not know '!zero', '~one', which counts as wrong"
    assert said.count(f"; the classes have changed since version 1: {unknown}") == 1
    assert unknown in lab.client.get_model_version("lab", "1").tags[RESCORED]
    assert "in place of version 1: accuracy" in said
    promoted = alias(lab, "champion")
    assert promoted == alias(lab, "challenger") != "1"
    # It began with what the generation before had found.
    assert lab.open("lab.2").trials[0].user_attrs["preset"] == "lab_1"
    assert len(lab.trials()) == 2

    # In the fourth one class is gone, one has another name, and the new model has learnt next to nothing.
    names = {"0": "!zero", "1": "~one", "2": None, "3": "three"}
    root = write_digits(tmp_path / "renamed", five | names, train=60, test=40)
    poor = ["strategy.epochs=1", "data.limit_train=40", "budget.trials=1"]
    assert night(lab, f"data.root={root}", *poor, "--summary", str(summary)) == 0
    said = summary.read_text()
    assert "## lab.3" in said
    assert re.search(
        r"does not know 'three' \(it calls \d+ of 40 such images '3': renamed\?\), which counts as wrong", said
    )
    assert "'2', '3' are no longer in the data" in said
    assert f"version {promoted} of lab stays" in said
    assert "not better beyond chance" in said
    assert alias(lab, "champion") == promoted


def test_a_night_ends_on_time_within_a_trial_which_the_next_one_goes_on_with(new_lab, tmp_path):
    long = {"depth": 1.0, "lr": 1e-3, "epochs": 400, "batch_size": 8}
    lab = new_lab(strategy=long)
    summary = tmp_path / "night.md"
    assert night(lab, "budget.trials=1", "budget.hours=0.001", "--summary", str(summary)) == 0
    # What was put back and waits for the next night counts there.
    assert "- Trials: 0 new, 0 in all" in summary.read_text()
    assert lab.outcomes() == ["killed", None]
    done = len(lab.trials()[0].intermediate_values)
    assert 0 < done < 400
    assert lab.statuses() == ["KILLED"]
    # It counts no attempt, and goes on after the epoch with which the first night ended.
    assert night(lab, "budget.trials=1", "budget.hours=0.0015") == 0
    first, second, waiting = lab.trials()
    assert len(second.intermediate_values) > done
    assert list(second.intermediate_values.values())[:done] == list(first.intermediate_values.values())
    assert waiting.user_attrs.get("attempt", 0) == 0


def test_a_night_that_overlaps_another_refuses_with_a_code_of_its_own(lab, capsys):
    with lock_of(lock_place(lab.config()), "night"):
        assert night(lab, "budget.trials=1") == 3
    assert "another night of study lab is under way" in capsys.readouterr().err
    assert not (lab.folder / "mlruns" / "optuna.db").exists()


def test_studies_share_a_night_and_one_that_fails_leaves_the_others_alone(new_lab, capsys, tmp_path):
    good, bad = new_lab(), new_lab()
    broken = bad.file.read_text().replace("weights: none", "weights: /none.safetensors")
    other = bad.folder / "other.yaml"
    other.write_text(broken)
    words = [f"study={other},{good.file}", NIGHT, "budget.trials=1", "--summary", str(tmp_path / "night.md")]
    assert main(words) == 2
    said = (tmp_path / "night.md").read_text()
    assert "- Failed: " in said
    assert "- Trials: 1 new, 1 in all" in said
    assert good.outcomes() == ["complete"]


def test_a_night_removes_what_is_too_much(new_lab, tmp_path):
    lab = new_lab(checkpoints={"keep": 3})
    summary = tmp_path / "night.md"
    assert night(lab, "budget.trials=3", "housekeeping.gib=0", "--summary", str(summary)) == 0
    assert "- Removed: 2 old checkpoints and cache entries" in summary.read_text()
    assert lab.checkpoints() == {lab.study.user_attrs["winner"]["trial"]}


def test_a_fault_that_nobody_foresaw_costs_one_study_its_night(new_lab, tmp_path, capsys):
    good, bad = new_lab(), new_lab()
    other = bad.folder / "other.yaml"
    other.write_text(bad.file.read_text())
    bad.train("name=other", "budget.trials=1")
    bad.open("other").set_user_attr("winner", {"trial": 0})
    words = [f"study={other},{good.file}", NIGHT, "budget.trials=1", "--summary", str(tmp_path / "night.md")]
    assert main(words) == 1
    assert re.search(r"- Failed: \w+Error: ", (tmp_path / "night.md").read_text())
    assert good.outcomes() == ["complete"]


def test_the_summary_is_sent_to_who_asked_for_it_whatever_cannot_be_reached(new_lab, tmp_path, caplog, inbox):
    address, received = inbox
    lab, summary = new_lab(), tmp_path / "night.md"
    # Nobody answers at the first address.
    addresses = ["json://me:secret@127.0.0.1:9", f"json://{address}"]
    words = ["budget.trials=1", "--summary", str(summary), *(f"--notify={address}" for address in addresses)]
    assert night(lab, *words) == 0
    (message,) = received
    assert message["title"] == "Unfreeze: 1 new champion"
    assert message["message"].strip() == summary.read_text().strip()
    assert caplog.text.count("the summary could not be sent to json://") == 1
    assert "secret" not in caplog.text


def test_what_a_night_needs_is_asked_for_before_it_begins(lab, capsys):
    assert main([f"study={lab.file}"]) == 2
    assert "budget.hours: a night has an end" in capsys.readouterr().err
    assert night(lab, "--notify", "nonsense://") == 2
    assert "--notify: 'nonsense://' is not an address that apprise knows" in capsys.readouterr().err
    assert not (lab.folder / "mlruns" / "optuna.db").exists()


def test_a_new_study_begins_with_what_worked_on_similar_images(new_lab):
    lab = new_lab()
    lab.train("budget.trials=3", "name=near", "data.split_seed=1")
    lab.train("budget.trials=1", "name=far", "data.limit_train=24")
    near, far = lab.open("near"), lab.open("far")
    assert distance(near.user_attrs[FEATURES], near.user_attrs[FEATURES]) == 0
    gap = distance(near.user_attrs[FEATURES], far.user_attrs[FEATURES])
    assert gap == pytest.approx(distance(far.user_attrs[FEATURES], near.user_attrs[FEATURES]))
    assert gap > 0.5
    found = strategies_of_similar(near._storage, "new", near.user_attrs[FEATURES], count=3)
    # The best of each study in turn, the nearest study first.
    assert list(found) == ["near_1", "far_1", "near_2"]
    assert found["near_1"]["lr"] == near.best_trial.params["lr"]
    assert not strategies_of_similar(near._storage, "new", near.user_attrs[FEATURES] | {"task": "regression"}, 3)
