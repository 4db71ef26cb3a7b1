import pytest

from search.config import compose_jobs, compose_study, find_study, list_spaces, list_studies, load_space, load_study
from search.config.defaults import DEFAULT_PRESETS, DEFAULT_SPACE
from search.run import as_yaml
from strategies import ConfigError, parse_space


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write a study file into a working folder of its own; returns the ``study=`` argument."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, path: str = "mine.yaml") -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
        return f"study={tmp_path / path}"

    return write


LR = "strategy:\n  lr: {low: 1e-4, high: 1e-1, log: true}\n  epochs: 3\n"


def refusal(*arguments: str, multirun: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_jobs(arguments, multirun)
    return str(caught.value)


@pytest.mark.parametrize("name", ["quickstart", "resnet_cls", "vit_cls"])
def test_the_studies_shipped_compose_to_their_own_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose_study([f"study={name}"])
    assert (config.name, config.data.source) == (name, "digits")
    assert config.space()
    text = find_study(name).read_text()
    assert text.startswith("# ")


@pytest.mark.parametrize("name", ["quickstart", "resnet_cls", "vit_cls"])
def test_a_printed_configuration_is_a_study_file_of_the_same_configuration(name, study):
    config = compose_study(
        [f"study={name}", "seed=3", "strategy.weight_decay=1e-05", "data.root=/my images/1e-3", "description='1e-3'"]
    )
    assert compose_study([study(as_yaml(config), "elsewhere/other.yml")]) == config


def test_a_list_of_models_and_costs_are_read_from_file_and_command_line_and_printed_alike(study):
    file = study("model: {name: [resnet18, resnet10t]}\ncosts: [seconds]\n")
    config = compose_study([file])
    assert (config.model.names, config.costs, config.pruner.name) == (("resnet18", "resnet10t"), ("seconds",), "none")
    said = ["model.name=[resnet18,resnet10t]", "costs=[seconds]"]
    assert compose_study([study("name: mine\n", "mine.yaml"), *said]) == config
    assert compose_study([study(as_yaml(config), "elsewhere/other.yml")]) == config
    names = [job.model.names for job in compose_jobs([study("seed: 1\n"), "model.name=[a,b],c"], multirun=True)]
    assert names == [("a", "b"), ("c",)]


def test_a_pruner_of_the_study_file_is_not_dropped_for_costs_given_later(study):
    file = study("pruner: {name: median}\n")
    assert refusal(file, "costs=[seconds]").startswith("pruner.name: 'median' cannot stop trials of a study with costs")
    assert compose_study([file, "costs=[seconds]", "pruner.name=none"]).costs == ("seconds",)
    assert compose_study([file, "costs=[seconds]", "~pruner.name"]).pruner.name == "none"


def test_a_file_anywhere_is_a_study_named_after_it(study):
    config = compose_study([study("seed: 7\n", "deep/er/my-own.v2.yaml")])
    assert (config.name, config.seed, config.strategy) == ("my-own.v2", 7, DEFAULT_SPACE)
    assert compose_study(["study=deep/er/my-own.v2.yaml"]) == config


def test_a_path_with_spaces_needs_no_quotes(study):
    assert compose_study([study("name: x\n", "a folder/s.yaml")]).name == "x"


def test_a_study_in_the_working_folder_goes_before_one_shipped(study):
    study("seed: 42\n", "studies/resnet_cls.yaml")
    study("seed: 43\n", "studies/private.yml")
    assert compose_study(["study=resnet_cls"]).seed == 42
    assert compose_study(["study=private"]).seed == 43
    assert {"private", "quickstart", "resnet_cls", "vit_cls"} <= set(list_studies())


def test_numbers_in_scientific_notation_are_numbers(study):
    config = compose_study([study("strategy: {lr: 1e-3, weight_decay: 1e-05}\n")])
    assert config.strategy == {"lr": 0.001, "weight_decay": 1e-5}


def test_an_empty_section_is_the_default(study):
    config = compose_study([study("data:\n  # root: /x\nstrategy:\npresets:\n")])
    assert (config.strategy, config.presets) == (DEFAULT_SPACE, DEFAULT_PRESETS)


def test_the_strategy_section_of_a_study_replaces_the_default_space(study):
    assert set(compose_study([study(LR)]).strategy) == {"lr", "epochs"}


def test_an_empty_mapping_of_presets_is_none(study):
    assert compose_study([study("presets: {}\n")]).presets == {}
    assert compose_study([study("seed: 1\n"), "presets={}"]).presets == {}


GRAMMAR = [
    (["strategy.lr.high=0.01"], {"low": 1e-4, "high": 0.01, "log": True}),
    (["strategy.lr=0.001"], 0.001),
    (["strategy.lr=1e-3"], 0.001),
    (["strategy.lr={choices: [1e-3, 1e-2]}"], {"choices": [0.001, 0.01]}),
    (["strategy.lr={low: 0.1, high: 0.2}"], {"low": 0.1, "high": 0.2}),
    (["strategy.lr={low: 0.1, high: 0.2}", "strategy.lr.high=0.3"], {"low": 0.1, "high": 0.3}),
    (["~strategy.lr.log"], {"low": 1e-4, "high": 1e-1}),
    (["~strategy.lr.log=true"], {"low": 1e-4, "high": 1e-1}),
    (["~strategy.lr", "+strategy.lr=0.5"], 0.5),
    (["++strategy.lr=0.5"], 0.5),
    (["~strategy.lr"], None),
    (["strategy={lr: 0.5}"], 0.5),
]


@pytest.mark.parametrize(("overrides", "entry"), GRAMMAR, ids=[" ".join(words) for words, _ in GRAMMAR])
def test_overrides_change_replace_add_and_delete_strategy_entries(study, overrides, entry):
    assert compose_study([study(LR), *overrides]).strategy.get("lr") == entry


def test_overrides_reach_keys_that_the_study_does_not_mention(study):
    config = compose_study(
        [study(LR), "budget.trials=50", "strategy.clip_grad=1", "model.weights=[hub,none]", "data.root=/my/images"]
    )
    assert (config.budget.trials, config.strategy["clip_grad"], config.model.weights) == (50, 1, ("hub", "none"))
    assert (config.data.source, config.data.root) == ("folder", "/my/images")


def test_a_section_given_whole_is_merged_and_leaving_a_key_out_gives_its_default(study):
    mine = study("budget: {trials: 7, hours: 2}\n")
    assert compose_study([mine, "budget={hours: 3}"]).budget.trials == 7
    assert compose_study([mine, "~budget.trials"]).budget.trials == 20
    assert compose_study([mine, "~budget"]).budget.hours is None
    for words, seconds in ((["budget.minutes=3"], 180), (["budget={minutes: 4}"], 240), (["budget.until=23:30"], None)):
        budget = compose_study([mine, *words]).budget
        assert (budget.trials, budget.hours, budget.seconds) == (7, None, seconds)
    assert compose_study([study("budget: {until: 23:30}\n")]).budget.until == "23:30"
    assert compose_study([mine, "budget.trials=null"]).budget.trials is None


def test_presets_can_be_added_changed_and_replaced(study):
    mine = study(LR)
    assert compose_study([mine, "+presets={mine: {lr: 0.1}}"]).presets == DEFAULT_PRESETS | {"mine": {"lr": 0.1}}
    assert compose_study([mine, "presets.mine.lr=0.1"]).presets["mine"] == {"lr": 0.1}
    assert compose_study([mine, "presets={mine: {lr: 0.1}}"]).presets == {"mine": {"lr": 0.1}}
    assert "last_block" not in compose_study([mine, "~presets.last_block"]).presets


def test_interpolations_are_resolved(study, monkeypatch):
    monkeypatch.setenv("MY_IMAGES", "/from/env")
    config = compose_study([study("data: {root: '${oc.env:MY_IMAGES}'}\nname: ${model.name}-${seed}\n"), "seed=4"])
    assert (config.data.root, config.name) == ("/from/env", "resnet18-4")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.trails=5", "budget.trails: unknown key; did you mean 'trials'?"),
        ("hydra.run.dir=x", "hydra: unknown key"),
        ("data/source=folder", "data/source: unknown key"),
        ("strategy.epochs.high=5", "strategy.epochs.high: strategy.epochs is the plain value 3 without keys"),
        ("seed.x=5", "seed.x: seed is the plain value 0 without keys"),
        ("strategy.batch_size.high=5", "strategy.batch_size.low: missing; a range needs low and high"),
        ("+strategy.epochs=5", "+strategy.epochs: is there already, with 3; leave out the +"),
        ("~strategy.epoch", "~strategy.epoch: there is nothing to leave out; did you mean 'epochs'?"),
        ("~strategy.epochs=9", "~strategy.epochs=9: the value there is 3"),
        ("seed=0,1", "seed=0,1: several values need --multirun"),
        ("seed", "'seed' is not an override; write key=value"),
        ("quickstart", "'quickstart' is not an override; write study=quickstart"),
        ("data.root=[a", "'data.root=[a' cannot be read; special characters need quotes of their own"),
        ("data.root=${nowhere}", "data.root: Interpolation key 'nowhere' not found"),
        ("data.root='???'", "data.root: Missing mandatory value"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(study, override, message):
    assert refusal(study(LR), override).startswith(message)


def test_problems_of_overrides_and_of_the_file_are_told_together(study):
    message = refusal(study("budget: {trials: 0}\n"), "seed.x=1", "metric=acc")
    assert message.splitlines()[0] == "3 problems in the configuration"
    assert all(key in message for key in ("seed.x:", "budget.trials:", "metric:"))


# Each line stands for nine of the line before: 9**40 values in all.
LAUGHS = "".join(f"x{k}: &x{k} [{', '.join([f'*x{k - 1}' if k else 'lol'] * 9)}]\n" for k in range(40))
# Each line holds the line before five levels down.
TOWER = "".join(f"x{k}: &x{k} [[[[[{f'*x{k - 1}' if k else 'top'}]]]]]\n" for k in range(40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nbudget: {trials: 5\nmetric: x\n", ", line 3: "),
        ("seed: 1\nbudget:\n  trials: 5\n  trials: 6\n", ", line 4: found duplicate key trials"),
        ("a:\n\t- 1\n", ", line 2: found character '\\t'"),
        ("x: !!python/object/apply:os.system [ls]\n", ", line 1: could not determine a constructor"),
        ("- 1\n- 2\n", ": holds a list"),
        ("42\n", ": not a readable study file"),
        ("x: \x00\n", ": not a readable study file"),
        ("seed: " + "7" * 6000 + "\n", ": not a readable study file: "),
        ("description: " + "[" * 25 + "]" * 25 + "\n", ", line 1: more than 20 levels deep"),
        ("description: " + "[" * 20_000, ", line 1: more than 20 levels deep"),
        ("presets: &a\n  x: [*a]\n", ", line 2: the alias *a is inside of what it stands for"),
        (LAUGHS, ", line 5: more than 10,000 values, with those that aliases stand for"),
        (TOWER, ", line 4: more than 20 levels deep"),
        ("x: [" + "1, " * 10_001 + "]\n", ", line 1: more than 10,000 values"),
        ("# " + "x" * 2**18, ": more than 262,144 bytes are no study file"),
    ],
)
def test_a_broken_file_is_named_with_the_line(study, text, message):
    argument = study(text)
    assert refusal(argument).startswith(argument.removeprefix("study=") + message)


def test_aliases_stand_for_their_values(study):
    text = "presets:\n  a: &base {lr: 0.01}\n  b: *base\n  c: {<<: *base, depth: 1}\n"
    assert compose_study([study(text)]).presets == {"a": {"lr": 0.01}, "b": {"lr": 0.01}, "c": {"lr": 0.01, "depth": 1}}


@pytest.mark.parametrize("reference", ["${presets.p%d.x}", "${presets[p%d].x}", "${..p%d.x}"])
def test_interpolations_without_end_are_refused(study, reference):
    chain = [f"  p{k}: {{x: '{(reference % (k - 1)) * 2 if k else 'lol'}'}}\n" for k in range(40)]
    said = refusal(study("presets:\n" + "".join(chain)))
    turned = refusal(study("presets:\n" + "".join(reversed(chain))))
    assert turned == "presets.p20.x: more than 20 levels deep, with interpolations"
    assert said == "presets.p13.x: stands for more than 10,000 values by interpolation"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=" + "7" * 6000, "'seed=777"),
        ("seed=" + "[" * 4000 + "]" * 4000, "'seed=[[["),
        ("seed=" + "7" * 20_000, "seed: 20,005 characters are too long for the command line"),
        ("study=" + "y" * 300 + ".yaml", "study: 'yyy"),
        ("study=a\0b/", "'study=a\\x00b/' cannot be read"),
    ],
)
def test_a_word_without_end_is_refused(study, word, message):
    words = [study("seed: 1\n"), word] if not word.startswith("study") else [word]
    said = refusal(*words)
    assert said.startswith(message)
    assert len(said) < 2000


def test_a_file_that_is_no_text_is_refused(study, tmp_path):
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "not a readable study file" in refusal(f"study={tmp_path / 'bin.yaml'}")


def test_an_unknown_study_is_answered_with_the_nearest(study):
    assert "did you mean 'resnet_cls'?" in refusal("study=resnet_cl")
    study("seed: 1\n", "folder/mine.yaml")
    assert refusal("study=folder/min.yaml") == "study: 'folder/min.yaml' is not a file; did you mean 'mine.yaml'?"
    assert refusal("study=folder/").startswith("study: 'folder/' is not a file")


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["study="], ["study=null"], ["~study"]])
def test_without_a_study_the_known_ones_are_listed(arguments):
    message = refusal(*arguments)
    assert message.startswith("study: missing")
    assert "quickstart" in message
    assert "vit_cls" in message


