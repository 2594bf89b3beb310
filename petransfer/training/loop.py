"""The one training loop: fine-tuning and pretraining, adapters and all weights, one process and many."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from petransfer.errors import Interrupted, RunError, UserError
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.batch_feed import Feed
from petransfer.training.batches import Batch, BatchSource, Tensors
from petransfer.training.cpu.cpu_step import Lean
from petransfer.training.distributed.collectives import agree, sum_gradients
from petransfer.training.distributed.fsdp import LockStep, clip, is_split
from petransfer.training.execution import Execution, refuse_small_batch
from petransfer.training.losses import token_loss
from petransfer.training.metrics_file import MetricsFile
from petransfer.training.out_of_memory import (
    PACKED,
    checkpoint_activations,
    default_micro_batch,
    default_token_budget,
    is_out_of_memory,
)
from petransfer.training.self_checks import STEPS as SELF_CHECKED
from petransfer.training.self_checks import SelfChecks
from petransfer.training.state import Progress, load_state, peek_progress, save_state, trained_tensors

LossFunction = Callable[[torch.nn.Module, Tensors], torch.Tensor]


@dataclass
class Hooks:
    """What the loop calls while it runs."""

    progress: Callable[[int, float, float], None] = lambda step, loss, rate: None
    should_stop: Callable[[], bool] = lambda: False
    at_step: dict[int, Callable[[], dict[str, Any]]] = field(default_factory=dict)


def learning_rate_factor(spec: TrainSpec, step: int) -> float:
    """The share of the peak rate that step `step` (from 0) takes: a linear rise, then the schedule down to `final`."""
    rise = max(1, round(spec.warmup * spec.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, spec.steps - rise)
    if spec.schedule == "constant":
        return 1.0
    left = 1 - done if spec.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return spec.final + (1 - spec.final) * left


def make_optimizer(model: torch.nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW over the trained tensors; under `rms` each is a group with a rate and decay that follow its size."""
    parameters = list(trained_tensors(model).values())
    groups: list[dict[str, Any]]
    if spec.rate_scaling == "rms":
        sizes = [max(float(value.detach().float().square().mean().sqrt()), 1e-3) for value in parameters]
        groups = [
            {"params": [value], "scale": size * _factor(value), "weight_decay": spec.weight_decay / size}
            for value, size in zip(parameters, sizes, strict=True)
        ]
    else:
        factors = dict.fromkeys(map(_factor, parameters))
        groups = [
            {
                "params": [value for value in parameters if _factor(value) == factor],
                "scale": factor,
                "weight_decay": spec.weight_decay,
            }
            for factor in factors
        ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, fused=True)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    eight_bit = PagedAdamW8bit if spec.optimizer == "paged-adamw-8bit" and torch.cuda.is_available() else AdamW8bit
    optimizer: torch.optim.Optimizer = eight_bit(groups, lr=spec.learning_rate, betas=spec.betas)
    return optimizer


def _factor(parameter: torch.nn.Parameter) -> float:
    """What a method multiplies the rate of one of its tensors by; 1 where it says nothing."""
    return float(getattr(parameter, "rate_factor", 1.0))


