"""Forward passes compiled by torch.compile; trials of a process share the code, and later processes find it on disk.

A compiled function takes the model as an argument, so that its tensors are inputs of the code and not part of it: the
next trial that freezes the same blocks, on batches of the same size, uses existing code.
"""

import logging
import os
from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from strategies import ConfigError, Strategy
from trainers.device import Device
from trainers.private_apis import (
    allow_recompiles,
    compile_errors,
    is_dynamo_error,
    options_of_mode,
    skipped_graphs,
)
from trainers.reuse import Cut, Rows

logger = logging.getLogger(__name__)

# Functions whose code is kept; with a continuous dropout rate in the space, every trial has new functions.
_MAX_FUNCTIONS = 64
# Kinds of code that one function may have: by size of batches and images, by what is frozen, by BatchNorm's modes.
# torch's own 8 are fewer than the steps in which a model can be unfrozen.
_MAX_VARIANTS = 64


class Compiler:
    """Compiles each function once, and remembers which functions cannot be compiled.

    If the frozen part of a model is not run at all (:mod:`trainers.reuse`), only the rest is compiled. Dropout draws
    the same numbers as without compiling, so that scores agree up to rounding.

    Args:
        mode: ``default``, or ``reduce-overhead``: as CUDA graphs.
        device: Where the functions run.
        folder: The folder of the code for other processes, unless ``TORCHINDUCTOR_CACHE_DIR`` names another.

    Raises:
        ConfigError: The device has no CUDA graphs, and the mode needs them.
    """

    def __init__(self, mode: str, device: Device, folder: Path) -> None:
        self.mode = mode
        #: Whether the next pass overwrites an output.
        self.overwrites = mode == "reduce-overhead"
        if self.overwrites and device.torch.type != "cuda":
            raise ConfigError(
                f"compile: {mode!r} records CUDA graphs, and the device is {device.torch.type}; choose default or off"
            )
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))
        # Backward passes compiled by themselves might fail in ``backward()``, where there is nothing to fall back to.
        allow_recompiles(_MAX_VARIANTS)
        self._options = {"fallback_random": True, **options_of_mode(mode)}
        self._numbers = count()
        self.compiled = lru_cache(_MAX_FUNCTIONS)(self._compiled)
        self.whole = lru_cache(_MAX_FUNCTIONS)(self._whole)

    def _compiled(self, function: Callable[..., Any]) -> "Compiled":
        """The function compiled; the same object for the same function."""
        return Compiled(torch.compile(function, fullgraph=True, options=self._options), function)

    def _whole(self, kind: Hashable) -> Callable[[nn.Module, Tensor], Any]:
        """A function that calls a model on images, the same for each kind of model: kinds share no code."""
        # torch keeps code, and the record of changing sizes, by a function's code object and its name.
        code = _call.__code__.replace(co_name=f"{_call.__name__}_{next(self._numbers)}")
        return FunctionType(code, _call.__globals__, code.co_name)


class Compiled:
    """A compiled function, or the original function if it cannot be compiled.

    Args:
        compiled: The result of torch.compile.
        function: The original function.
    """

    def __init__(self, compiled: Callable[..., Any], function: Callable[..., Any]) -> None:
        self._compiled = compiled
        self._function = function
        #: Why the original function runs; None while the compiled function runs.
        self.failure: str | None = None
        #: Whether torch left out the CUDA graphs of some code, for example because it writes to its inputs.
        self.lacks_graphs = False

    def __call__(self, model: nn.Module, *values: Any) -> Any:
        """The function's result for a model and values."""
        if self.failure is None:
            skipped = skipped_graphs()
            try:
                found = self._compiled(model, *values)
                self.lacks_graphs = self.lacks_graphs or skipped_graphs() > skipped
                return found
            except compile_errors() as error:
                # Nothing has been computed yet: compiling fails before the first call, or before a new kind of call.
                self.failure = _reason(error)
                logger.warning("compile: %s runs without: %s", type(model).__name__, self.failure)
        return self._function(model, *values)


