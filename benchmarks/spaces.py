"""What a larger space is worth: searches of ``small``, of ``full`` and of the rate alone, at equal trial budget.

``python -m benchmarks.spaces`` runs ``study=fashion_mnist`` on 1,000 training images with each space and every seed,
and prints one table of the winners' test scores. Needs Debian's package dataset-fashion-mnist.
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.searches import summary, test_score

SPACES = {
    "small": ["strategy=small"],
    "full": ["strategy=full"],
    "full fine-tuning, lr alone": [
        "strategy={depth: 1.0, lr: {low: 1e-4, high: 1e-2, log: true}, epochs: 5, warmup_epochs: 0.5}",
        "presets={}",
    ],
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=10, help="trials a search")
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--val", type=int, default=500, help="validation images")
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--json", type=Path, help="write every score here")
    parser.add_argument("overrides", nargs="*", help="further overrides of every study, such as data.image_size=32")
    arguments = parser.parse_args()
    sizes = [f"data.limit_train={arguments.train}", f"data.limit_val={arguments.val}"]
    sizes.append(f"data.limit_test={arguments.test}")
    scores: dict[str, list[float]] = {space: [] for space in SPACES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for place, (space, overrides) in enumerate(SPACES.items()):
                asked = [*sizes, *overrides, f"budget.trials={arguments.trials}", *arguments.overrides]
                name = f"space{place}-{seed}"
                scores[space].append(test_score(Path(folder), name, "fashion_mnist", seed, asked))
                print(f"{space}, seed {seed}: {scores[space][-1]:.4f}", flush=True)
    if arguments.json is not None:
        settings = {"trials": arguments.trials, "seeds": arguments.seeds, "train": arguments.train}
        arguments.json.write_text(json.dumps({**settings, "scores": scores}, indent=1))
    table = Table(
        "space",
        "test accuracy",
        *(f"seed {seed}" for seed in arguments.seeds),
        title=f"{arguments.train} training images, {arguments.trials} trials a search",
    )
    for space, found in scores.items():
        table.add_row(space, summary(found), *(f"{score:.4f}" for score in found))
    Console().print(table)


if __name__ == "__main__":
    main()
