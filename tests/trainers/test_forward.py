"""Compiled trials end as others do, on code that is made once."""

import logging
from collections.abc import Iterator

import pytest
import torch
from small_training import DATA, DEVICE, pretrained
from torch._dynamo.utils import counters
from torch._inductor import config

from strategies import ConfigError, Strategy
from trainers import ActivationStore, Compiler, Reuse, Trainer
from trainers.forward import Compiled, Forward
from trainers.private_apis import options_of_mode


@pytest.fixture
def compiler(tmp_path) -> Iterator[Compiler]:
    torch._dynamo.reset()
    counters.clear()
    # Else torch starts processes that import it, which takes longer than they save.
    with config.patch(compile_threads=1):
        yield Compiler("default", DEVICE, tmp_path)


def losses(trainer: Trainer) -> list[float]:
    return [result.metrics[name] for result in trainer for name in ("train_loss", "val_loss")]


def both_ways(source, strategy, compiler, reuse=None, seed=0) -> tuple[list[float], list[float], Trainer]:
    compiled = Trainer(source, DATA, strategy, seed, DEVICE, reuse=reuse, compiler=compiler)
    found = losses(compiled)
    return found, losses(Trainer(source, DATA, strategy, seed, DEVICE, reuse=reuse)), compiled


@pytest.mark.slow
def test_trials_of_one_depth_share_code_and_train_as_uncompiled_ones(compiler, tmp_path):
    source = pretrained("test_resnet")
    reuse = Reuse(ActivationStore(tmp_path, 2**30), always=True)
    strategy = Strategy(depth=1, epochs=2, batch_size=16, lr=3e-3)
    found, expected, trainer = both_ways(source, strategy, compiler, reuse)
    assert trainer.reused.known.keys() == {"train", "val"}
    assert trainer.forward.reason == "compile: default"
    assert found == pytest.approx(expected, rel=1e-4)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 2, "one to train with, one to validate with"
    other = strategy.replace(lr=1e-3, optimizer="sgd", layer_decay=0.5, loss="label_smoothing", weight_decay=0.1)
    found, expected, _ = both_ways(source, other, compiler, reuse, seed=1)
    assert found == pytest.approx(expected, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_what_changes_while_a_trial_trains_is_compiled_too(compiler, tmp_path):
    source = pretrained("test_resnet")
    # What is read from the cache need not be compiled.
    reuse = Reuse(ActivationStore(tmp_path, 2**30), always=True)
    # Not by Adam, whose first step makes of a rounding error around zero a step of full length.
    strategy = Strategy(depth=1, epochs=2, batch_size=16, lr=1e-2, optimizer="sgd", unfreeze_epochs=1)
    strategy = strategy.replace(sam_rho=0.05, ema=0.5, dropout=0.5, clip_grad=1.0)
    found, expected, trainer = both_ways(source, strategy, compiler, reuse)
    assert trainer.forward.reason == "compile: default"
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(compiler, caplog):
    source = pretrained("test_resnet")
    strategy = Strategy(depth=1, epochs=2, batch_size=16)

    def opaque(seed: int, compiler: Compiler | None) -> Trainer:
        trainer = Trainer(source, DATA, strategy, seed, DEVICE, compiler=compiler)
        # Whether anything is computed depends on a number, which no graph of tensors can hold.
        trainer.model.register_forward_hook(
            lambda module, inputs, outputs: outputs if outputs.sum() > 0 else 1 * outputs
        )
        return trainer

    with caplog.at_level(logging.WARNING, logger="trainers.forward"):
        for seed in (0, 1):
            trainer = opaque(seed, compiler)
            assert losses(trainer) == losses(opaque(seed, None))
            assert trainer.forward.reason.startswith("no compile in training: Data-dependent branching; no compile in")
    assert len([record for record in caplog.records if "runs without: Data-dependent" in record.message]) == 2
    assert "\n" not in trainer.forward.reason


@pytest.mark.parametrize("field", ["bss", "stochastic_norm"])
def test_what_would_not_be_the_same_compiled_stays_as_it_is(field, compiler):
    strategy = Strategy(depth=1, epochs=1, batch_size=16).replace(**{field: 0.01})
    found, expected, trainer = both_ways(pretrained("test_resnet"), strategy, compiler)
    assert found == expected
    assert field in trainer.forward.reason
    assert trainer.forward.reason.startswith("no compile: ")
    assert counters["stats"]["unique_graphs"] == 0


def test_cuda_graphs_are_refused_without_cuda(tmp_path):
    with pytest.raises(ConfigError, match="compile: 'reduce-overhead' records CUDA graphs, and the device is cpu"):
        Compiler("reduce-overhead", DEVICE, tmp_path)


class Marked(torch.nn.Module):
    def forward(self, images):
        return images * 2


def test_batches_in_parts_run_without_cuda_graphs_whose_gradients_would_be_overwritten(compiler):
    compiler.overwrites = True
    ran = []
    compiler.compiled = lambda function: ran.append(function) or Compiled(function, function)
    forward = Forward(compiler, "marked", Strategy())
    assert forward(Marked(), torch.ones(4, 1), None, 2).equal(torch.full((4, 1), 2.0))
    assert ran == []
    assert forward.reason == "compile: default; no compile of batches in parts"
    forward(Marked(), torch.ones(4, 1))
    assert len(ran) == 1


def test_the_reason_says_where_torch_left_out_cuda_graphs(tmp_path):
    torch._dynamo.reset()
    compiler = Compiler("default", DEVICE, tmp_path)
    # On a CPU torch leaves all of them out, and counts that as on a GPU.
    compiler._options |= options_of_mode("reduce-overhead")
    compiler.mode, compiler.overwrites = "reduce-overhead", True
    forward = Forward(compiler, "marked", Strategy())
    with config.patch(compile_threads=1):
        forward(Marked(), torch.ones(4, 1))
    assert forward.reason == "compile: reduce-overhead; torch left out CUDA graphs in training"
