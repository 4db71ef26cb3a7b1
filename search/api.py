"""A study from Python: everything that the commands do."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.config import StudyConfig, configure
from strategies import ConfigError, Strategy

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from search.storage import StoredStudy
    from search.winner import Verdict, Winner

# Images that the winner gets at once.
_BATCH = 64


class Study:
    """A search over strategies for fine-tuning a pretrained model, and its results.

    It is configured as by ``python -m search.run study=...``. All results are in the stores, so that another process,
    or the command line, can resume the same study.

    Args:
        study: A study's name or file, or the content of a study file.
        *overrides: Words of the command line, such as ``"strategy.lr.high=0.01"``; they are applied last.
        **changes: Values by key: ``seed=1``, ``budget={"trials": 30}``. The given keys of a section replace those in
            the study file; a ``strategy``, or ``presets``, replace the whole section.

    Raises:
        ConfigError: The configuration is wrong; a line for each problem.

    Examples:
        >>> study = Study("resnet_cls", data={"limit_train": 128}, budget={"trials": 4})
        >>> study.config.budget.trials
        4
        >>> study.config.name
        'resnet_cls'
    """

    def __init__(self, study: str | Path | Mapping[str, Any], *overrides: str, **changes: Any) -> None:
        self.config: StudyConfig = configure(study, overrides, changes)

    def __repr__(self) -> str:
        return f"Study({self.config.name!r}, {self.config.task}, {self.config.model.name})"

    def _repr_html_(self) -> str:
        """The study in a notebook: what it searches, its trials so far, and its winner."""
        from search.storage import ENDINGS, WINNER, outcome_of
        from search.winner import Winner, as_html

        shown = {"study": str(self.config.name), "task": self.config.task, "model": ", ".join(self.config.model.names)}
        try:
            study = self.optuna
        except ConfigError:
            return as_html(shown | {"trials": "none yet; run() begins"})
        outcomes = [outcome_of(trial) for trial in study.get_trials(deepcopy=False)]
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in ENDINGS if one in outcomes)
        winner = study.user_attrs.get(WINNER)
        rows = shown | {"trials": counts or "none yet"}
        return as_html(rows | (Winner.from_dict(winner).rows() if winner is not None else {}))

    def run(self) -> "Winner":
        """Search, or resume the search, until the budget is spent; Ctrl-C loses nothing.

        Returns:
            The winner, with its score on the test split.

        Raises:
            UnfreezeError: The configuration, data or weights cannot be used, or no trial completed.
            KeyboardInterrupt: After the running trial was queued again.
        """
        began = time.monotonic()
        from search.study import run_study

        run_study(self.config, began)
        return self.winner

    def trials(self, everything: bool = False) -> "pd.DataFrame":
        """A row a trial, the best first: outcome, score, seconds, every field of its strategy, its run in MLflow.

        Args:
            everything: Whether pruned, killed and failed trials are included.

        Raises:
            ConfigError: The study has not begun.
        """
        import pandas as pd

        from search.reporting import rows_of

        return pd.DataFrame(rows_of(self._stored(), top=None, everything=everything))

    @property
    def optuna(self) -> "optuna.Study":
        """The study in Optuna.

        Raises:
            ConfigError: The study has not begun.
        """
        return self._stored().study

    @property
    def winner(self) -> "Winner":
        """The winner.

        Raises:
            ConfigError: No search of the study has ended.
        """
        from search.storage import WINNER
        from search.winner import Winner

        winner = self.optuna.user_attrs.get(WINNER)
        if winner is None:
            raise ConfigError(f"study {self.config.name!r} has no winner yet; run() has to end first")
        return Winner.from_dict(winner)

    @property
    def strategy(self) -> Strategy:
        """The winner's strategy.

        Raises:
            ConfigError: No search of the study has ended.
        """
        from search.storage import STRATEGY

        return Strategy.from_dict(self.optuna.trials[self.winner.trial].user_attrs[STRATEGY])

    def predict(self, images: Any) -> "pd.DataFrame":
        """The winner's answers, a row an image; the column ``image`` names it.

        Args:
            images: An image or a list of them: a path (of a file or folder, or a pattern), a URL, encoded bytes, or a
                uint8 array (H, W, C). An image without a name is called by its place in the list.

        Raises:
            ConfigError: No search of the study has ended, or there is no such image.
            DataError: An image cannot be read.
        """
        import pandas as pd

        from search.winner import answers_of, load, named_images

        # Before the model is loaded, which takes longer.
        named = named_images(images)
        model = load(self.winner.model_uri, self.config.tracking.uri)
        tables = list(answers_of(model, named, _BATCH, False, []))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(model.predict([]))

    def report(self, out: Path | str | None = None) -> Path:
        """Write the report of the study, a page that needs no other file, and return its path.

        Args:
            out: The file; None for ``NAME-report.html`` in the working folder.

        Raises:
            ConfigError: The study has not begun.
        """
        from search.reporting import build, summarize

        path = Path(out if out is not None else f"{self.config.name}-report.html")
        path.write_text(build(summarize(self._stored())), encoding="utf-8")
        return path

    def promote(self) -> "Verdict":
        """Register the winner as the challenger, and make it the champion if it is better beyond chance.

        Raises:
            ConfigError: No search of the study has ended, or the registry cannot be used.
        """
        from search.storage import reachable
        from search.winner import propose
        from trainers import choose_device

        device = choose_device(self.config.device, self.config.precision, self.config.deterministic)
        return propose(self.config, self.winner.model_uri, None, reachable(self.config.tracking.uri), device)

    def rollback(self) -> "Verdict":
        """Make the version champion that the present champion replaced.

        Raises:
            ConfigError: There is no champion, or it replaced no other.
        """
        from search.storage import reachable
        from search.winner import rollback

        return rollback(self.config, reachable(self.config.tracking.uri))

    def export(self, out: Path | str) -> Path:
        """Write the winner as ``.onnx``, as ``.pt2`` (torch.export) or as a folder that timm loads; see docs/using.md.

        Raises:
            ConfigError: No search of the study has ended, or the winner cannot be written in this form.
            TrialError: What was written gives other answers than the model.
        """
        from search.winner import export_model

        export_model(self.winner.model_uri, Path(out), self.config.tracking.uri)
        return Path(out)

    def _stored(self) -> "StoredStudy":
        from search.storage import open_one

        assert self.config.name is not None, "composition names every study"
        return open_one(self.config.store.url, self.config.tracking.uri, self.config.name)
