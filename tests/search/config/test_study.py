import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from search.config import StudyConfig, build_config, schema_keys
from search.config.defaults import DEFAULT_PRESETS, DEFAULT_SPACE, TASK_DECODERS, TASK_METRICS
from strategies import LOSSES, TASK_LOSSES, ConfigError, Fixed, FloatRange, Strategy
from trainers import TASKS

BAD = [
    ({"budget": {"trails": 3}}, "budget.trails: unknown key; did you mean 'trials'?"),
    ({"trials": 3}, "trials: unknown key; did you mean 'budget.trials'?"),
    ({"lr": 3}, "lr: unknown key; did you mean 'strategy.lr'?"),
    ({"budgt": {}}, "budgt: unknown key; did you mean 'budget'?"),
    (
        {"budget": {"trials": "many"}},
        "budget.trials: 'many' is not a whole number at least 1 and at most 1000000, or null",
    ),
    ({"budget": {"trials": True}}, "budget.trials: True is not a whole number at least 1 and at most 1000000"),
    ({"budget": {"trials": 2.5}}, "budget.trials: 2.5 is not a whole number at least 1 and at most 1000000"),
    ({"budget": {"trials": 0}}, "budget.trials: 0 is not a whole number at least 1 and at most 1000000"),
    ({"budget": {"trials": "5"}}, "budget.trials: '5' is not a whole number at least 1 and at most 1000000"),
    ({"budget": {"trials": None}}, "budget.trials: null, and so are budget.minutes, budget.hours and budget.until"),
    ({"budget": {"minutes": 0}}, "budget.minutes: 0 is not a number above 0 and at most 1000000"),
    ({"budget": {"minutes": 5, "hours": 1}}, "budget.minutes: 5.0 and budget.hours: 1.0 both say when the search ends"),
    ({"budget": {"until": "25:00"}}, "budget.until: '25:00' is not a time of day such as 07:00 or 23:30"),
    ({"budget": {"until": 7}}, "budget.until: 7 is not a time of day such as 07:00 or 23:30"),
    ({"budget": {"hours": 0}}, "budget.hours: 0 is not a number above 0 and at most 1000000"),
    ({"budget": {"hours": float("nan")}}, "budget.hours: nan is not a number above 0 and at most 1000000, or null"),
    ({"budget": {"hours": True}}, "budget.hours: True is not a number above 0 and at most 1000000, or null"),
    ({"budget": 5}, "budget: 5 is not a section with the keys trials, minutes"),
    (
        {"executor": {"trials_per_device": "aut"}},
        "executor.trials_per_device: 'aut' is neither auto nor a whole number from 1 to 64; did you mean 'auto'?",
    ),
    (
        {"executor": {"trials_per_device": 65}},
        "executor.trials_per_device: 65 is neither auto nor a whole number from 1 to 64; the nearest is 64",
    ),
    ({"executor": {"trials_per_device": True}}, "executor.trials_per_device: True is neither auto nor a whole number"),
    (
        {"store": {"url": "sqlite://"}},
        "store.url: 'sqlite://' is in the memory of one process, and gone with it",
    ),
    ({"tracking": {"uri": "sqlite:///:memory:"}}, "tracking.uri: 'sqlite:///:memory:' is in the memory of one process"),
    ({"store": {"url": "grpc://h:99999999"}}, "store.url: 'grpc://h:99999999' is not an address: Port out of range"),
    ({"tracking": {"uri": "http://[::1"}}, "tracking.uri: 'http://[::1' is not an address: Invalid IPv6 URL"),
    ({"tracking": {"uri": "http://:5000"}}, "tracking.uri: 'http://:5000' is not an address: it names no host"),
    (
        {"champion": {"name": "pets/v2"}},
        "champion.name: 'pets/v2' cannot name a model; give 1 to 250 characters",
    ),
    ({"champion": {"name": ".."}}, "champion.name: '..' cannot name a model"),
    ({"threads": 10**12}, "threads: 1000000000000 is not a whole number at least 1 and at most 1024, or null"),
    ({"reuse_gib": 1e300}, "reuse_gib: 1e+300 is not a number at least 0 and at most 1000000"),
    ({"executor": {"devices": 10**12}}, "executor.devices: 1000000000000 is neither auto, nor how many GPUs"),
    ({"data": {"root": "a\0b"}}, "data.root: a text with a NUL character is no text"),
    ({"data": {"root": "/x/" + "y" * 300}}, "data.root: 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy'... is a"),
    (
        {"store": {"url": "sqlite:///" + "y" * 300}},
        "store.url: 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy'... is a",
    ),
    (
        {"tracking": {"artifacts": "y" * 5000}},
        "tracking.artifacts: a text of 5,000 characters is too long; at most",
    ),
    ({"description": "caf\udce9"}, "description: a text that is not UTF-8 cannot be stored"),
    ({"seed": 10**6000}, "seed: a number beyond 9223372036854775807"),
    ({"strategy": {"lr": {"low": -(10**400), "high": 1}}}, "strategy.lr.low: a number beyond -9223372036854775807"),
    ({"presets": {"x": {"y" * 5000: 1}}}, "presets.x.yyy"),
    (
        {"executor": {"name": "rey"}},
        "executor.name: 'rey' is not one of auto, inline, local, ray; did you mean 'ray'?",
    ),
    ({"executor": {"adress": "auto"}}, "executor.adress: unknown key; did you mean 'address'?"),
    ({"executor": {"devices": "atuo"}}, "executor.devices: 'atuo' is neither auto, nor how many GPUs, nor a list of"),
    ({"executor": {"devices": [0, 0]}}, "executor.devices: 0 is there twice"),
    ({"executor": {"devices": []}}, "executor.devices: [] is neither auto, nor how many GPUs, nor a list of their"),
    (
        {"executor": {"devices": 2}, "device": "cuda:1"},
        "executor.devices: 2 would choose among GPUs, and device: cuda:1 has chosen already; leave one of both out",
    ),
    ({"executor": {"gpus": 1.5}}, "executor.gpus: 1.5 is not a number at least 0 and at most 1, or null"),
    ({"executor": {"gpus": 0.5}, "device": "cpu"}, "executor.gpus: 0.5 would not be used by device: cpu"),
    ({"executor": {"workers": 0}}, "executor.workers: 0 is not a whole number at least 1 and at most 1024, or null"),
    ({"executor": {"resources": {"GPU": 1}}}, "executor.resources.GPU: is what executor.gpus says; leave it out"),
    ({"executor": {"resources": {"disk": 0}}}, "executor.resources.disk: 0 is not above 0"),
    ({"executor": {"placement": "spred"}}, "executor.placement: 'spred' is not one of pack, spread; did you mean"),
    (
        {"executor": {"name": "inline", "trials_per_device": 2}},
        "executor.trials_per_device: 2 would not be used by executor.name: inline; only local does",
    ),
    (
        {"executor": {"workers": 2, "trials_per_device": 2}},
        "executor.workers: 2 would not be used by executor.name: local; only ray does",
    ),
    ({"executor": {"name": "ray"}, "device": "cuda:1"}, "device: 'cuda:1' cannot be had of executor.name: ray"),
    ({"seed": "abc"}, "seed: 'abc' is not a whole number at least 0"),
    ({"seed": -1}, "seed: -1 is not a whole number at least 0"),
    ({"task": "clasification"}, "task: 'clasification' is not one of classification, multilabel, regression, segmen"),
    ({"task": "regression", "metric": "accuracy"}, "metric: 'accuracy' is not one of rmse, mae, r2, spearman, loss"),
    (
        {"task": "regression", "strategy": {"loss": {"choices": ["mse", "cross_entropy"]}}},
        "strategy.loss: 'cross_entropy' cannot train task regression; expected mse or l1 or huber",
    ),
    (
        {"task": "multilabel", "presets": {"a": {"loss": "mse"}}},
        "presets.a.loss: 'mse' cannot train task multilabel; expected bce or focal",
    ),
    (
        {"metric": "acuracy"},
        "metric: 'acuracy' is not one of accuracy, balanced_accuracy, macro_f1, loss; did you mean",
    ),
    ({"metric": 3}, "metric: 3 is not text"),
    (
        {"sampler": {"name": "tpee"}},
        "sampler.name: 'tpee' is not one of learned, tpe, gp, cmaes, qmc, random, nsga2",
    ),
    (
        {"pruner": {"name": "zzz"}},
        "pruner.name: 'zzz' is not one of auto, median, halving, hyperband, patient, rungs, none",
    ),
    ({"pruner": {"reduction": 1}}, "pruner.reduction: 1 is not a whole number at least 2 and at most 100"),
    (
        {"pruner": {"reports_per_epoch": 0}},
        "pruner.reports_per_epoch: 0 is not a whole number at least 1 and at most 100",
    ),
    ({"pruner": {"low_rung_images": 0.0}}, "pruner.low_rung_images: 0.0 is not a number above 0 and at most 1"),
    (
        {"pruner": {"low_rung_images": 0.5}},
        "pruner.low_rung_images: 0.5 would not be used by pruner.name: auto; only rungs has low rungs",
    ),
    (
        {"pruner": {"name": "rungs", "first_rung": 5}},
        "pruner.first_rung: 5 is not below strategy.epochs: 5, so no trial would be paused",
    ),
    ({"pruner": {"name": "rungs"}, "costs": ["seconds"]}, "pruner.name: 'rungs' cannot stop trials of a study with"),
    (
        {"budget": {"min_improvement": 0}},
        "budget.min_improvement: 0 is not a number above 0 and at most 1000000, or null",
    ),
    (
        {"budget": {"min_improvement": 0.01}, "costs": ["seconds"]},
        "budget.min_improvement: 0.01 cannot end a study with costs",
    ),
    (
        {"budget": {"min_improvement": 0.01}, "strategy": {"depth": 1}},
        "budget.min_improvement: 0.01 needs something to search, and strategy has neither ranges nor choices",
    ),
    ({"data": {"source": "foldr"}}, "data.source: 'foldr' is not one of coco, digits, folder, huggingface, manif"),
    ({"data": {"source": "folder"}}, "data.root: missing; data.source: folder needs it"),
    ({"data": {"source": "manifest"}}, "data.manifest: missing; data.source: manifest needs it"),
    ({"data": {"source": "webdataset"}}, "data.shards: missing; data.source: webdataset needs it"),
    (
        {"data": {"manifest": {"train": "a.csv", "tset": "b.csv"}}},
        "data.manifest.tset: unknown key; did you mean 'test'?",
    ),
    ({"data": {"shards": {"val": "b.tar"}}}, "data.shards.train: missing"),
    ({"data": {"annotations": 5}}, "data.annotations: 5 is not text or a mapping, or null"),
    (
        {"data": {"manifest": "a.csv", "columns": {"lable": "x"}}},
        "data.columns.lable: unknown key; did you mean 'label'?",
    ),
    (
        {"data": {"manifest": "a.csv", "columns": {"label": []}}},
        "data.columns.label: [] is not the name of a column, or",
    ),
    (
        {"data": {"manifest": "a.csv", "columns": {"image": ["a"]}}},
        "data.columns.image: ['a'] is not the name of a column",
    ),
    (
        {"data": {"root": "/x", "columns": {"label": "y"}}},
        "data.columns: {'label': 'y'} would not be used by data.source",
    ),
    ({"data": {"masks": "/m"}}, "data.root: missing; data.source: masks needs it"),
    ({"data": {"source": "masks", "root": "/x"}}, "data.masks: missing; data.source: masks needs it"),
    ({"data": {"source": "voc"}}, "data.root: missing; data.source: voc needs it"),
    ({"data": {"root": "/x", "palette": "p.csv"}}, "data.palette: 'p.csv' would not be used by data.source: folder"),
    ({"data": {"source": "scenes", "root": "/x"}}, "data.root: '/x' would not be used by data.source: scenes"),
    (
        {"data": {"ignore_index": 256}},
        "data.ignore_index: 256 is not a whole number at least 0 and at most 255, or null",
    ),
    ({"data": {"folds": 1}}, "data.folds: 1 is not a whole number at least 2 and at most 1000, or null"),
    ({"data": {"folds": 3, "fold": 3}}, "data.fold: 3 is not a fold, data.folds: 3; they are counted from 0"),
    ({"data": {"fold": 1}}, "data.fold: 1 is not a fold, data.folds is not given"),
    ({"data": {"max_value": 0}}, "data.max_value: 0 is not a number above 0 and at most 1e+18, or null"),
    ({"model": {"in_chans": 0}}, "model.in_chans: 0 is not a whole number at least 1"),
    ({"data": {"csv": "a.csv"}}, "data.csv: unknown key"),
    ({"data": {"source": "torchvision", "root": "/x"}}, "data.dataset: missing; data.source: torchvision needs it"),
    ({"data": {"source": "torchvision", "dataset": "DTD"}}, "data.root: missing; data.source: torchvision needs it"),
    ({"data": {"source": "digits", "root": "/x"}}, "data.root: '/x' would not be used by data.source: digits"),
    ({"data": {"root": ""}}, "data.root: '' is not text, or null"),
    ({"data": {"root": 3}}, "data.root: 3 is not text, or null; put it in quotes"),
    ({"data": {"image_size": 4}}, "data.image_size: 4 is not a whole number at least 8 and at most 2048"),
    ({"data": {"val_fraction": 1.0}}, "data.val_fraction: 1.0 is not a number above 0 and below 1"),
    ({"data": {"val_fraction": 0.6, "test_fraction": 0.4}}, "data.val_fraction: 0.6 and data.test_fraction: 0.4"),
    ({"data": {"limit_train": 0}}, "data.limit_train: 0 is not a whole number at least 1 and at most 1000000000"),
    ({"data": {"on_bad_image": "skp"}}, "data.on_bad_image: 'skp' is not one of refuse, skip; did you mean 'skip'?"),
    ({"model": {"weights": "hubb"}}, "model.weights: 'hubb' is not one of hub, embedded, none, package:efficientnet-"),
    ({"model": {"weights": "package:resnet18"}}, "model.weights: 'package:resnet18' is not one of hub"),
    ({"model": {"weights": "models:/"}}, "model.weights: 'models:/' is not one of hub"),
    ({"model": {"weights": ["hub", 5]}}, "model.weights: 5 is not one of hub"),
    ({"model": {"weights": []}}, "model.weights: [] is not one form of weights, nor a list of them"),
    ({"model": {"weights": ["none", "hub"]}}, "model.weights: ['none', 'hub']: what stands after none"),
    ({"model": {"name": ""}}, "model.name: '' is not text or a list of texts"),
    ({"model": {"name": []}}, "model.name: [] is not a model, nor a list of at least one"),
    ({"model": {"name": ["resnet18", 5]}}, "model.name: ['resnet18', 5] is not a model, nor a list"),
    ({"model": {"name": ["resnet18", "resnet18"]}}, "model.name: 'resnet18' is there twice"),
    ({"costs": ["second"]}, "costs: 'second' is not one of seconds, parameters_trained; did you mean 'seconds'?"),
    ({"costs": 5}, "costs: 5 is not a list of seconds, parameters_trained"),
    ({"costs": ["seconds", "seconds"]}, "costs: 'seconds' is there twice"),
    ({"costs": ["seconds"], "sampler": {"name": "cmaes"}}, "sampler.name: 'cmaes' cannot search with costs, Optuna"),
    ({"costs": ["seconds"], "pruner": {"name": "median"}}, "pruner.name: 'median' cannot stop trials of a study with"),
    ({"strategy": 5}, "strategy: 5 is not a mapping"),
    ({"strategy": {"lrr": 5}}, "strategy.lrr: unknown key; did you mean 'lr'?"),
    ({"strategy": {"lr": {"low": 1, "high": 0.1}}}, "strategy.lr: low 1 is above high 0.1"),
    ({"strategy": {"lr": {"low": 1e-3, "hihg": 1}}}, "strategy.lr.hihg: unknown key; did you mean 'high'?"),
    ({"strategy": {"loss": "focl"}}, "strategy.loss: 'focl' is not one of"),
    ({"strategy": {"epochs": 2, "warmup_epochs": 3}}, "strategy.warmup_epochs: can exceed strategy.epochs"),
    ({"presets": {"a": {"lr": -1}}}, "presets.a.lr: -1 is not a number above 0"),
    ({"presets": {"a": {"lrr": 1}}}, "presets.a.lrr: unknown key; did you mean 'lr'?"),
    ({"presets": {"a": 5}}, "presets.a: 5 is not a name with a mapping"),
    ({"presets": ["a"]}, "presets: ['a'] is not a mapping of names to strategies"),
    ({"checkpoints": {"keep": 0}}, "checkpoints.keep: 0 is not a whole number at least 1"),
    (
        {"checkpoints": {"keep": 1}, "after": {"soups": True}},
        "after.soups: a soup needs checkpoints.keep of at least 2",
    ),
    ({"after": {"soup": True}}, "after.soup: unknown key; did you mean 'soups'?"),
    ({"after": {"wise_ft": 1}}, "after.wise_ft: 1 is not true or false"),
    ({"after": True}, "after: True is not a section with the keys wise_ft, soups, calibrate"),
    ({"retries": -1}, "retries: -1 is not a whole number at least 0"),
    ({"store": {"url": "optuna.db"}}, "store.url: 'optuna.db' is not a database URL"),
    ({"device": "cud"}, "device: 'cud' is not a device; did you mean 'cuda'?"),
    ({"precision": "fp8"}, "precision: 'fp8' is not one of auto, fp32, bf16, fp16"),
    ({"threads": 0}, "threads: 0 is not a whole number at least 1 and at most 1024, or null"),
    ({"name": 2024}, "name: 2024 is not text, or null; put it in quotes"),
    ({3: 1}, "3: unknown key"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[message.split(" ")[0] for _, message in BAD])
def test_a_bad_value_is_refused_with_key_value_and_what_was_expected(values, message):
    with pytest.raises(ConfigError) as caught:
        build_config(values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "../up", "a/b", "a b", "ä", "x" * 101, "a\n"])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(ConfigError, match=r"^name: .* is not made of letters"):
        build_config({"name": name})


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config(
            {"budget": {"trials": "many"}, "data": {"sorce": 1}, "strategy": {"lr": -1, "depth": "x"}, "seed": 0.5}
        )
    first, *lines = str(caught.value).splitlines()
    assert first == "5 problems in the configuration"
    keys = {line.strip().split(":")[0] for line in lines}
    assert keys == {"budget.trials", "data.sorce", "strategy.lr", "strategy.depth", "seed"}