class Loop:
    """Trains `model` for `spec.steps` steps, saving and resuming in `folder`.

    The batch of a step is the recipe's whatever happens: running out of memory halves the micro-batch only. The loss
    is divided by the target tokens of the whole batch over all processes, so the cut does not show in the gradient.
    Processes share out the batch; the first one writes. They hold the same tensors and sum their gradients, or parts of
    the tensors, whose gradients are summed on the way back (see `sharded`).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        source: BatchSource,
        spec: TrainSpec,
        accelerator: Accelerator,
        folder: Path,
        *,
        identity: str,
        seed: int,
        execution: Execution,
        hooks: Hooks,
        loss_function: LossFunction = token_loss,
    ) -> None:
        self.spec, self.source, self.accelerator, self.folder = spec, source, accelerator, folder
        self.identity, self.seed, self.execution, self.hooks = identity, seed, execution, hooks
        self.model = model
        if execution.checkpointing:
            checkpoint_activations(model)
        plain = loss_function is token_loss and not execution.compile and accelerator.mixed_precision == "no"
        lean = Lean(model) if plain else None
        self.lean = lean if lean and lean.usable else None
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.progress = peek_progress(folder / "state", identity) or Progress(
            micro_batch=execution.micro_batch or self._micro_batch(),
            threads=execution.threads,
            # processes that hold parts of the tensors make as many passes each, however long their examples are
            token_budget=0 if execution.micro_batch or is_split(model) else default_token_budget(accelerator.device),
        )
        if execution.checkpointing:  # of any part of the run
            self.progress.notes["checkpointing"] = True
        if self.progress.threads:  # rounding depends on the thread count, so a resumed run keeps it
            torch.set_num_threads(self.progress.threads)
        self.optimizer = make_optimizer(model, spec)
        if self.progress.step:
            load_state(folder / "state", self.progress, model, self.optimizer)
        self.alone = accelerator.num_processes == 1
        self.feed = Feed(source, spec.steps, accelerator)
        # reading a number waits until the card has done all that it was given
        self.reads_seldom = accelerator.device.type == "cuda"
        self._unread: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._mean = self._norm = math.nan
        self.lock_step = LockStep(model) if is_split(model) else None
        self._told_to_stop = self._told_to_save = False
        self._saved_at = time.monotonic()
        if not self.alone:
            self._refuse_a_split_start()
        if accelerator.is_main_process:
            self.metrics.cut(self.progress.metrics_bytes)
        # for its mixed precision alone: processes sum their gradients once all have them
        self.wrapped: torch.nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
        self.loss_function = torch.compile(loss_function, dynamic=False) if execution.compile else loss_function
        self.checks = SelfChecks(model)

    def run(self) -> Progress:
        """Trains to the end.

        Raises:
            Interrupted: `should_stop` said so; the state is saved.
            RunError: a loss or gradient is not finite, a self-check failed, or one example alone is out of memory.
        """
        with contextlib.closing(self.feed):
            return self._run()

    def _run(self) -> Progress:
        self.model.train()
        self._saved_at = started = time.monotonic()
        before = self.progress.seconds
        while self.progress.step < self.spec.steps:
            step = self.progress.step
            loss, norm = self._step_with_less_memory(step)
            self.note(step, loss, norm, before + time.monotonic() - started)
            if self.alone:
                self._told_to_stop, self._told_to_save = self.hooks.should_stop(), self._save_is_due()
            if self._told_to_stop or self._told_to_save:
                self.save()
                self._saved_at = time.monotonic()
            if self._told_to_stop:
                raise Interrupted
        return self.progress

    def note(self, step: int, loss: torch.Tensor, norm: torch.Tensor, seconds: float) -> None:
        """Counts a step that was taken; raises RunError where a self-check failed, or as `read`."""
        self.progress.step = step + 1
        self.progress.seconds = seconds
        self._unread.append((step, loss, norm))
        if not self.reads_seldom or step < SELF_CHECKED or self._line_is_due(step + 1):
            self.read()
        self.checks.after_step(step)
        self._log(step)

    def read(self) -> None:
        """Takes in the losses and norms of the steps since the last time.

        Raises:
            RunError: one is not finite, and neither are the weights since then; no state of them was written.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.stack([value.double() for _, *pair in unread for value in pair]).tolist()
        for (step, _, _), loss, norm in zip(unread, values[::2], values[1::2], strict=True):
            for what, value in (("loss", loss), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise RunError(
                        f"the {what} is {value} at step {step + 1}; lower the learning rate or take bits: 32"
                    )
            self.progress.loss_sum += loss
            self.progress.loss_steps += 1
            self._norm = norm
        self._mean = self.progress.loss_sum / self.progress.loss_steps

    def _micro_batch(self) -> int:
        if self.lean is not None and self.lean.packs:
            return min(self.spec.batch_size, PACKED)
        return default_micro_batch(self.spec.batch_size, self.accelerator.device)

    def save(self) -> None:
        """Writes the state of this moment; one process writes. Raises RunError as `read`."""
        self.read()
        writes = self.accelerator.is_main_process
        if writes:
            self.progress.metrics_bytes = self.metrics.size()
        if writes or self.lock_step:
            folder = self.folder / "state"
            save_state(folder, self.progress, self.model, self.optimizer, self.identity, writes=writes)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.execution.save_every

    def _line_is_due(self, done: int) -> bool:
        return done % self.execution.log_every == 0 or done == self.spec.steps or done in self.hooks.at_step

    def _log(self, step: int) -> None:
        """A line of metrics where one is due. The hook hears of every step, with the mean loss that was last read."""
        done = step + 1
        due = done % self.execution.log_every == 0 or done == self.spec.steps
        extra: dict[str, Any] = {}
        if done in self.hooks.at_step:
            self.feed.rest()
            extra = self.hooks.at_step[done]()
        rate = self.spec.learning_rate * learning_rate_factor(self.spec, step)
        self.hooks.progress(done, self._mean, self.progress.seconds)
        if due or extra:
            line = {"step": done, "loss": self._mean, "learning_rate": rate, "grad_norm": self._norm, **extra}
            if self.accelerator.is_main_process:
                self.metrics.append({**line, "seconds": round(self.progress.seconds, 3)})
            self.progress.loss_sum, self.progress.loss_steps = 0.0, 0

    def _step_with_less_memory(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            try:
                return self._step(step)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.progress.micro_batch <= 1:
                    raise RunError(
                        "out of memory with one example at a time; take fewer bits or a smaller model"
                    ) from error
            self.optimizer.zero_grad(set_to_none=True)
            self.progress.micro_batch = (self.progress.micro_batch + 1) // 2
            self.progress.token_budget = (self.progress.token_budget + 1) // 2
            self.progress.out_of_memory += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step; returns the loss per target token and the gradient's norm before clipping."""
        accelerator = self.accelerator
        batch, cuts = self.feed.take(step, self.progress.micro_batch, self.progress.token_budget)
        torch.manual_seed(dropout_seed(self.seed, step, accelerator.process_index))
        short = False
        try:
            total = self.accumulate(batch, cuts)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if self.alone or not is_out_of_memory(error):
                raise
            short, total = True, torch.zeros((), device=accelerator.device)
        if not self.alone:
            self._join(short)
        return self.update(step, total, batch.target_tokens)

    def accumulate(self, batch: Batch, cuts: Sequence[Tensors]) -> torch.Tensor:
        """Leaves this process's gradient in the trained tensors; returns its summed loss."""
        if self.lean is None or self.loss_function is not token_loss:
            return self._add_up(batch, cuts, self.loss_function)
        with self.lean.step() as loss_function:
            return self._add_up(batch, cuts, loss_function)

    def _add_up(self, batch: Batch, cuts: Sequence[Tensors], loss_function: LossFunction) -> torch.Tensor:
        def one(cut: Tensors, weight: float = 1.0) -> torch.Tensor:
            micro = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in cut.items()}
            summed = loss_function(self.wrapped, micro)
            self.accelerator.backward(summed * (weight / batch.target_tokens))
            return summed.detach() * weight

        if self.lock_step:
            most = -(-self.spec.batch_size // self.accelerator.num_processes)  # examples of one process
            return self.lock_step.add_up(cuts, -(-most // self.progress.micro_batch), one)
        total = torch.zeros((), device=self.accelerator.device)
        for cut in cuts:
            total += one(cut)
        return total

    def _join(self, short: bool) -> None:
        """Sums the processes' gradients where nothing did, and lets all of them know what one of them was told.

        Raises:
            MemoryError: in every process, where one was short of memory.
        """
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        present = [] if self.lock_step else [value.grad is not None for value in parameters]
        save = self.accelerator.is_main_process and self._save_is_due()
        told = agree([short, self.hooks.should_stop(), save, *present], self.accelerator.device)
        shorts, stops, saves, *counts = told
        self._told_to_stop, self._told_to_save = stops > 0, saves > 0
        if shorts:
            raise MemoryError("out of memory in one of the processes")
        if not self.lock_step:
            sum_gradients(parameters, counts)

    def _refuse_a_split_start(self) -> None:
        """Raises UserError where the batch has too few examples, or the processes do not see the same folder."""
        processes = self.accelerator.num_processes
        refuse_small_batch(self.spec.batch_size, processes)
        step = self.progress.step
        if agree([step], self.accelerator.device) != [step * processes]:
            raise UserError(f"the processes do not see the same files in {self.folder}; take an --out that all can see")

    def update(self, step: int, total: torch.Tensor, target_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips and applies the gradient. total: the batch's summed loss. Gives the mean loss and the norm.

        Both are for `note`, on the device, which need not have come so far.
        """
        loss = self.accelerator.reduce(total, "sum").double() / target_tokens
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = clip(parameters, self.spec.max_grad_norm or math.inf)
        self.checks.before_update(step)
        factor = learning_rate_factor(self.spec, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.learning_rate * factor * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm


def dropout_seed(seed: int, step: int, process: int) -> int:
    """What a process draws its dropout of a step from."""
    return (seed * 1_000_003 + step) * 1_009 + process
