"""Trainings that share a CPU, each with a thread a core: as torch waits, and as Unfreeze has it wait.

``python -m benchmarks.sharing`` trains alone and then in two processes at once, either way, and counts training steps.
On a fair CPU two at once make as many steps as one alone.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_json
from benchmarks.searches import REPOSITORY

# What each side imports before torch; this module imports torch before it imports search.
SIDES = {"as torch waits": "", "as Unfreeze waits": "import search; "}
TRAIN = "from benchmarks.sharing import train; train({model!r}, {size}, {seconds})"
# Those that would decide instead.
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "tf_efficientnet_lite0"], help="of timm")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each training")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"machine": machine(), "models": {}}
    for model in options.models:
        code = TRAIN.format(model=model, size=options.image_size, seconds=options.seconds)
        result["models"][model] = {
            side: {"alone": steps_of(first + code, 1), "two at once": steps_of(first + code, 2)}
            for side, first in SIDES.items()
        }
        write_json(result, options.json)
    show(result)


def steps_of(code: str, processes: int) -> float:
    """Steps a second that processes make together when they run this code at once."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
        )
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def train(model: str, size: int, seconds: float) -> None:
    """Train on random images for some seconds, and print how many steps of 64 images were made in each."""
    torch.manual_seed(0)
    network: Any = timm.create_model(model, num_classes=10).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images = torch.randn(64, 3, size, size).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (64,))
    # The first makes buffers.
    steps, began = -1, time.perf_counter()
    while steps < 1 or time.perf_counter() - began < seconds:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        began = time.perf_counter() if steps == 0 else began
    print(steps / (time.perf_counter() - began))


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"Steps a second, {result['machine']['cores']} cores")
    table.add_column("model")
    table.add_column("")
    for column in ("alone", "two at once, together", "share of alone"):
        table.add_column(column, justify="right")
    for model, sides in result["models"].items():
        for side, steps in sides.items():
            share = steps["two at once"] / steps["alone"]
            table.add_row(model, side, f"{steps['alone']:.2f}", f"{steps['two at once']:.2f}", f"{share:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
