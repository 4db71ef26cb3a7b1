"""The result of a search: the winner, its score and its calibration."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strategies import counted

TRIAL, WISE_FT, UNIFORM_SOUP, GREEDY_SOUP = "trial", "wise_ft alpha={:g}", "uniform_soup", "greedy_soup"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that may win.

    Args:
        kind: ``trial``, ``wise_ft alpha=...``, ``uniform_soup`` or ``greedy_soup``.
        trials: Numbers of the trials whose weights were used.
        score: The study's metric on validation.
    """

    kind: str
    trials: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The winner's temperature, and its expected calibration error on the test split without and with it.

    Args:
        temperature: Divides the logits.
        test_ece: The error without it.
        test_ece_calibrated: The error with it.
        low: Lower end of the 95% interval of the true error with it; None in studies of earlier versions.
        high: Its upper end.
    """

    temperature: float
    test_ece: float
    test_ece_calibrated: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The scores with new seeds of a strategy that was among the best.

    Args:
        trial: Number of the trial that tried the strategy in the search.
        searched: That trial's score, which is too good by chance, since it was picked as one of the best.
        scores: A score a new seed; None where training failed.
        mean: Mean of the scores; None if any failed.
        low: Lower end of the mean's 95% interval over seeds, by Student's t; None of one seed, or of equal scores.
        high: Its upper end.
        difference: Mean of the scores less those of the strategy that was best in the search, seed by seed; None of
            that strategy itself, where any training failed, and in studies of earlier versions.
        difference_low: Lower end of the difference's 95% interval over seeds; None as ``low`` is.
        difference_high: Its upper end.
    """

    trial: int
    searched: float
    scores: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True, slots=True)
class Winner:
    """The best trial, or a mixture of weights: its score on the test split, and its model's address.

    Args:
        trial: Number of the best trial.
        metric: The study's metric.
        test_score: The winner's score on the test split.
        test_low: Lower end of the score's 95% interval.
        test_high: Its upper end.
        test_images: Images of the test split.
        model_uri: The winner as an MLflow model.
        kind: ``trial``, ``wise_ft alpha=...``, ``uniform_soup`` or ``greedy_soup``.
        trials: Numbers of the trials whose weights were used.
        candidates: All candidates that were scored on validation, the best trial first.
        calibration: None where the task has no probabilities, or calibration is off.
        asked: The settings and trials that the choice depended on, besides the best trial.
        confirmed: The best strategies with new seeds, best first; empty if none was trained.
        test_groups: Number of groups of the test images; None if they have none.
        test_seen: Images that do not count since the weights or the teacher that the study began with had seen them.
    """

    trial: int
    metric: str
    test_score: float
    test_low: float
    test_high: float
    test_images: int
    model_uri: str
    kind: str = TRIAL
    trials: tuple[int, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    calibration: Calibration | None = None
    asked: dict[str, Any] | None = None
    confirmed: tuple[Confirmed, ...] = ()
    test_groups: int | None = None
    test_seen: int = 0

    @property
    def interval(self) -> str:
        """The test score's interval and the images that it is over, in words."""
        if math.isnan(self.test_low):
            return f"{self._images}, which is too few groups for an interval"
        return f"95% interval {self.test_low:.4f} to {self.test_high:.4f} over {self._images}"

    @property
    def calibration_interval(self) -> str:
        """The interval of the calibration error in words, with a space before; empty where there is none."""
        found = self.calibration
        if found is None or found.low is None or found.high is None or math.isnan(found.low):
            return ""
        return f" (95% interval of the true error {found.low:.4f} to {found.high:.4f} over {self._images})"

    @property
    def _images(self) -> str:
        """The test images in words."""
        images = counted(self.test_images, "image")
        if self.test_groups is not None:
            images += f" of {counted(self.test_groups, 'group')}"
        if self.test_seen:
            images += f", not counting {self.test_seen:,} that its first weights or its teacher were made with"
        return images

    def rows(self) -> dict[str, str]:
        """The winner in words, by what they are about."""
        kind = "" if self.kind == TRIAL else f", {self.kind} of trials {', '.join(map(str, self.trials))}"
        return {
            "winner": f"trial {self.trial}{kind}",
            f"test {self.metric.replace('_', ' ')}": f"{self.test_score:.4f} ({self.interval})",
            "model": self.model_uri,
        }

    def _repr_html_(self) -> str:
        """The winner in a notebook."""
        return as_html(self.rows())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Winner":
        """A winner as it was stored, by this version or an earlier one."""
        read = {**values, "trials": tuple(values.get("trials", ()))}
        read["candidates"] = tuple(
            Candidate(one["kind"], tuple(one["trials"]), one["score"]) for one in values.get("candidates", ())
        )
        read["confirmed"] = tuple(
            Confirmed(**{**one, "scores": tuple(one["scores"])}) for one in values.get("confirmed", ())
        )
        read["calibration"] = Calibration(**values["calibration"]) if values.get("calibration") else None
        return cls(**read)


def as_html(rows: Mapping[str, str]) -> str:
    """A table of two columns for a notebook."""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table>{''.join(cells)}</table>"
