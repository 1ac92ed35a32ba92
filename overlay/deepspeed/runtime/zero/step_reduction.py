"""When each bucket of ``"reduce": "step"`` is reduced: as the last backward pass finishes it.

The first backward pass shows in which order it finishes the buckets; from then on all processes
take the order that the first one saw, over all groups, since processes must start collectives in
one order. A bucket starts when it and all before it in that order are finished; what is left
when the pass ends starts then. Inside the recording of a CUDA graph nothing is started: the sums
are reduced before the step.
"""

from __future__ import annotations

import collections
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .step_gradients import Bucket, StepGradients


class StepReduction:
    """The reduction of ``groups``; ``process_group`` holds every process of the run.

    Raises:
        RuntimeError: by :meth:`end`, for a gradient that came after its bucket was sent.
    """

    def __init__(self, groups: list[StepGradients], process_group: Any) -> None:
        self.groups, self.process_group = groups, process_group
        self.buckets: list[tuple[StepGradients, Bucket]] = [
            (group, bucket) for group in groups for bucket in reversed(group.buckets)
        ]
        self.order = list(range(len(self.buckets)))
        self.learned = not self.buckets
        self.passing = self.launching = False
        self.launched = 0  # of the order, since the last step
        # the bucket of each parameter, and the parameters of each bucket
        self.bucket_of = [n for n, (_, bucket) in enumerate(self.buckets) for _ in bucket.members]
        self.sizes = [len(bucket.members) for _, bucket in self.buckets]
        self.fired: list[int] = []  # parameters, in the order of their gradients, while learning
        self.due = [1] * len(self.bucket_of)  # gradients of each parameter in a pass
        self.left = list(self.due)
        self.open = list(self.sizes)  # parameters of each bucket without all of theirs
        self.handles = _watch(self)

    def begin(self, last: bool) -> None:
        """Before a backward pass; ``last``: the step's last, whose gradients complete the sums."""
        if self.launched:  # another pass after the last one
            for group in self.groups:
                group.fold()
            self.launched = 0
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        self.passing = not recording
        self.launching = last and self.learned and not recording
        self.fired, self.left, self.open = [], list(self.due), list(self.sizes)

    def made(self, param: int) -> None:
        """A gradient of parameter ``param`` (its place in the buckets, in order) is there."""
        if not self.passing:
            return
        if not self.learned:
            self.fired.append(param)
        elif self.launching:
            self.left[param] -= 1
            if self.left[param] == 0:
                self.open[self.bucket_of[param]] -= 1
            while self.launched < len(self.order) and not self.open[self.order[self.launched]]:
                self._launch()

    def end(self, last: bool) -> None:
        """After a backward pass: take what is left; after the ``last`` one send what is left."""
        passing, self.passing = self.passing, False
        for number in self.order[: self.launched]:
            group, bucket = self.buckets[number]
            if any(group.params[m].grad is not None for m in bucket.members):
                raise RuntimeError(
                    "a parameter got another gradient after its bucket was reduced (its layer is"
                    " computed in parts that differ between passes); expected one a pass: set"
                    ' zero_optimization.flat_gradients.reduce to "micro_batch"'
                )
        for group in self.groups:
            group.take()
        if last and passing:
            self.flush()
        if passing and not self.learned:
            self._learn()

    def flush(self) -> None:
        """Start every bucket that is not started yet."""
        while self.launched < len(self.order):
            self._launch()

    def finished(self) -> None:
        """After a step."""
        self.launched = 0

    def _launch(self) -> None:
        group, bucket = self.buckets[self.order[self.launched]]
        self.launched += 1
        group.launch(bucket)

    def _learn(self) -> None:
        """Take the order in which the first process's pass finished its buckets."""
        counts = collections.Counter(self.fired)
        self.due = [max(1, counts[param]) for param in range(len(self.bucket_of))]
        ends = {self.bucket_of[param]: at for at, param in enumerate(self.fired)}
        late = len(self.fired)  # buckets without a gradient come last
        places = torch.tensor([ends.get(n, late + n) for n in range(len(self.buckets))])
        places = places.to(self.groups[0].sum.device)
        if dist.get_rank(group=self.process_group):
            places.zero_()
        dist.all_reduce(places, group=self.process_group)
        found = places.tolist()
        self.order = sorted(range(len(self.buckets)), key=found.__getitem__)
        self.learned = True


def _watch(reduction: StepReduction) -> list[Any]:
    """Call ``made`` after each gradient; the handles (before torch 2.1 with autograd's nodes)."""
    weak = weakref.ref(reduction)  # autograd's nodes would keep the optimizer for ever
    kept: list[Any] = []
    params = [group.params[m] for group, bucket in reduction.buckets for m in bucket.members]
    for place, param in enumerate(params):

        def made(*_: Any, place: int = place) -> None:
            there = weak()
            if there is not None:
                there.made(place)

        kept.append(_after_gradient(param, made))
    return kept


def _after_gradient(param: Tensor, call: Any) -> Any:
    if hasattr(param, "register_post_accumulate_grad_hook"):
        return param.register_post_accumulate_grad_hook(call)
    node = param.expand_as(param).grad_fn.next_functions[0][0]
    return node, node.register_hook(call)
