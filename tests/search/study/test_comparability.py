import optuna
import pytest
from lab import SMALL

from search.storage import IDENTITY
from search.study.comparability import check_identity, check_space
from strategies import ConfigError, parse_space, sample

FACTS = {"metric": "accuracy", "data (fingerprint)": "0123", "model.name": "resnet18", "model.weights (digest)": "ab"}


@pytest.fixture
def study():
    return optuna.create_study(study_name="pets")


def test_a_new_study_records_its_identity_and_goes_on_with_the_same(study):
    check_identity(study, FACTS)
    assert study.user_attrs[IDENTITY] == FACTS
    check_identity(study, dict(FACTS))


def test_everything_that_changed_is_named_with_both_values_and_a_new_name_is_offered(study):
    check_identity(study, FACTS)
    with pytest.raises(ConfigError) as caught:
        check_identity(study, FACTS | {"metric": "loss", "model.name": "resnet50"})
    assert str(caught.value) == (
        "study 'pets' has trials that would not be comparable; these keys changed:\n"
        "  metric: accuracy -> loss\n"
        "  model.name: resnet18 -> resnet50\n"
        "Use the earlier values, or begin a new study with name=pets-2"
    )
    assert study.user_attrs[IDENTITY] == FACTS


OLD = {
    "depth": {"low": 0, "high": 5},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss": {"choices": ["cross_entropy", "focal"]},
    "epochs": 3,
}


@pytest.fixture
def tried(study):
    """A study with a trial drawn from OLD."""
    trial = study.ask()
    sample(parse_space(OLD), trial)
    study.tell(trial, 0.5)
    return study


@pytest.mark.parametrize(
    "change",
    [
        {"lr": {"low": 1e-5, "high": 1.0, "log": True}},
        {"depth": {"low": 2, "high": 4}},
        {"loss": "bce"},
        {"epochs": {"low": 1, "high": 9}},
        {"clip_grad": {"low": 0.0, "high": 1.0}},
    ],
    ids=["a wider range", "a narrower range", "a field fixed", "a field searched", "a field added"],
)
def test_ranges_may_move_and_fields_be_fixed_or_searched(tried, change):
    check_space(tried, parse_space(OLD | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss": {"choices": ["cross_entropy", "bce"]}},
            r"strategy\.loss: study 'pets' has trials that drew it from choices \['cross_entropy', 'focal'\]",
        ),
        (
            {"lr": {"choices": [1e-3, 1e-2]}},
            r"strategy\.lr: study 'pets' has trials that drew it from a range from 0\.0001 to 0\.01 \(log\)",
        ),
        ({"depth": {"low": 0.0, "high": 1.0}}, r"strategy\.depth: .* a range from 0 to 5; keep that"),
        ({"lr": {"low": 1e-4, "high": 1e-2}}, r"strategy\.lr: .* a range from 0\.0001 to 0\.01 \(log\)"),
    ],
    ids=["other choices", "a range made a list", "blocks made fractions", "a log range made linear"],
)
def test_what_optuna_cannot_join_is_refused_by_field_with_a_new_name(tried, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_space(tried, parse_space(OLD | change))
    assert str(caught.value).endswith("or begin a new study with name=pets-2")


def test_what_does_not_change_the_comparison_may_change_between_runs(new_lab):
    lab = new_lab(strategy=SMALL["strategy"] | {"depth": 0})
    lab.train("budget.trials=1")
    changes = ["seed=5", "strategy.epochs=2", "strategy.lr.high=0.1", "sampler.name=random", "pruner.name=median"]
    lab.train("budget.trials=2", *changes)
    assert lab.outcomes() == ["complete", "complete"]


def test_a_study_of_before_there_were_several_reports_an_epoch_had_one(study):
    check_identity(study, FACTS)
    check_identity(study, FACTS | {"pruner.reports_per_epoch": 1, "pruner.low_rung_images": 1.0})
    with pytest.raises(ConfigError, match=r"pruner\.reports_per_epoch: 1 -> 2"):
        check_identity(study, FACTS | {"pruner.reports_per_epoch": 2})