def test_an_empty_study_is_the_defaults():
    config = build_config({})
    assert config == StudyConfig()
    assert (config.data.source, config.model.weights, config.budget.trials) == ("digits", ("hub",), 20)
    assert config.strategy == DEFAULT_SPACE
    assert config.presets == DEFAULT_PRESETS


def test_the_default_space_and_presets_are_valid_strategies():
    assert build_config({"strategy": DEFAULT_SPACE, "presets": DEFAULT_PRESETS}) == StudyConfig()
    assert {Strategy.from_dict(preset).depth for preset in DEFAULT_PRESETS.values()} == {0, 1}


def test_space_parses_the_strategy_section():
    config = build_config({"strategy": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "epochs": 3}})
    assert config.space() == {"lr": FloatRange(1e-4, 1e-2, None, True), "epochs": Fixed(3)}


@pytest.mark.parametrize(
    "weights",
    ["hub", "none", "package:efficientnet-lite0", "w.safetensors", "/a b/w.PTH", "models:/net@champion", "runs:/1/m"],
)
def test_weights_may_be_one_form_or_a_list(weights):
    assert build_config({"model": {"weights": weights}}).model.weights == (weights,)
    assert build_config({"model": {"weights": ["hub", weights]}}).model.weights == ("hub", weights)