def test_multirun_is_the_product_of_all_sweeps_in_order():
    jobs = compose_jobs(["study=resnet_cls,vit_cls", "strategy.epochs=range(2,4)", "seed=0"], multirun=True)
    assert [(job.name, job.strategy["epochs"]) for job in jobs] == [
        ("resnet_cls-epochs_2", 2),
        ("resnet_cls-epochs_3", 3),
        ("vit_cls-epochs_2", 2),
        ("vit_cls-epochs_3", 3),
    ]


def test_studies_swept_alone_keep_their_names():
    jobs = compose_jobs(["study=resnet_cls,vit_cls", "budget.trials=2"], multirun=True)
    assert [job.name for job in jobs] == ["resnet_cls", "vit_cls"]


def test_studies_can_be_swept_by_a_pattern():
    assert [job.name for job in compose_jobs(["study=glob(*_cls)"], multirun=True)] == ["resnet_cls", "vit_cls"]


def test_a_swept_name_is_taken_as_it_is():
    jobs = compose_jobs(["study=resnet_cls", "name=a,b"], multirun=True)
    assert [job.name for job in jobs] == ["a", "b"]


def test_files_of_the_same_name_are_told_apart_by_their_folder(study):
    first, second = study("seed: 1\n", "a/x.yaml"), study("seed: 2\n", "b/x.yaml")
    jobs = compose_jobs([f"{first},{second.removeprefix('study=')}"], multirun=True)
    assert len({job.name for job in jobs}) == 2
    assert all(job.name.startswith("x-study_") for job in jobs)


