"""Trainings that share a CPU, each with a thread a core: as torch waits, and as Unfreeze has it wait.

``python -m benchmarks.sharing`` trains alone and then in two processes at once, either way, and counts training steps.
On a fair CPU two at once make as many steps as one alone. Processes are forked, so it needs a system that can.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import REPOSITORY, machine, write_json

# What each side imports before torch, which this module imports.
SIDES = {"as torch waits": "", "as Unfreeze waits": "import search; "}
COUNT = "from benchmarks.sharing import count; count({model!r}, {size}, {seconds})"
TOGETHER = {"alone": 1, "two at once": 2}
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
        code = COUNT.format(model=model, size=options.image_size, seconds=options.seconds)
        result["models"][model] = {side: steps_of(first + code) for side, first in SIDES.items()}
        write_json(result, options.json)
    show(result)


def steps_of(code: str) -> dict[str, float]:
    """Steps a second, alone and of two processes at once, which a process that runs this code has counted."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    counted = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
    )
    return dict(json.loads(counted.stdout))


def count(model: str, size: int, seconds: float) -> None:
    """Train in copies of this process, which save the imports, and print the steps a second that they make together."""
    # This process has not computed anything: each copy starts OpenMP's threads itself.
    fork = multiprocessing.get_context("fork")
    counted = {}
    for name, processes in TOGETHER.items():
        with ProcessPoolExecutor(processes, fork) as pool:
            trained = [pool.submit(train, model, size, seconds) for _ in range(processes)]
            counted[name] = sum(steps.result() for steps in trained)
    print(json.dumps(counted))


def train(model: str, size: int, seconds: float) -> float:
    """Train on random images for some seconds; returns how many steps of 64 images were made in each."""
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
    return steps / (time.perf_counter() - began)


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