def test_several_models_are_a_list_and_one_stays_a_name():
    assert build_config({"model": {"name": ["resnet18", "resnet10t"]}}).model.names == ("resnet18", "resnet10t")
    one = [build_config({"model": {"name": name}}).model for name in ("resnet10t", ["resnet10t"])]
    assert one[0] == one[1]
    assert (one[0].name, one[0].names) == ("resnet10t", ("resnet10t",))


def test_costs_are_a_list_in_one_order_and_switch_the_pruner_off_unless_it_was_chosen():
    config = build_config({"costs": ["parameters_trained", "seconds"], "pruner": {"patience": 3}})
    assert config.costs == ("seconds", "parameters_trained")
    assert (config.pruner.name, config.pruner.patience) == ("none", 3)
    assert build_config({"costs": "seconds"}) == build_config({"costs": ["seconds"], "pruner": {"name": "none"}})
    assert build_config({"costs": []}).pruner.name == build_config({}).pruner.name == "auto"


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ({"root": "/x"}, "folder"),
        ({"root": "/x", "dataset": "FashionMNIST"}, "torchvision"),
        ({"manifest": "/x.csv", "root": "/x"}, "manifest"),
        ({"manifest": {"train": "a.csv", "test": "b.csv"}}, "manifest"),
        ({"annotations": "/x.json", "root": "/x"}, "coco"),
        ({"root": "/x", "masks": "/m", "palette": "p.csv"}, "masks"),
        ({"shards": "train-{000..012}.tar"}, "webdataset"),
        ({"dataset": "owner/name"}, "huggingface"),
        ({"root": None}, "digits"),
    ],
)
def test_the_source_follows_from_what_is_given(data, source):
    assert build_config({"data": data}).data.source == source


