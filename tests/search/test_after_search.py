"""What a user does when a search has ended: every printed command, predictions, the study from Python."""

import io
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import search.export
import search.predict
from search import Study
from search.reporting import disk_lines, next_commands, next_steps, print_results
from search.storage import RUN_ID
from search.tracking import VIEW_TAG
from strategies import ConfigError


@pytest.fixture(scope="module")
def searched(new_lab):
    """A study with a winner, what its search printed, and photos in a folder beside it."""
    lab = new_lab(presets={"one": {"depth": 1.0, "lr": 1e-3}})
    with redirect_stdout(io.StringIO()) as printed:
        assert lab.run("budget.trials=2") == 0
    lab.printed = printed.getvalue()
    photos = lab.folder / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    for name, one in zip(("a.png", "b c.png", "d.jpg"), pixels, strict=True):
        Image.fromarray(one).save(photos / name)
    return lab


@pytest.fixture
def there(searched, monkeypatch) -> Path:
    """The study's folder, as the working folder."""
    monkeypatch.chdir(searched.folder)
    return searched.folder


def test_the_commands_that_a_search_prints_last_do_what_they_say(searched, there, capsys):
    before, commands = searched.printed.split("Next:\n")
    lines = commands.splitlines()
    assert before.splitlines()[-1].startswith("Disk:   ")
    assert [shlex.split(line, comments=True)[2] for line in lines] == [
        "search.report",
        "search.ui",
        "search.promote",
        "search.predict",
    ]
    winner = searched.study.user_attrs["winner"]["model_uri"]
    said = {}
    for line in (lines[3], lines[0], lines[2], lines[3]):
        _, _, command, *words = shlex.split(line, comments=True)
        assert import_module(command).main(words) == 0, line
        said[line] = [*said.get(line, []), capsys.readouterr()]
    assert (there / "lab-report.html").is_file()
    assert "Champion: version 1 of lab" in said[lines[2]][0].out
    # The winner answers, and after its promotion the champion.
    first, second = said[lines[3]]
    assert [f"lab: {winner}\n", "lab: models:/lab@champion\n"] == [first.err, second.err]
    assert first.out == second.out
    assert list(pd.read_csv(io.StringIO(first.out))["image"]) == ["photos/a.png", "photos/b c.png", "photos/d.jpg"]


