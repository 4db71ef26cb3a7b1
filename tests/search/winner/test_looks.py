"""How sure a challenger has to be, and which challengers count."""

import shutil

import numpy as np
import pytest
from mlflow import MlflowClient

from search.winner.looks import LOOKS, count_look, look_of


def test_all_looks_together_spend_no_more_than_alpha_and_none_is_free():
    looks = [look_of(number, 0.05) for number in range(1, 2001)]
    spent = np.cumsum([look.alpha for look in looks])
    assert [look.left for look in looks] == pytest.approx(0.05 - spent)
    assert (np.diff([look.alpha for look in looks]) < 0).all()
    assert 0 < looks[-1].left < 0.001


def test_a_look_is_counted_once_for_each_challenger_and_set_of_images(empty_mlflow, tmp_path):
    client = MlflowClient(tracking_uri=f"sqlite:///{shutil.copy(empty_mlflow, tmp_path / 'mlflow.db')}")
    client.create_registered_model("model")
    for _ in range(4):
        client.create_model_version("model", str(tmp_path))
    some, others = np.arange(50, dtype=np.uint64), np.arange(60, dtype=np.uint64)

    def number(champion: int, challenger: int, images=some) -> int:
        versions = (client.get_model_version("model", str(version)) for version in (champion, challenger))
        return count_look(client, "model", *versions, images, 0.05).number

    assert [number(1, 2), number(1, 2), number(1, 3), number(1, 2, some[::-1])] == [1, 1, 2, 1]
    # Other images are another chance to look good.
    assert number(1, 2, others) == 3
    assert client.get_model_version("model", "1").tags[LOOKS] == "3"
    # A new champion begins with a full account; the old one's stays, should it be rolled back to.
    assert [number(3, 4), number(1, 4)] == [1, 4]