@pytest.mark.parametrize(
    ("task", "metric", "loss"),
    [("multilabel", "mean_average_precision", "bce"), ("regression", "rmse", "mse")],
)
def test_a_task_brings_its_metric_and_its_loss(task, metric, loss):
    config = build_config({"task": task, "strategy": {"lr": 0.1}})
    assert (config.metric, config.strategy) == (metric, {"lr": 0.1, "loss": loss})
    assert build_config({"task": task}).strategy == DEFAULT_SPACE | {"loss": loss}
    assert build_config({"task": task, "metric": "loss"}).metric == "loss"


def test_the_tables_known_without_torch_are_those_of_the_trainers():
    assert {name: tuple(task.metrics) for name, task in TASKS.items()} == TASK_METRICS
    assert {name: tuple(losses) for name, losses in LOSSES.items()} | {"detection": ("detector",)} == TASK_LOSSES
    dense = {name: task.dense for name, task in TASKS.items() if task.dense is not None}
    assert {name: one.decoders for name, one in dense.items()} == TASK_DECODERS


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_devices_are_accepted(device):
    assert build_config({"device": device}).device == device


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        StudyConfig().seed = 1


def test_every_key_has_help_and_says_what_it_accepts():
    keys = list(schema_keys())
    assert len({key.name for key in keys}) == len(keys)
    assert all(key.help and key.expected for key in keys)
    assert {"budget.trials", "strategy.lr", "data.root", "name"} <= {key.name for key in keys}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
    st.sampled_from([key.name for key in schema_keys()]),
)
def test_any_value_for_any_key_is_accepted_or_refused_by_name(value, name):
    section, _, key = name.partition(".")
    try:
        build_config({section: {key: value} if key else value})
    except ConfigError as error:
        assert section in str(error)
