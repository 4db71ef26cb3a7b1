"""Commands, table rows and Python of README and docs, taken from their text and run, each as small as it can be.

Instead of the text's numbers there are one trial of one epoch (two trials in the studies that are searched to their
ends), 48 images a split, timm's smallest model, and this CPU; the tutorial's ``pets`` is ``resnet_cls``, and addresses
of the web are left out. Rows that do not exclude each other are one study. The README's own search and tests are run in
full by ``.ci/run``.

What is composed or compiled alone, in ``tests/test_commands_in_docs.py``, and why:

| in the text | why it is not run here |
| --- | --- |
| `search.ui` | serves until it is stopped: `tests/search/test_ui.py` asks its servers |
| `search.store` | serves until it is stopped: `tests/faults/test_proxy.py` searches through it |
| `search.learn` | fits for minutes on tables of thousands of rows: `test_learned_policy.py` has a small table |
| `search.doctor` | its exit code tells of the machine: `test_doctor.py` |
| `search.completion` | is for shells: `test_commands.py` |
| `search.models NAME` | is the form of the commands that are run |
| `search.models module:/my/net.py` | the file is the page's: `test_models.py` writes it |
| `search.run study=resnet_cls model.name=module:/my/net.py` | as the row above |
| `search.run study=resnet_cls 'model.name=[resnet18, torchvision:resnet50]'` | takes long: `test_models.py` |
| `search.run data.root=/my/images budget.minutes=20` | chooses a study, and has its time: `auto/test_choosing.py` |
| `search.rank` | is started by other commands alone |
| `search.config.reference` | writes the docs' tables: `tests/test_docs.py` compares them |
| `search.run ... --multirun` | three dots are no command; the row of a sweep is run |
| `search.promote resnet_cls --rollback` | needs a champion that has replaced another: `test_champion.py` has one |
| `search.nightly study=resnet_cls,vit_cls` | sends mail: `test_nightly.py` has two studies, and an inbox |
| `search.nightly study=resnet_cls budget.hours=8 --summary` | is the night without, which is run: `test_nightly.py` |
| `search.nightly study=resnet_cls name=pets` | is the other night with other images |
| `search.export resnet_cls --out model.onnx` | takes long: `test_export.py` |
| `search.export resnet_cls --out model.pt2` | takes long: `test_export.py` |
| `search.export resnet_cls --out digits --push` | needs the hub: `test_export.py` has one of its own |
| `search.run study=resnet_cls executor.gpus_per_trial` | as the row below |
| `search.run study=resnet_cls executor.trials_per_device` | as the row below |
| `search.run study=resnet_cls store.url=postgresql` | needs a server: `tests/faults/test_postgres_away.py` has one |
| `search.run study=resnet_cls tracking.uri=http` | needs a server: `tests/faults/test_mlflow_away.py` has one |
| `search.run study=resnet_cls store.url=grpc` | needs a server: `tests/faults/test_proxy.py` has one |
| `search.run study=frcnn_det` | its images are the user's: `test_coco.py` reads such, `test_dense_studies.py` trains |
| `model.name=convnext_tiny` | has its weights on the hub, and takes minutes on this CPU |
| `model.name=[resnet18, convnext_tiny]` | as the row above: `test_model_choice.py` has two models |
| `model.name=torchvision:resnet50` | takes long: `test_models.py` has a smaller one |
| `model.name=transformers:google/vit-base-patch16-224` | needs the hub: `test_zoos.py` has a folder |
| `model.name=module:/path/file.py` | the file is the user's: `test_models.py` has one |
| `model.name=[resnet18, torchvision:resnet50]` | as above |
| `model.weights=torchvision:IMAGENET1K_V2` | needs a download: `test_zoos.py` has such a file |
| `data.root=/my/images budget.minutes=20` | as the command above |
| `model.weights=hub` | needs the hub |
| `model.weights=[hub, embedded]` | needs the hub; without one the README's search, which `.ci/run` runs, has it |
| `model.weights=package:efficientnet-lite0` | is of another model than the row's study: the study quickstart has both |
| `confirm.seeds=3` | counts at the end of a search, which trains nine times then: `test_confirmation.py` |
| `executor.gpus_per_trial=4` | needs four GPUs: `test_rank_group.py` has ranks on a CPU |
| `executor.trials_per_device=4` | starts four processes: `test_pool.py` starts two |
| `executor.trials_per_device=auto` | measures for a while: `test_pool.py` |
| `executor=local` | starts a process: `test_pool.py` |
| `executor.devices=[0,2]` | needs three GPUs |
| `executor=ray` | needs a cluster: `test_ray_cluster.py` has one |
| `study=frcnn_det` | takes long: `test_dense_studies.py` has a lighter detector |
| `store.url=postgresql://...` | needs a server, as above |
| `tracking.uri=http://...` | needs a server, as above |
| `docs/dense.md` | needs a model of masks: `test_dense_studies.py` asks one in the same way |
| `docs/champion.md` | needs Airflow |
| `docs/models.md` | is a file of the user's: `test_models.py` runs it |
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import numpy as np
import optuna
import pytest
from documented import ROOT, asked_for, blocks_of_python, commands, completed, filled, rows_of
from lab import train
from PIL import Image

import trainers.embedded
from search import compose_study
from search.run import main
from search.storage import RUN_ID, open_stored, outcome_of
from strategies import ConfigError

pytestmark = pytest.mark.slow

NOT_RUN = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", __doc__, re.MULTILINE))
TINY = {"device": "cpu", "threads": "1", "probe_sweep": "0", "strategy.epochs": "1"}
TINY |= {f"data.limit_{split}": "48" for split in ("train", "val", "test")}
TIMES = ("budget.trials", "budget.minutes", "budget.hours", "budget.until")
MODEL = {"model.name": "test_resnet", "model.weights": "none"}
# Rows with which the study's own model is trained.
OF_RESNET18 = ("model.weights=embedded", "model.weights=/")

OF_TUTORIAL = {"pets": "resnet_cls", "pets/": "photos/"}


def rows() -> list[list[str]]:
    """The words of each override in the README's second table."""
    return [words for _, how in rows_of(ROOT / "README.md", "what you may want to change") for words in asked_for(how)]


