"""Train several adapters on one frozen base together. On a GPU, all adapters share one forward and backward pass.

A member is one of the adapters, as a complete peft model. Each member has a loop with an optimiser, metrics and
training states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from petransfer.data.encoding import Layout
from petransfer.errors import Interrupted, RunError
from petransfer.models.thread_turns import yield_to_waiting_thread
from petransfer.training.batches import IGNORED, Batch, Tensors
from petransfer.training.loop import Loop, dropout_seed
from petransfer.training.losses import known_head, token_loss
from petransfer.training.smaller_batches import with_smaller_micro_batches
from petransfer.training.stacked.layers import Stack
from petransfer.training.state import keep_only


def shares_passes(device: torch.device) -> bool:
    """Return whether the members of a stack share a forward and backward pass on this device."""
    # On a CPU, a shared pass would not be faster. There each member has its own folded LoRA weights, and one pass over
    # eight times as many rows was measured to take as long as eight passes.
    return device.type != "cpu"


def make_stack(trunk: torch.nn.Module, members: Sequence[torch.nn.Module]) -> Stack:
    """Make a stack of members. The trunk is the model that computes all batches together."""
    # The trunk leaves out the output head if the loss function can compute the head of every member.
    heads = [known_head(member) for member in members]
    return Stack(trunk, members, hidden_only=all(head is not None and not head.cap for head in heads))


def accumulate(stack: Stack, micros: Sequence[Tensors], tokens: Sequence[int], layout: Layout) -> list[torch.Tensor]:
    """Add the gradients of one micro-batch per member to `grad` of the trained tensors.

    Args:
        micros: one micro-batch for each member, all with the same number of rows.
        tokens: number of target tokens in each member's whole batch, which divides the gradient.

    Returns:
        The loss of each member's micro-batch in nats, summed over the target tokens.
    """
    joined, widths = join(micros, layout)
    given = stack.run(joined, widths)
    losses, gradient = [], torch.zeros_like(given)
    rows = len(given) // len(micros)
    for at, (member, micro) in enumerate(zip(stack.members, micros, strict=True)):
        place = slice(at * rows, (at + 1) * rows), slice(micro["labels"].shape[1])
        part = given[place].detach().requires_grad_()
        # The loss is computed for one member at a time, on logits of the same shape as in a separate run.
        loss = token_loss(_MemberOutput(member, part, stack.hidden_only), micro)  # type: ignore[arg-type]
        torch.autograd.backward(loss * (1 / tokens[at]))
        if part.grad is not None:
            gradient[place] = part.grad
        losses.append(loss.detach())
    torch.autograd.backward(given, gradient)
    return losses


class _MemberOutput:
    """Replaces one member's model in the loss function. A call returns the trunk's output for this member.

    hidden_only: whether the trunk's output is the input of the member's head.
    """

    def __init__(self, member: Any, part: torch.Tensor, hidden_only: bool) -> None:
        self._part, self._head = part, None
        if hidden_only:
            self.get_base_model = member.get_base_model
            self._head = member.get_base_model().get_output_embeddings()

    def __call__(self, **_: Any) -> SimpleNamespace:
        if self._head is None:
            return SimpleNamespace(logits=self._part)
        logits, added = self._head(self._part), getattr(self.get_base_model(), "final_logits_bias", None)
        return SimpleNamespace(logits=logits if added is None else logits + added)


def join(micros: Sequence[Tensors], layout: Layout) -> tuple[Tensors, list[Mapping[int, int]]]:
    """Join one micro-batch per member into one batch, one member after the other, padded to one width.

    Returns:
        The batch without labels. For each member, a mapping from the padded width to the member's own width, in tokens.
    """
    fillers = {"attention_mask": 0, "labels": IGNORED}
    most = {name: max(micro[name].shape[1] for micro in micros) for name in micros[0]}
    # Inputs and targets get different widths. The width of a tensor then shows whether it belongs to the inputs or to
    # the targets.
    if layout.encoder_decoder and most["decoder_input_ids"] == most["input_ids"]:
        most["decoder_input_ids"] += 1
    joined = {}
    for name in micros[0]:
        if name == "labels":  # each member's loss uses the labels of its own micro-batch
            continue
        filler = fillers.get(name, layout.pad_id)
        rows = [functional.pad(micro[name], (0, most[name] - micro[name].shape[1]), value=filler) for micro in micros]
        joined[name] = torch.cat(rows)
    widths = [{most[name]: micro[name].shape[1] for name in joined} for micro in micros]
    return joined, list(widths)


class StackedLoop:
    """Trains the members of a stack together, with the results of separate runs.

    Args:
        loops: one loop per member, all at the same step.
        names: run ids of the members, which are saved in every training state.
        should_stop: called after every step. True means: save the states and raise `Interrupted`.
        failed: called with the run id and the error of a member that cannot continue.
    """

    def __init__(
        self,
        stack: Stack,
        loops: Sequence[Loop],
        names: Sequence[str],
        layout: Layout,
        should_stop: Callable[[], bool],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.stack, self.loops, self.names, self.layout = stack, list(loops), list(names), layout
        self.should_stop, self.failed = should_stop, failed
        self._joined = shares_passes(self.loops[0].process.device)

    def run(self) -> list[str]:
        """Train to the end and return the run ids of the members that finished.

        Raises:
            Interrupted: `should_stop` returned True. The states are saved.
            RunError: memory ran out with one example per member, or a state cannot be saved.
        """
        saved_at = started = time.monotonic()
        before = [loop.progress.seconds for loop in self.loops]
        begun = self.loops[0].progress.step
        steps, save_every = self.loops[0].spec.steps, self.loops[0].execution.save_every
        for loop in self.loops:
            loop.model.train()
        while self.loops and self.loops[0].progress.step < steps:
            errors = self.step(self.loops[0].progress.step, [start + time.monotonic() - started for start in before])
            before = [start for start, error in zip(before, errors, strict=True) if error is None]
            self._remove_failed(errors)
            stop = self.should_stop()
            if stop or time.monotonic() - saved_at >= save_every:
                self.save()
                saved_at = time.monotonic()
            if stop and self.loops:
                raise Interrupted
            yield_to_waiting_thread()
        if begun < steps:  # otherwise the final states were saved before, with the run ids of their stack
            self.save()
        return self.names

    def step(self, step: int, seconds: Sequence[float]) -> list[Exception | None]:
        """Take one optimiser step of every member. For each member, return the error that ends its training, or None.

        Args:
            step: the step, counted from 0.
            seconds: training time of each member.
        """
        batches = [loop.source.batch(step, 0, 1) for loop in self.loops]
        compute = self._joined_gradients if self._joined else self._gradients
        totals = with_smaller_micro_batches(
            lambda: compute([dropout_seed(loop.seed, step, 0) for loop in self.loops], batches),
            self.loops,
            f"out of memory with one example of each of {len(self.loops)} stacked runs; use a smaller --stack",
        )
        errors: list[Exception | None] = []
        for loop, batch, total, so_far in zip(self.loops, batches, totals, seconds, strict=True):
            try:
                loop.record_step(step, *loop.update(step, total, batch.target_tokens), so_far)
                loop.read_losses()  # so that a member whose loss is not finite is removed before the next step
                errors.append(None)
            except RunError as error:
                errors.append(error)
        return errors

    def save(self) -> None:
        """Save the states of all members, then remove their earlier states."""
        # In this order, there is always a step from which all members can resume, even if the process is killed.
        for loop in self.loops:
            loop.save(stack=self.names, keep_earlier=True)
        for loop in self.loops:
            keep_only(loop.state_folder, loop.progress.step)

    def _remove_failed(self, errors: Sequence[Exception | None]) -> None:
        """Remove the members with an error, save the states of all others, and report the errors."""
        gone = [(self.names[at], error) for at, error in enumerate(errors) if error is not None]
        for at in reversed(range(len(errors))):
            if errors[at] is not None:
                self.stack.drop(at)
                del self.loops[at], self.names[at]
        if gone:
            self.save()
        for name, error in gone:
            assert error is not None
            self.failed(name, error)

    def _gradients(self, seeds: Sequence[int], batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Add each member's gradient to `grad` of its trained tensors. Return each member's summed loss."""
        return self._separate(seeds, batches, self._cuts(batches))

    def _joined_gradients(self, seeds: Sequence[int], batches: Sequence[Batch]) -> list[torch.Tensor]:
        """Compute the gradients and losses of `_gradients` with shared passes."""
        cuts = self._cuts(batches)
        if len({tuple(len(micro["labels"]) for micro in of_member) for of_member in cuts}) > 1:
            # A shared pass needs equally many rows of every member. A token budget can cut batches of different lengths
            # into different numbers of rows.
            return self._separate(seeds, batches, cuts)
        self.stack.dropout.seed(seeds)
        device = self.loops[0].process.device
        totals = [torch.zeros((), device=device) for _ in batches]
        tokens = [batch.target_tokens for batch in batches]
        for cut in zip(*cuts, strict=True):
            micros = [{name: tensor.to(device) for name, tensor in micro.items()} for micro in cut]
            losses = accumulate(self.stack, micros, tokens, self.layout)
            totals = [total + loss for total, loss in zip(totals, losses, strict=True)]
        return totals

    def _cuts(self, batches: Sequence[Batch]) -> list[list[Tensors]]:
        """Cut each member's batch into the micro-batches of a separate run."""
        return [
            batch.micro_batches(loop.progress.micro_batch, loop.progress.token_budget)
            for loop, batch in zip(self.loops, batches, strict=True)
        ]

    def _separate(
        self, seeds: Sequence[int], batches: Sequence[Batch], cuts: Sequence[list[Tensors]]
    ) -> list[torch.Tensor]:
        totals = []
        for loop, seed, batch, of_member in zip(self.loops, seeds, batches, cuts, strict=True):
            torch.manual_seed(seed)
            totals.append(loop.accumulate(batch, of_member))
        return totals
