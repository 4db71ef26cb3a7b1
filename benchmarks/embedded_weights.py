"""What the embedded ResNet-18 is worth: whole searches with it and from random weights, at equal budget.

``python -m benchmarks.embedded_weights`` runs ``resnet_cls`` on 500 Fashion-MNIST images, and a linear probe on 2,000
of them and on scikit-learn's digits, each with both weights and with every seed, and prints one table of test scores.
Needs Debian's package dataset-fashion-mnist.
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.searches import summary, test_score

FASHION = [
    "data.source=torchvision",
    "data.dataset=FashionMNIST",
    "data.root=/usr/share/datasets/fashion-mnist",
    "data.image_size=64",
    "data.limit_val=1000",
    "data.limit_test=5000",
]
PROBE = ["strategy.depth=0", "strategy.lr=0.03", "strategy.loss=cross_entropy", "presets={}", "budget.trials=1"]
CASES = {
    "search, 500 Fashion-MNIST images": [*FASHION, "data.limit_train=500"],
    "linear probe, 2,000 Fashion-MNIST images": [*FASHION, "data.limit_train=2000", *PROBE],
    "linear probe, digits": PROBE,
}
WEIGHTS = ("embedded", "none")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=12, help="trials a search")
    parser.add_argument("--json", type=Path, help="write every score here")
    arguments = parser.parse_args()
    scores: dict[str, dict[str, list[float]]] = {case: {weights: [] for weights in WEIGHTS} for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for place, (case, overrides) in enumerate(CASES.items()):
            for weights in WEIGHTS:
                for seed in arguments.seeds:
                    name = f"case{place}-{weights}-{seed}"
                    # A case's own budget comes last and so holds.
                    # Without the sweep of probes, so that all that is spent is trials.
                    asked = [f"budget.trials={arguments.trials}", "probe_sweep=0", *overrides]
                    scores[case][weights].append(
                        test_score(Path(folder), name, "resnet_cls", seed, [f"model.weights={weights}", *asked])
                    )
                    print(f"{case}, {weights}, seed {seed}: {scores[case][weights][-1]:.4f}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"trials": arguments.trials, "seeds": arguments.seeds, "scores": scores}, indent=1)
        )
    table = Table(
        "case",
        "embedded",
        "random",
        "difference",
        title=f"Test accuracy, {arguments.trials} trials a search, {len(arguments.seeds)} seeds",
    )
    for case, found in scores.items():
        gains = [a - b for a, b in zip(found["embedded"], found["none"], strict=True)]
        table.add_row(case, summary(found["embedded"]), summary(found["none"]), summary(gains))
    Console().print(table)


if __name__ == "__main__":
    main()