def is_left_out(text: str) -> bool:
    return any(text == begin or text.startswith((f"{begin} ", f"{begin}=", f"{begin}:")) for begin in NOT_RUN)


def key_of(word: str) -> str:
    return word.partition("=")[0]


def tiny(words: Sequence[str], trials: int = 1) -> list[str]:
    """The words of a search, with budgets as small as they can be."""
    kept = [word for word in words if key_of(word) not in TIMES]
    given = {key_of(word) for word in kept}
    is_smallest = "study=unet_seg" not in kept and not any(word.startswith(OF_RESNET18) for word in kept)
    own = TINY | (MODEL if is_smallest else {})
    if any(word.startswith("strategy=") for word in kept):
        # The space's own fit its other fields.
        del own["strategy.epochs"]
    return [*kept, *(f"{key}={value}" for key, value in own.items() if key not in given), f"budget.trials={trials}"]


def sweep() -> list[str]:
    """The README's sweep over two studies, with the first of its seeds, and the keys of what comes after a search."""
    ((*words, multirun),) = [words for words in rows() if "--multirun" in words]
    (after,) = [command for page, command in commands() if page == "after.md"]
    return [*(re.sub(r"^seed=(\d+),.*", r"seed=\1", word) for word in words), *shlex.split(after)[2:], multirun]