def test_a_study_in_the_stores_by_default_is_called_by_its_name_alone(searched, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = searched.config()
    plain = config.model_copy(update={"store": type(config.store)(), "tracking": type(config.tracking)()})
    assert next_commands(plain)[0] == "python -m search.report lab           # one page about this search"
    assert f"search.report lab store.url={searched.optuna_url} tracking.uri=sqlite" in next_commands(config)[0]


def test_much_disk_space_comes_with_a_way_to_free_it(searched, monkeypatch):
    (line,) = disk_lines(searched.config())
    assert re.fullmatch(r"Disk:   \d+\.\d MiB of models and .*, \d+\.\d MiB of caches .*", line)
    monkeypatch.setattr(next_steps, "_MUCH", 2**10)
    assert "python -m search.housekeeping --days" in disk_lines(searched.config())[1]


def test_a_sweep_ends_with_a_table_of_its_studies(searched, capsys):
    print_results([searched.config(), searched.config("name=refused")])
    title, *rows = capsys.readouterr().out.splitlines()
    assert title == "Winners of 2 studies"
    winner = searched.study.user_attrs["winner"]
    (row,) = [row for row in rows if row.split()[:1] == ["lab"]]
    assert row.split()[:3] == ["lab", "2", "accuracy"]
    assert f"{winner['test_score']:.4f}" in row
    assert [row.split() for row in rows if "refused" in row] == [["refused", "not", "searched"]]


@pytest.fixture
def photos_url(searched) -> Iterator[str]:
    """Address of a server of the photos."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Into the terminal goes nothing."""

    handler = partial(Quiet, directory=searched.folder / "photos")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_of_urls_are_answered_and_one_that_is_gone_is_named(searched, there, photos_url, capsys):
    words = ["lab", f"store.url={searched.optuna_url}", f"tracking.uri={searched.mlflow_uri}"]
    good, gone = f"{photos_url}/a.png", f"{photos_url}/gone.png"
    assert search.predict.main([*words, good, "photos/a.png"]) == 0
    of_url, of_file = pd.read_csv(io.StringIO(capsys.readouterr().out)).to_dict("records")
    assert (of_url.pop("image"), of_file.pop("image")) == (good, "photos/a.png")
    assert of_url == of_file
    assert search.predict.main([*words, good, gone]) == 2
    assert f"{gone}: cannot be fetched: 404" in capsys.readouterr().err
    assert search.predict.main([*words, good, gone, "--skip-bad"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert search.predict.main(words) == 2
    assert "no images are named" in capsys.readouterr().err


def test_asking_for_a_model_makes_no_store_and_names_the_one_that_was_asked(searched, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    image = str(searched.folder / "photos" / "a.png")
    for model in ("models:/lab@champion", "runs:/0/model", "lab"):
        assert search.predict.main([model, image]) == 2
        assert "mlruns/" in capsys.readouterr().err
        assert search.export.main([model, "--out", "folder"]) == 2
        assert "mlruns/" in capsys.readouterr().err
    stored = searched.client.get_logged_model(searched.study.user_attrs["winner"]["model_uri"].removeprefix("models:/"))
    assert search.predict.main([stored.artifact_location.removeprefix("file://"), image]) == 0
    assert list(tmp_path.iterdir()) == []
    assert search.predict.main(["models:/gone/1", image, "--tracking-uri", searched.mlflow_uri]) == 2
    assert f"models:/gone/1: this model cannot be loaded from {searched.mlflow_uri}: " in capsys.readouterr().err


def test_a_study_answers_for_whatever_names_or_holds_images(searched, there):
    study = Study(searched.file)
    assert list(study.predict("photos/d.jpg")["image"]) == ["photos/d.jpg"]
    found = study.predict([Path("photos"), (there / "photos" / "a.png").read_bytes(), np.zeros((8, 8, 3), np.uint8)])
    assert list(found["image"]) == ["photos/a.png", "photos/b c.png", "photos/d.jpg", "1", "2"]
    first, *_, of_bytes, _ = found.drop(columns="image").to_dict("records")
    assert first == of_bytes
    with pytest.raises(ConfigError, match="no such file, folder or pattern"):
        study.predict("gone.jpg")


def test_a_study_and_its_winner_show_themselves_in_a_notebook(searched, there):
    study = Study(searched.file)
    shown = study._repr_html_()
    assert "<th>trials</th><td>2 complete</td>" in shown
    score = f"{study.winner.test_score:.4f} (95% interval"
    assert score in shown
    assert score in study.winner._repr_html_()
    assert "<td>none yet; run() begins</td>" in Study(searched.file, name="unsearched")._repr_html_()
    assert study.report() == Path("lab-report.html")
    assert study.report().stat().st_size > 1_000_000


def test_the_report_begins_with_model_images_classes_and_day(searched, tmp_path):
    page = Study(searched.file).report(tmp_path / "page.html").read_text(encoding="utf-8")
    (about,) = re.findall(r'id="about">(.*?)</p>', page)
    images = "64 images to train on, 64 images to choose by, 64 images to test on"
    day = f"{searched.trials()[0].datetime_start:%Y-%m-%d}"
    assert about.split(" · ")[:4] == ["test_resnet", "digits", images, "10 classes"]
    assert about.split(" · ")[4].startswith(day)


def test_pages_of_other_programs_begin_with_the_score_and_the_winner(searched):
    assert searched.study.metric_names == ["accuracy"]
    for run in searched.runs().values():
        assert next(iter(run.data.metrics)) == "val_accuracy"
    winner = searched.trials()[searched.study.user_attrs["winner"]["trial"]]
    tag = searched.client.get_experiment_by_name("lab").tags[VIEW_TAG]
    assert f'runsPinned\\": [\\"{winner.user_attrs[RUN_ID]}\\"]' in tag