def test_swept_values_that_are_lists_or_long_still_make_a_name():
    entries = ["{choices: [0.001, 0.01]}", "{low: 0.0001, high: 0.1, log: true}", "0.5"]
    jobs = compose_jobs(["study=resnet_cls", f"strategy.lr=choice({','.join(entries)})"], multirun=True)
    assert [job.strategy["lr"] for job in jobs][2] == 0.5
    assert jobs[2].name == "resnet_cls-lr_0.5"
    long = compose_jobs(["study=resnet_cls", f"description={'x' * 200},{'y' * 200}"], multirun=True)
    assert {len(job.name) for job in long} == {100}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=0,0", "name: the sweep would run 'resnet_cls-' twice"),
        ("strategy.lr=interval(0,1)", "strategy.lr=interval(0,1): a sweep must list its values"),
        ("study=glob(zzz)", "study=glob(zzz): the sweep holds no value"),
        ("seed=0,x", "seed=x: seed: 'x' is not a whole number"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(override, message):
    study = [] if override.startswith("study=") else ["study=resnet_cls"]
    assert refusal(*study, override, multirun=True).startswith(message)


def test_load_study_keeps_what_the_file_says(study):
    path = study(LR).removeprefix("study=")
    assert load_study(find_study(path)) == {"strategy": {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "epochs": 3}}


@pytest.mark.parametrize("name", list(list_spaces()))
def test_the_spaces_shipped_can_be_chosen_by_name(name, study):
    config = compose_study([study("strategy: {epochs: 3}\n"), f"strategy={name}"])
    assert config.space() == parse_space(load_space(name))
    assert config.strategy != {"epochs": 3}


def test_a_space_chosen_by_name_replaces_the_studys_and_may_be_changed_after_it(study):
    study("lr: 0.5\nepochs: 2\n", "studies/strategy/own.yaml")
    argument = study("strategy: own\n")
    assert compose_study([argument]).strategy == {"lr": 0.5, "epochs": 2}
    assert compose_study([study(LR), "strategy=own", "strategy.lr=0.1"]).strategy == {"lr": 0.1, "epochs": 2}
    names = [config.name for config in compose_jobs([study(LR), "strategy=own,small"], multirun=True)]
    assert names == ["mine-strategy_own", "mine-strategy_small"]


def test_a_space_that_is_not_there_is_named_with_the_nearest(study):
    assert refusal(study(LR), "strategy=smal") == "strategy: there is no space called 'smal'; did you mean 'small'?"
    assert refusal(study("strategy: smal\n")).startswith("strategy: there is no space called 'smal'")