@pytest.fixture(scope="module")
def there(new_lab) -> Iterator[Path]:
    """The working folder: two studies that are searched to their ends, and images of a user."""
    folder = new_lab().folder
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for name in ("a.jpg", "photos/a.png", "shots/b.png", "more/deep/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    for kind, values in (("images", 256), ("masks", 2)):
        (folder / kind).mkdir()
        for k in range(12):
            Image.fromarray(rng.integers(0, values, (64, 64), dtype=np.uint8)).save(folder / kind / f"{k}.png")
    with chdir(folder):
        (digits,) = blocks_of_python(ROOT / "docs" / "tutorial.md")
        exec(digits, {})
        for image in (*sorted(Path("pets/digit-0").iterdir())[:12], *sorted(Path("pets/digit-1").iterdir())[:12]):
            (mine := Path("mine") / image.parent.name).mkdir(parents=True, exist_ok=True)
            (mine / image.name).symlink_to(image.absolute())
        assert main(tiny(sweep(), trials=2)) == 0
        yield folder


@pytest.fixture
def places(there) -> dict[str, str]:
    """What a reader fills in, by what the text has there."""
    (found,) = open_stored(["resnet_cls"])
    winner = found.study.user_attrs["winner"]
    run = found.study.best_trial.user_attrs[RUN_ID]
    (weights,) = Path(trainers.embedded.__file__).parent.glob("*.safetensors")
    own = there / "mine.yaml"
    own.write_text("model: {name: test_resnet, weights: none}\nstrategy: {depth: 1, lr: 1e-3}\n")
    return {
        "RUN_ID": run,
        "runs:/id/path": f"runs:/{run}/checkpoint.safetensors",
        "models:/name@alias": winner["model_uri"],
        "models:/m-...": winner["model_uri"],
        "/path/file.safetensors": str(weights),
        "/path/mine.yaml": str(own),
        "/my/images": str(there / "mine"),
        "data.root=/images": f"data.root={there}/images",
        "data.masks=/masks": f"data.masks={there}/masks",
        "$GITHUB_STEP_SUMMARY": "night.md",
    }


def test_the_commands_for_a_study_that_was_searched_do_what_they_say(there, places, capsys):
    run: list[tuple[str, list[str]]] = []
    for command in dict.fromkeys(command for _, command in commands()):
        module, *words = shlex.split(filled(command, places))
        is_search = module == "search.run" and not {"--help", "--list"} & {*words}
        # A command's name alone is spoken of, not called.
        if is_left_out(command) or is_search or not words:
            continue
        words = [OF_TUTORIAL.get(word, word) for word in words if not word.startswith("https://")]
        if module == "search.nightly":
            words = [*tiny(words, trials=2), "budget.hours=8"]
        if (module, words) not in run:
            assert import_module(module).main(words) == 0, command
            assert capsys.readouterr().out, command
            run.append((module, words))
        if "--out" in words:
            assert Path(words[words.index("--out") + 1]).exists(), command
    assert Path("resnet_cls-report.html").is_file()
    names = {"run", "report", "promote", "predict", "compare", "export", "housekeeping", "rerun", "nightly", "models"}
    assert {module for module, _ in run} == {f"search.{name}" for name in names}


def searches(places: dict[str, str]) -> list[list[str]]:
    """The words of each search in commands and rows of the README's second table, and in commands of the docs."""
    found = []
    for command in dict.fromkeys(command for _, command in commands()):
        module, *words = shlex.split(filled(command, places))
        if module == "search.run" and words and not is_left_out(command) and not {"--help", "--list"} & {*words}:
            found.append(words)
    for words in rows():
        if not is_left_out(" ".join(words)) and "--multirun" not in words:
            found.append([filled(word, places) for word in completed(words, Path("mine.yaml"))])
    return found


def together(words: Sequence[str], others: Sequence[str]) -> list[str] | None:
    """The words of two searches as one; None where they exclude each other."""
    added = [word for word in others if word not in words]
    keys, new = [key_of(word) for word in words], [key_of(word) for word in added]
    if any(a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") for a in keys for b in new):
        return None
    # Images of another size or of other classes than a teacher's, and a larger model, are left to themselves.
    if "data.root" in {*keys, *new} or any(word.startswith(OF_RESNET18) for word in (*words, *added)):
        return None
    try:
        compose_study(tiny([*words, *added]))
    except ConfigError:
        return None
    return [*words, *added]


def test_the_searches_of_the_pages_train(there, places):
    groups: list[list[str]] = []
    for words in searches(places):
        for number, group in enumerate(groups):
            if (both := together(group, words)) is not None:
                groups[number] = both
                break
        else:
            if tiny(words) not in map(tiny, groups):
                groups.append(words)
    store = f"sqlite:///{there}/mlruns/optuna.db"
    for number, words in enumerate(groups):
        config = compose_study([*(word for word in tiny(words) if key_of(word) != "name"), f"name=group{number}"])
        train(config)
        trials = optuna.load_study(study_name=f"group{number}", storage=store).trials
        assert [outcome_of(trial) for trial in trials if outcome_of(trial)] == ["complete"], words


def test_the_python_of_the_pages_runs(there):
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    written = {page: blocks for page in pages if (blocks := blocks_of_python(page))}
    # The tutorial's writes the images of a study above.
    run = [page for page in written if not is_left_out(f"docs/{page.name}") and page.stem != "tutorial"]
    assert [page.name for page in run] == ["README.md", "python.md", "studies.md"]
    words = [word for word in tiny(sweep(), trials=2) if word != "--multirun"]
    study = ", ".join(map(repr, ["resnet_cls", *words[1:]]))
    for page in run:
        for block in written[page]:
            exec(re.sub(r'(?<=Study\()"resnet_cls", .*(?=\)$)', lambda _: study, block, flags=re.MULTILINE), {})
    assert Path("resnet_cls-report.html").is_file()


def test_what_is_not_run_is_in_the_text():
    texts = [command for _, command in commands()]
    texts += [" ".join(words) for words in rows()]
    texts += [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if blocks_of_python(page)]
    for begin in NOT_RUN:
        assert any(text == begin or text.startswith(begin) for text in texts), begin
