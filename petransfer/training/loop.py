"""The training loop for adapters, full fine-tuning and pretraining, in one process or several."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from petransfer.errors import Interrupted, RunError, UserError
from petransfer.models.thread_turns import yield_to_waiting_thread
from petransfer.recipe.run_spec import TrainSpec
from petransfer.training.autocast import autocast_forward
from petransfer.training.batch_feed import BatchFeed
from petransfer.training.batches import Batch, BatchSource, Tensors
from petransfer.training.cpu.cpu_step import CpuFastPath
from petransfer.training.dev_evaluation import DevEvaluation
from petransfer.training.distributed import Process, clip_gradients, processes_of
from petransfer.training.execution import Execution, refuse_small_batch
from petransfer.training.graphs import GraphedStep, NotCaptured
from petransfer.training.hooks import Hooks
from petransfer.training.initial_progress import new_progress, resumed_progress
from petransfer.training.losses import LossFunction, token_loss
from petransfer.training.metrics_file import MetricsFile
from petransfer.training.optimizer import make_optimizer, schedule_factor, set_learning_rate
from petransfer.training.out_of_memory import (
    OutOfMemory,
    enable_gradient_checkpointing,
    raising_out_of_memory,
    release_cached_memory,
)
from petransfer.training.self_checks import STEPS as CHECKED_STEPS
from petransfer.training.self_checks import SelfChecks, refuse_not_finite
from petransfer.training.smaller_batches import with_smaller_micro_batches
from petransfer.training.state import Progress, load_state, save_state

# The value of the note `cuda_graphs` for a run that began with CUDA graphs and continued without them.
ENDED = "ended"

logger = logging.getLogger(__name__)


class Loop:
    """Trains a model for `spec.steps` steps or until early stopping, and resumes from the state in `folder`.

    The batch of a step never changes: running out of memory only halves the micro-batch. The loss is divided by the
    number of target tokens in the whole batch, over all processes.

    Args:
        identity: text that identifies the run. A state with another text is ignored.
        seed: seed of dropout.
        autocast: whether the forward pass is computed in bf16 with fp32 weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        source: BatchSource,
        spec: TrainSpec,
        process: Process,
        folder: Path,
        *,
        identity: str,
        seed: int,
        execution: Execution,
        hooks: Hooks,
        loss_function: LossFunction = token_loss,
        autocast: bool = False,
    ) -> None:
        self.spec, self.source, self.process, self.folder = spec, source, process, folder
        self.identity, self.seed, self.execution, self.hooks = identity, seed, execution, hooks
        self.model = model
        if execution.checkpointing:
            enable_gradient_checkpointing(model)
        if autocast:
            autocast_forward(model, process.device)
        self.processes = processes_of(model, process)
        self.fast_path = _usable_fast_path(model) if loss_function is token_loss and not execution.compile else None
        folder.mkdir(parents=True, exist_ok=True)  # created only here, so that `refuse_moved` can detect its removal
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.progress = self._initial_progress()
        if self.progress.threads:  # a resumed run keeps its number of threads, because rounding depends on it
            torch.set_num_threads(self.progress.threads)
        self.optimizer = make_optimizer(model, spec)
        if self.progress.step:
            load_state(self.state_folder, self.progress, model, self.optimizer)
        self.dev = DevEvaluation(
            model, spec, self.progress, self.processes, hooks, self.state_folder, writes=process.leads
        )
        # Reading a loss from a GPU waits until the GPU has finished all queued work, so it is not done every step.
        self.reads_every_step = process.device.type != "cuda"
        self.feed = BatchFeed(source, spec.steps, process)
        self._unread: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._mean_loss = self._norm = math.nan
        self._stop_requested = self._save_requested = self._out_of_time = False
        self._saved_at = time.monotonic()
        if process.count > 1:
            self._check_processes()
        if process.leads:
            self.metrics.cut(self.progress.metrics_bytes)
        self.loss_function = torch.compile(loss_function, dynamic=False) if execution.compile else loss_function
        self.graphed: GraphedStep | None = None
        if self._can_use_graphs():
            self.use_graphs()
        self.checks = SelfChecks(model, self.processes)

    def _initial_progress(self) -> Progress:
        """Return the progress of the newest training state or, without a state, of a new run."""
        shards, device = self.processes.shards_tensors, self.process.device
        progress = resumed_progress(self.state_folder, self.identity, self.execution, shards)
        if progress is None:
            skips_padding = self.fast_path is not None and self.fast_path.skips_padding
            progress = new_progress(self.spec, self.execution, device, shards, skips_padding)
        if self.execution.checkpointing:  # recorded even if only a part of the run uses gradient checkpointing
            progress.notes["checkpointing"] = True
        return progress

    def _can_use_graphs(self) -> bool:
        """Whether CUDA graphs are requested and can be used for the remaining steps."""
        ended = self.finished or self.progress.notes.get("cuda_graphs") == ENDED
        return self.execution.cuda_graphs and self.process.device.type == "cuda" and not ended

    def use_graphs(self) -> None:
        """Use CUDA graphs for the next steps. On a CPU, the batches are only padded as for CUDA graphs."""
        max_norm = self.spec.max_grad_norm
        self.graphed = GraphedStep(self.model, self.optimizer, self.process.device, self.loss_function, max_norm)
        self.feed.change = self.graphed.pad

    def _end_graphs(self) -> None:
        if self.graphed is not None:
            self.graphed.close()
            self.graphed, self.feed.change = None, None

    @property
    def state_folder(self) -> Path:
        """Folder of the training states and the best weights."""
        return self.folder / "state"

    @property
    def finished(self) -> bool:
        """Whether all steps are done or early stopping ended the run."""
        return self.progress.step >= self.spec.steps or self.dev.ended

    def run(self) -> Progress:
        """Train to the end and return the progress. With early stopping, the model then has its best weights.

        Raises:
            Interrupted: `should_stop` returned True. The state is saved.
            RunError: a loss or gradient is not finite, a self-check failed, or one example does not fit in memory.
        """
        try:
            with contextlib.closing(self.feed):
                self._train()
        finally:
            self._end_graphs()
        self.dev.restore_best()
        return self.progress

    def _train(self) -> None:
        self.model.train()
        self._saved_at = started = time.monotonic()
        before = self.progress.seconds
        while not self.finished:
            step = self.progress.step
            loss, norm = self.take_step_within_memory(step)
            self.record_step(step, loss, norm, before + time.monotonic() - started)
            if not self.processes.shared:
                self._stop_requested, self._save_requested = self.hooks.should_stop(), self._save_is_due()
            if self._stop_requested or self._save_requested:
                self.save()
                self._saved_at = time.monotonic()
            if self._stop_requested:
                raise Interrupted
            yield_to_waiting_thread()

    def record_step(self, step: int, loss: torch.Tensor, norm: torch.Tensor, seconds: float) -> None:
        """Record a finished step. Evaluate on dev and write a line of metrics when due.

        Args:
            step: the step, counted from 0.
            loss: mean loss in nats per target token, as a tensor on the device.
            norm: gradient's norm before clipping, as a tensor on the device.
            seconds: training time of the run.

        Raises:
            RunError: a self-check failed, or a loss or norm is not finite.
        """
        self.progress.step = step + 1
        self.progress.seconds = seconds
        if not self.processes.shared:
            self._out_of_time = self.dev.is_out_of_time(seconds)
        self._unread.append((step, loss, norm))
        if self.reads_every_step or step < CHECKED_STEPS or self._line_is_due(step + 1):
            self.read_losses()
        self.checks.after_step(step, self.optimizer)
        self._log(step)

    def read_losses(self) -> None:
        """Read the unread losses and gradient norms from the device, and update the mean loss.

        Raises:
            RunError: a loss or norm is not finite.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        values = torch.stack([value.double() for _, *pair in unread for value in pair]).tolist()
        for (step, _, _), loss, norm in zip(unread, values[::2], values[1::2], strict=True):
            # Broken weights are never saved, because `save` calls this method first.
            refuse_not_finite(loss, norm, step, self.model, self.checks.not_finite_at_start)
            self.progress.loss_sum += loss
            self.progress.loss_steps += 1
            self._norm = norm
        self._mean_loss = self.progress.loss_sum / self.progress.loss_steps

    def save(self, *, stack: Sequence[str] = (), keep_earlier: bool = False) -> None:
        """Save the current training state. Only the first process writes files.

        Args:
            stack: run ids of all runs of the stack, this run included. Empty for a run that is trained alone.
            keep_earlier: whether the states of earlier steps are kept.

        Raises:
            RunError: a loss is not finite, or the state cannot be written.
        """
        self.read_losses()
        writes = self.process.leads
        if writes:
            self.progress.metrics_bytes = self.metrics.size()
        if stack:
            self.progress.notes["stack"] = sorted(stack)
        if writes or self.processes.shards_tensors:
            save_state(
                self.state_folder, self.progress, self.model, self.optimizer, self.identity, keep_earlier, writes
            )
        self.dev.remove_other_bests()

    def use_less_memory(self) -> None:
        """Halve the micro-batch and the token budget, and drop the gradients of the failed step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.micro_batch = (self.progress.micro_batch + 1) // 2
        self.progress.token_budget = (self.progress.token_budget + 1) // 2
        self.progress.out_of_memory += 1

    def take_step_within_memory(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimiser step. Halve the micro-batch and repeat the step each time memory runs out.

        Raises:
            RunError: memory ran out with a micro-batch of one example.
        """
        if self.graphed is not None:
            try:
                with raising_out_of_memory():
                    return self.take_step(step)
            except (NotCaptured, OutOfMemory) as error:
                self._continue_without_graphs(error)
        message = "out of memory with one example at a time; use fewer bits or a smaller model"
        return with_smaller_micro_batches(lambda: self.take_step(step), [self], message)

    def _continue_without_graphs(self, error: Exception) -> None:
        logger.warning(f"training continues without CUDA graphs: {error}")
        self._end_graphs()
        self.progress.notes["cuda_graphs"] = ENDED
        release_cached_memory()

    def take_step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimiser step. Return the loss per target token and the gradient's norm before clipping.

        Raises:
            OutOfMemory: a process ran out of memory. All processes raise this error, and no weight has changed.
        """
        batch, cuts = self.feed.take(step, self.progress.micro_batch, self.progress.token_budget)
        torch.manual_seed(dropout_seed(self.seed, step, self.process.index))
        failed = False
        try:
            with raising_out_of_memory():
                total = self.accumulate(batch, cuts)
        except OutOfMemory:
            if not self.processes.shared:
                raise
            failed, total = True, torch.zeros((), device=self.process.device)
        if self.processes.shared:
            self._exchange(failed)
        return self.update(step, total, batch.target_tokens)

    def accumulate(self, batch: Batch, cuts: Sequence[Tensors]) -> torch.Tensor:
        """Add the gradient of this process's part of a batch to `grad` of the trained tensors.

        Returns:
            The loss in nats, summed over the target tokens of `batch`.
        """
        if self.graphed is not None:
            self.progress.notes["cuda_graphs"] = True  # recorded because rounding depends on the padding
            return self.graphed.accumulate(batch, cuts)
        if self.fast_path is None or self.loss_function is not token_loss:
            return self._run_micro_batches(batch, cuts, self.loss_function)
        with self.fast_path.step() as loss_function:
            return self._run_micro_batches(batch, cuts, loss_function)

    def update(self, step: int, total: torch.Tensor, target_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and apply the gradient. Return the mean loss and the gradient's norm, as tensors on the device.

        Args:
            total: summed loss of this process, from `accumulate`.
            target_tokens: number of target tokens in the whole batch, over all processes.

        Raises:
            RunError: the optimiser ran out of memory.
        """
        loss = self.processes.sum(total).double() / target_tokens
        # A smaller micro-batch would not help, and a second attempt would update some of the weights twice.
        try:
            with raising_out_of_memory():
                norm = self._clip_and_update(step)
        except OutOfMemory as error:
            raise RunError(
                "out of memory for the optimiser's state; use optimizer: adamw-8bit or paged-adamw-8bit, or a smaller "
                "model"
            ) from error
        return loss, norm

    def _clip_and_update(self, step: int) -> torch.Tensor:
        """Clip the gradients, apply and drop them. Return their norm before clipping."""
        if self.graphed is not None:
            self.checks.before_update(step)
            return self.graphed.update(self._learning_rate(step))
        norm = clip_gradients(self._parameters(), self.spec.max_grad_norm or math.inf)
        self.checks.before_update(step)
        set_learning_rate(self.optimizer, self._learning_rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _run_micro_batches(self, batch: Batch, cuts: Sequence[Tensors], loss_function: LossFunction) -> torch.Tensor:
        def run_one(cut: Tensors, weight: float) -> torch.Tensor:
            micro = {name: tensor.to(self.process.device, non_blocking=True) for name, tensor in cut.items()}
            summed = loss_function(self.model, micro)
            torch.autograd.backward(summed * (weight / batch.target_tokens))
            return summed.detach() * weight

        examples = -(-self.spec.batch_size // self.process.count)  # the largest number of examples in a process
        return self.processes.run_micro_batches(cuts, run_one, -(-examples // self.progress.micro_batch))

    def _exchange(self, failed: bool) -> None:
        """Sum the gradients over all processes, and agree whether to repeat the step, stop or save."""
        leads = self.process.leads
        own = [
            failed,
            self.hooks.should_stop(),
            leads and self._save_is_due(),
            leads and self.dev.is_out_of_time(self.progress.seconds),
        ]
        any_failed, stop, save, out_of_time = self.processes.exchange(own, self._parameters())
        self._stop_requested, self._save_requested, self._out_of_time = stop > 0, save > 0, out_of_time > 0
        # All processes raise the error, because all must repeat the step.
        if any_failed:
            raise OutOfMemory("out of memory in one of the processes")

    def _check_processes(self) -> None:
        """Raise UserError for more processes than examples in a batch, or a folder that is not shared."""
        processes = self.process.count
        refuse_small_batch(self.spec.batch_size, processes)
        step = self.progress.step
        if self.processes.agree([step]) != [step * processes]:
            raise UserError(
                f"the processes do not see the same files in {self.folder}; use an --out that all of them can see"
            )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [value for group in self.optimizer.param_groups for value in group["params"]]

    def _learning_rate(self, step: int) -> float:
        return self.spec.learning_rate * schedule_factor(self.spec, step) * self.dev.cooldown_factor(step)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.execution.save_every

    def _line_is_due(self, done: int) -> bool:
        return done % self.execution.log_every == 0 or done == self.spec.steps or self._evaluation_is_due(done)

    def _evaluation_is_due(self, done: int) -> bool:
        return self.dev.is_due(done, out_of_time=self._out_of_time)

    def _evaluate(self) -> dict[str, Any]:
        self.feed.wait()
        return self.dev.run(self.progress, out_of_time=self._out_of_time)

    def _log(self, step: int) -> None:
        """Evaluate on dev when due, call `hooks.progress`, and write a line of metrics when due."""
        done = step + 1
        scores = self._evaluate() if self._evaluation_is_due(done) else {}
        self.hooks.progress(done, self._mean_loss, self.progress.seconds)
        if not self._line_is_due(done):
            return
        line = {
            "step": done,
            "loss": self._mean_loss,
            "learning_rate": self._learning_rate(step),
            "grad_norm": self._norm,
            **scores,
            "seconds": round(self.progress.seconds, 3),
        }
        if self.process.leads:
            self.metrics.append(line)
            self.hooks.log(line)
        self.progress.loss_sum, self.progress.loss_steps = 0.0, 0


def _usable_fast_path(model: torch.nn.Module) -> CpuFastPath | None:
    fast_path = CpuFastPath(model)
    return fast_path if fast_path.usable else None


def dropout_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of dropout for one step of one process. `seed` is the seed of the run."""
    return (seed * 1_000_003 + step) * 1_009 + process