class Forward:
    """The forward passes of one trial, compiled if asked for and possible.

    Args:
        compiler: The compiler that the process's trials share; None compiles nothing.
        name: The model's name.
        strategy: In canonical form.
    """

    def __init__(self, compiler: Compiler | None, name: str, strategy: Strategy) -> None:
        self._compiler = compiler
        # The compiled code includes these rates.
        self._kind = name, strategy.dropout, strategy.drop_path
        self._refusal = _refusal(strategy)
        self._used: dict[str, Compiled] = {}
        self._was_in_parts = False

    @property
    def reason(self) -> str:
        """What is compiled, or the reason why nothing is, in one line."""
        if self._compiler is None:
            return "no compile: off"
        if self._refusal is not None:
            return f"no compile: {self._refusal}"
        failures = {part: used.failure for part, used in self._used.items() if used.failure is not None}
        if failures:
            return "; ".join(f"no compile in {part}: {failure}" for part, failure in failures.items())
        notes = [f"compile: {self._compiler.mode}"]
        if self._compiler.overwrites:
            lacking = [part for part, used in self._used.items() if used.lacks_graphs]
            notes += [f"torch left out CUDA graphs in {part}" for part in lacking]
        if self._was_in_parts:
            notes.append("no compile of batches in parts")
        return "; ".join(notes)

    def __call__(self, model: nn.Module, inputs: Tensor | Rows, cut: Cut | None = None, parts: int = 1) -> Any:
        """The model's outputs, with its modules in their present modes.

        Args:
            model: The classifier.
            inputs: Images (B, C, H, W) as the model takes them, or the outputs of its frozen part for them.
            cut: Where the frozen part ends; needed for its outputs.
            parts: In how many passes the gradients of a training batch are added up.

        Returns:
            Logits (B, num_classes) for a classifier.
        """
        compiler = self._compiler
        if compiler is None or self._refusal is not None:
            run: Callable[..., Any] = _run
        elif parts > 1 and compiler.overwrites:
            # A graph writes its gradients where those of the part before still are.
            run, self._was_in_parts = _run, True
        else:
            run = self._run
        if isinstance(inputs, Tensor):
            whole = _call if compiler is None else compiler.whole((*self._kind, model.training))
            return run(whole, model, inputs)
        assert cut is not None, "rows come from a cut"
        return cut.suffix(model, inputs, run)

    def _run(self, function: Callable[..., Any], model: nn.Module, *values: Any) -> Any:
        assert self._compiler is not None, "else nothing is compiled"
        compiled = self._compiler.compiled(function)
        self._used["training" if model.training else "validation"] = compiled
        if not self._compiler.overwrites:
            return compiled(model, *values)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        outputs = compiled(model, *values)
        # In training the gradient is computed before the next pass, but validation collects outputs of several passes.
        return outputs if model.training else fx.node.map_aggregate(outputs, _cloned)


def _run(function: Callable[..., Any], model: nn.Module, *values: Any) -> Any:
    return function(model, *values)


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _call(model: nn.Module, images: Tensor) -> Any:
    return model(images)


def _refusal(strategy: Strategy) -> str | None:
    """The reason why a strategy's forward passes must not be compiled; None if they may be."""
    if any((strategy.delta, strategy.bss, strategy.co_tuning)):
        return "delta, bss and co_tuning listen to what the model computes within"
    if strategy.stochastic_norm > 0:
        # In the backward pass torch 2.14 reads the moving statistics again, which have been updated by then: gradients
        # were 10% off and more.
        return "the gradients of stochastic_norm would be wrong"
    return None


def _reason(error: Exception) -> str:
    """An error in one line: the compiler's own error, without the text that torch puts around it."""
    inner = getattr(error, "inner_exception", None) or error
    first = next((line.strip() for line in str(inner).splitlines() if line.strip()), "")
    return first if is_dynamo_error(inner) and first else f"{type(inner).__name__}: {first}"


#: Calls models without compiling.
EAGER = Forward(None, "", Strategy())
