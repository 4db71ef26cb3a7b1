"""The page about a study: what it says, and that it needs nothing else."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from search.report import main
from search.reporting import build, rows_of, summarize
from search.reporting.figures import by_depth, history
from search.storage import DEPTH, SPARED, STRATEGY, StoredStudy, open_stored
from strategies import Strategy

SPACE = {
    "depth": {"low": 0.0, "high": 1.0},
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss": {"choices": ["cross_entropy", "label_smoothing"]},
    "epochs": 2,
    "batch_size": 32,
}
PRESETS = {"probe": {"depth": 0, "lr": 3e-3}, "half": {"depth": 0.5, "lr": 1e-3}, "broken": {"lr": 1e-2, "depth": 1.0}}


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.figures: dict[str, dict] = {}
        self.texts: list[str] = []
        self._figure: str | None = None
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        self._figure = found.get("data-plot")
        self._is_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._figure, self._is_code = None, False

    def handle_data(self, data):
        if self._figure is not None:
            self.figures[self._figure] = json.loads(data)
        elif not self._is_code:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def searched(new_lab):
    """A study with a winner."""
    lab = new_lab(strategy=SPACE, presets=PRESETS, description="Digits <small> & grey", checkpoints={"keep": 2})
    assert lab.run("budget.trials=6") == 0
    return lab


def page_of(lab, folder) -> Page:
    file = folder / "page.html"
    assert main([str(lab.file), "--out", str(file)]) == 0
    return Page(file.read_text(encoding="utf-8"))


def test_the_answer_comes_first_with_its_interval_and_the_presets(searched, tmp_path, capsys):
    page = page_of(searched, tmp_path)
    assert (tmp_path / "page.html").as_uri() in capsys.readouterr().out
    winner, best = searched.study.user_attrs["winner"], searched.study.best_trial
    assert f"Test accuracy {winner['test_score']:.4f}" in page.text
    assert f"(95% interval {winner['test_low']:.4f} to {winner['test_high']:.4f} over " in page.text
    assert f"Validation score, which the choice is based on: {best.value:.4f}" in page.text
    assert searched.runs()[best.number].info.run_name.partition(" · ")[2] in page.text
    assert re.search(r"(probe|half): 0\.\d{4}", page.text)
    assert "Digits <small> & grey" in page.text


def test_nothing_is_loaded_from_anywhere(searched, tmp_path):
    page = page_of(searched, tmp_path)
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_every_figure_has_its_place_and_the_trials(searched, tmp_path):
    page = page_of(searched, tmp_path)
    assert set(page.figures) <= set(page.ids)
    expected = {"depth", "parallel", "history", "pareto", "curves", "confusion", "reliability", "time"}
    assert {name.removeprefix("plot-") for name in page.figures} == expected
    assert "Which fields mattered: cannot be told from" in page.text
    assert "Which layers? That cannot be told from" in page.text
    for name in ("depth", "history", "pareto", "curves"):
        assert page.figures[f"plot-{name}"]["layout"]["yaxis"]["autorangeoptions"] == {"clipmin": 0, "clipmax": 1}
    history = page.figures["plot-history"]["data"][0]
    complete = [trial for trial in searched.trials() if trial.state == TrialState.COMPLETE]
    assert len(history["x"]["bdata"] if "bdata" in history["x"] else history["x"]) >= len(complete)
    counts = page.figures["plot-confusion"]["data"][0]["text"]
    assert sum(map(sum, counts)) == 64


def test_the_strategy_can_be_pasted_into_a_study_file(searched, tmp_path):
    page = page_of(searched, tmp_path)
    (pasted,) = re.findall(r"presets:\n(?:  .*\n)+", "".join(page.texts))[:1]
    preset = yaml.safe_load(pasted)["presets"]["winner"]
    best = searched.study.best_trial
    expected = Strategy.from_dict(best.user_attrs[STRATEGY] | {"depth": best.user_attrs[DEPTH]})
    assert Strategy.from_dict(preset) == expected


def test_what_reuse_has_spared_is_counted_and_said(new_lab, tmp_path):
    learns = {"depth": 1, "lr": 1e-3, "epochs": 4, "batch_size": 32}
    lab = new_lab(model={"name": "resnet18", "weights": "embedded"}, strategy=learns)
    assert lab.run("budget.trials=1") == 0
    (trial,) = lab.trials()
    assert 0 < trial.user_attrs[SPARED] < 100
    page = page_of(lab, tmp_path)
    assert "Caching the features of frozen blocks saved about" in page.text
    bars = page.figures["plot-time"]["data"]
    assert [bar["name"] for bar in bars] == ["complete", "saved"]


def test_a_study_without_a_winner_says_so(new_lab, tmp_path):
    diverging = {"depth": 1.0, "lr": 100.0, "optimizer": "sgd", "loss": "mse", "epochs": 2, "batch_size": 8}
    lab = new_lab(strategy=diverging, metric="loss")
    assert lab.run("budget.trials=2") == 1
    page = page_of(lab, tmp_path)
    assert "No trial has completed yet" in page.text
    assert page.text.count("training loss became nan in epoch") == 2


def test_a_study_of_2000_trials_makes_a_page_below_10_mb(searched):
    known = open_stored([str(searched.file)])[0]
    template = next(trial for trial in known.study.trials if trial.state == TrialState.COMPLETE)
    # A database takes minutes for so many.
    many = optuna.create_study(study_name="many", direction="maximize")
    for name, value in known.study.user_attrs.items():
        many.set_user_attr(name, value)
    for number in range(2000):
        params = {**template.params, "lr": 1e-4 + number * 4e-6}
        many.add_trial(
            create_trial(
                params=params,
                distributions=template.distributions,
                value=0.5 + number / 5000,
                user_attrs=template.user_attrs | {STRATEGY: template.user_attrs[STRATEGY] | {"lr": params["lr"]}},
                intermediate_values={step: 0.4 + step / 100 for step in range(1, 11)},
            )
        )
    page = build(summarize(StoredStudy(many, searched.mlflow_uri)))
    assert len(page.encode()) < 10e6
    assert "of 2,000 trials" in Page(page).text
    assert "Which fields mattered (share of the order of 2,000 trials" in Page(page).text
    assert Page(page).figures["plot-importances"]["data"][0]["y"] == ["lr"]
    assert len(rows_of(StoredStudy(many, searched.mlflow_uri), top=None)) == 2000


def test_a_class_named_as_a_link_is_a_name(searched):
    summary = summarize(open_stored([str(searched.file)])[0])
    assert summary.evidence is not None
    name = '<a href="https://example.org">cat</a>'
    renamed = replace(summary, evidence=summary.evidence | {"classes": [name, *summary.evidence["classes"][1:]]})
    figures = Page(build(renamed)).figures
    plot = figures["plot-confusion"]["data"][0]
    # plotly.js reads names as HTML.
    assert plot["x"][0] == plot["y"][0] == '&lt;a href="https://example.org"&gt;cat&lt;/a&gt;'
    assert "<br>" in figures["plot-history"]["data"][0]["hovertemplate"]


def test_a_page_that_cannot_be_written_is_refused(searched, tmp_path, capsys):
    assert main([str(searched.file), "--out", str(tmp_path / "none" / "page.html")]) == 2
    assert "--out: " in capsys.readouterr().err


def test_the_interval_of_a_depths_mean_ends_where_scores_do_and_few_trials_have_none(searched):
    scores = [(1, 1.0)] * 5 + [(1, 0.4)] + [(2, 0.5), (2, 0.6), (2, 0.7), (2, 0.8), (2, 0.9)]
    row = {"outcome": "complete", "trial": 0, "name": ""}
    rows = [row | {"depth_blocks": depth, "score": score} for depth, score in scores]
    means = by_depth(replace(summarize(open_stored([str(searched.file)])[0]), rows=rows)).data[1]
    assert means.name == "mean, 95% interval over trials"
    # 0.9 plus and minus 2.571 * 0.1.
    assert means.error_y.array == (pytest.approx(0.1), None)
    assert means.error_y.arrayminus == (pytest.approx(0.2571, abs=1e-3), None)


def test_pictures_of_masks_have_a_legend_of_the_colours_of_classes(searched):
    plain = summarize(open_stored([str(searched.file)])[0])
    colours = {"sky": "transparent", "<cat>": "#0072b2", "(not counted)": "#808080"}
    page = build(replace(plain, pictures=[b"picture"], legend=colours))
    (legend,) = re.findall(r'<ul class="legend".*?</ul>', page, re.DOTALL)
    assert re.findall(r"background: (.*?)\"></span>(.*?)</li>", legend) == [
        ("transparent", "sky"),
        ("#0072b2", "&lt;cat&gt;"),
        ("#808080", "(not counted)"),
    ]
    assert 'class="legend"' not in build(plain)


def test_ticks_of_few_trials_are_whole_numbers_and_metrics_are_words(searched):
    summary = summarize(open_stored([str(searched.file)])[0])
    assert history(summary).layout.xaxis.dtick == 1
    assert history(replace(summary, metric="mean_iou")).layout.yaxis.title.text == "validation mean iou"
    alone = history(replace(summary, rows=summary.complete[:1], curves=[])).layout.xaxis.range
    assert alone[1] - alone[0] == 1
