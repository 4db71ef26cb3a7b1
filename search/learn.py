"""Fit the learnt policy anew, from tables of learning curves and from a store: ``python -m search.learn``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from search.command_line import HelpFormatter, check_output, exit_code, read_words, say, set_up_logging, unwritable
from search.config import spelled
from search.processes import importing
from strategies import ConfigError

_USAGE = """\
A table is a Parquet file with a row a fine-tuning: data_set, images, classes, model, the fields of the strategy by
Quick-Tune's names, and the lists accuracy and seconds, an item an epoch. benchmarks.collect writes such tables.

Studies of a store count as one data set each. A finished study of the same store is told to the policy anyway, without
this command."""


def learn(tables: Sequence[Path], store: str | None, metric: str, out: Path) -> int:
    """Fit the policy's numbers and write them.

    Args:
        tables: Parquet files.
        store: URL of Optuna's storage, whose studies are learnt from too.
        metric: Metric of those studies.
        out: The file to write.

    Raises:
        ConfigError: A table or the store cannot be read, there are too few data sets, or the file cannot be written.
    """
    check_output("--out", out)
    # Only here: they take seconds to import.
    with importing():
        from search.scheduling import as_curves, fit_prior, read_tables
    try:
        curves = read_tables(tables)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"--table cannot be read as learning curves: {error}") from error
    names = ", ".join(one.name for one in curves)
    if store is not None:
        with importing():
            from search.storage import OPTUNA_TABLE, absolute_sqlite, check_begun, open_storage
            from search.study import told_of_store
        check_begun("--store", store, OPTUNA_TABLE)
        told = told_of_store(open_storage(absolute_sqlite(store)), metric)
        curves += [as_curves(f"study {place}", study) for place, study in enumerate(told, 1)]
        names += f", {len(told)} studies"
    try:
        prior = fit_prior(curves, f"{sum(len(one.scores) for one in curves)} fine-tunings of {names}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        prior.save(out)
    except OSError as error:
        raise unwritable("--out", out, error) from error
    say(f"{prior.about}: written to {out}, {out.stat().st_size:,} bytes")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=spelled("learn"),
        description=__doc__,
        epilog=_USAGE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="Parquet files of learning curves")
    parser.add_argument("--store", help="URL of Optuna's storage whose studies are learnt from too")
    parser.add_argument("--metric", default="accuracy", help="metric of the store's studies")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    options = read_words(parser, arguments)
    set_up_logging()
    return exit_code(lambda: learn(options.table, options.store, options.metric, options.out), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
