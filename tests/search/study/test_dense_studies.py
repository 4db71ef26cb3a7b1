"""Studies of masks and boxes: the same command, from scenes to a model that answers with masks or boxes."""

import base64
import io

import mlflow
import numpy as np
import pytest
from lab import SMALL
from PIL import Image

from search import compose_study
from search.storage import WINNER

SCENES = {"source": "scenes", "image_size": 64, "limit_train": 24, "limit_val": 12, "limit_test": 12}
LIGHTEST = {"segmentation": "fcn", "detection": "fcos"}


def dense(new_lab, task, **changes):
    model = {**SMALL["model"], "decoder": LIGHTEST[task]}
    strategy = {**SMALL["strategy"], "batch_size": 8}
    return new_lab(task=task, model=model, data=SCENES, strategy=strategy, **changes)


@pytest.fixture(scope="module", params=["segmentation", "detection"])
def finished(request, new_lab):
    lab = dense(new_lab, request.param)
    assert lab.run() == 0
    return request.param, lab


def test_a_study_runs_to_a_winner_that_was_scored_on_the_test_split(finished):
    task, lab = finished
    assert lab.outcomes() == ["complete"] * 2
    winner = lab.study.user_attrs[WINNER]
    assert winner["metric"] == {"segmentation": "mean_iou", "detection": "map"}[task]
    assert winner["test_low"] <= winner["test_score"] <= winner["test_high"]


def test_the_winner_has_a_score_for_each_class(finished):
    task, lab = finished
    metrics = lab.parent().data.metrics
    name = {"segmentation": "test_iou", "detection": "test_ap"}[task]
    assert any(key.startswith(f"{name}/") for key in metrics)


def test_the_best_trials_pictures_lie_in_its_run_and_in_the_studys(finished):
    _, lab = finished
    best = lab.study.best_trial.number
    for run in (lab.runs()[best], lab.parent()):
        files = [entry.path for entry in lab.client.list_artifacts(run.info.run_id, "pictures")]
        assert len(files) == 6


def test_the_logged_model_answers_in_the_images_own_pixels(finished, tmp_path):
    task, lab = finished
    mlflow.set_tracking_uri(lab.mlflow_uri)
    model = mlflow.pyfunc.load_model(lab.study.user_attrs[WINNER]["model_uri"])
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 120, 3), dtype=np.uint8))
    wide.save(tmp_path / "wide.png")
    answers = model.predict([tmp_path / "wide.png", np.asarray(wide)])
    assert len(answers) == 2
    if task == "segmentation":
        first, second = (Image.open(io.BytesIO(base64.b64decode(text))) for text in answers["mask"])
        assert first.size == (120, 50)
        assert np.asarray(first).max() < 11
        assert (np.asarray(first) == np.asarray(second)).all()
    else:
        assert list(answers) == ["boxes", "labels", "scores"]
        for boxes, labels, scores in answers.itertuples(index=False):
            assert len(boxes) == len(labels) == len(scores)
            assert all(-1 <= left <= right <= 121 and -36 <= top <= bottom <= 86 for left, top, right, bottom in boxes)


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["study=unet_seg"], "scenes"),
        (["study=frcnn_det"], "scenes"),
        (["study=unet_seg", "data.root=/images", "data.masks=/masks"], "masks"),
        (["study=unet_seg", "data.annotations=/a.json"], "coco"),
        (["study=frcnn_det", "data.annotations=/a.json", "data.root=/images"], "coco"),
        (["study=frcnn_det", "data.root=/VOC2012"], "voc"),
    ],
)
def test_the_source_follows_from_the_keys_and_is_the_scenes_without_any(words, source):
    assert compose_study(words).data.source == source


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.decoder=unett"], "model.decoder: 'unett' is not one of unet, fpn, deeplabv3plus, fcn; did you mean"),
        (
            ["strategy.loss=label_smoothing"],
            "strategy.loss: 'label_smoothing' cannot train task segmentation; expected",
        ),
        (["strategy.mixup=0.2"], "strategy.mixup: 0.2 cannot be used: masks and boxes cannot be mixed"),
        (["metric=map"], "metric: 'map' is not one of mean_iou, dice, pixel_accuracy, loss"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_before_any_work(new_lab, capsys, overrides, message):
    lab = dense(new_lab, "segmentation")
    assert lab.run(*overrides) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_has_no_decoder(lab, capsys):
    assert lab.run("model.decoder=unet") == 2
    expected = "model.decoder: 'unet' would not be used by task classification; leave it out"
    assert expected in capsys.readouterr().err


def test_a_study_goes_on_only_with_the_decoder_that_it_began_with(new_lab, capsys):
    lab = dense(new_lab, "segmentation")
    lab.train("budget.trials=1")
    assert lab.run("model.decoder=fpn") == 2
    assert "model.decoder: fcn -> fpn" in capsys.readouterr().err
