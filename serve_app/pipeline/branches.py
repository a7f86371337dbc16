"""The transformer's forwards of one step, on one or several devices."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from serve_app.pipeline.acceleration import configure_thread
from serve_app.pipeline.device import current
from serve_app.pipeline.forwards import Shapes, begin, end
from serve_app.pipeline.fusion import clear_modulations, modulate
from serve_app.pipeline.recorded_launches import Launches
from serve_app.pipeline.sequence_parallel import Exchange, Member, OtherDeviceFailed, Streams, Turns, split

BRANCHES = ("positive", "negative")


def copy_to_device(transformer: QwenImageTransformer2DModel, device: torch.device) -> QwenImageTransformer2DModel:
    """A copy of a transformer on another device. Nothing but the weights is copied there.

    The transformer must not be compiled yet: compiled code keeps a reference to its own weights.
    """
    # `deepcopy` takes these copies instead of copying the tensors itself.
    tensors: list[Tensor] = [*transformer.parameters(), *transformer.buffers()]
    copies: dict[int, Tensor] = {}
    for tensor in tensors:
        there = tensor.detach().to(device, copy=True)
        copies[id(tensor)] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
    return copy.deepcopy(transformer, copies)


@dataclass(frozen=True)
class Step:
    """What the branches of a step share: packed latents, (1, tokens, 64), the times of all steps, and an index there.

    `shapes` are (1, height/16, width/16) of each image, in pixels.
    """

    hidden: Tensor
    times: Tensor
    index: int
    shapes: Shapes

    @property
    def time(self) -> Tensor:
        return self.times[self.index : self.index + 1]

    def on(self, device: torch.device, rows: slice) -> "Step":
        """The step on a device, with these tokens of the latents."""
        hidden, times = (tensor.to(device, non_blocking=True) for tensor in (self.hidden[:, rows], self.times))
        return replace(self, hidden=hidden, times=times)


@dataclass(frozen=True)
class Piece:
    """What the device at `index` computes in a step: a forward, or its part of one, in the turns of its thread.

    `own` are the rows of the result that no other piece of the forward has.
    """

    index: int
    compute: Callable[[Turns, int], Tensor]
    own: slice
    exchange: Exchange | None = None


class Branches:
    """One transformer, or equal ones on several devices, which share the work of each step.

    The guidance branches of a step get equal numbers of devices. If that is more than one, a branch is computed by
    sequence parallelism: each device computes a part of the tokens. With a feature cache, which decides by the values
    of all tokens, each branch is computed on one device.

    One thread cannot keep the queues of several GPUs full, so each has a thread that launches its work; the first one's
    is the caller's. NCCL is not needed: within a process, tensors are copied from GPU to GPU.
    """

    def __init__(self, transformers: Sequence[QwenImageTransformer2DModel], threads: int) -> None:
        self._transformers = transformers
        self._devices = [transformer.device for transformer in transformers]
        self._streams = [Streams(device, self._devices) for device in self._devices]
        self._launches = [Launches(device) for device in self._devices if len(transformers) > 1]
        self._launchers = [
            ThreadPoolExecutor(1, f"device-{index}", configure_thread, (threads,))
            for index in range(1, len(transformers))
        ]

    def predict(
        self, hidden: Tensor, times: Tensor, step: int, shapes: Shapes, prompts: Sequence[Tensor]
    ) -> list[Tensor]:
        """The transformer's prediction for each of `prompts`, on `hidden`'s device.

        `hidden` are packed latents, the noisy ones and then the control images', (1, tokens, 64); `times` (steps,) are
        the times of all steps of the image, in [0, 1], and `step` is an index into them. The steps of an image must
        come in order. `shapes` are (1, height/16, width/16) of each image, in pixels.
        """
        now = Step(hidden, times, step, shapes)
        branches = zip(prompts, BRANCHES, strict=False)
        if len(self._transformers) == 1:
            modulate(self._transformers[0], times, step)
            return [forward(self._transformers[0], now, prompt, name) for prompt, name in branches]
        each = len(self._transformers) // len(prompts)
        pieces = [
            self._pieces(now, prompt, name, range(index * each, index * each + each))
            for index, (prompt, name) in enumerate(branches)
        ]
        results = iter(self._compute([piece for branch in pieces for piece in branch]))
        return [
            torch.cat([next(results)[:, piece.own].to(hidden.device, non_blocking=True) for piece in branch], dim=1)
            for branch in pieces
        ]

    def end(self) -> None:
        """Let go of what the steps of an image share."""
        for transformer in self._transformers:
            clear_modulations(transformer)
        for launches in self._launches:
            launches.forget()

    def _pieces(self, now: Step, prompt: Tensor, name: str, group: range) -> list[Piece]:
        """The pieces of a branch that the devices of `group` compute."""
        first, everything = self._transformers[group.start], slice(None)
        if len(group) == 1 or first.is_cache_enabled:
            there = prompt.to(first.device, non_blocking=True)
            compute = partial(compute_whole, first, now.on(first.device, everything), there, name)
            return [Piece(group.start, compute, everything)]
        devices, streams = self._devices[group.start : group.stop], self._streams[group.start : group.stop]
        images, text = split(now.hidden.shape[1], len(group)), split(prompt.shape[1], len(group))
        exchange = Exchange(devices, text, images, streams)
        pieces = []
        for rank, index in enumerate(group):
            rows = (images[rank].computed, text[rank].computed)
            own_text = prompt[:, rows[1]].to(devices[rank], non_blocking=True)
            part = partial(compute_part, self._transformers[index], now.on(devices[rank], rows[0]), own_text)
            compute_own = partial(part, rows, prompt.shape[1], self._launches[index], exchange, rank)
            pieces.append(Piece(index, compute_own, images[rank].own_of_computed, exchange))
        return pieces

    def _compute(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The pieces' results, of which the first one's is computed in this thread.

        Raises the error of a piece that failed, after all have ended: no piece may run on next to whatever follows.
        """
        turns, (first, *others) = Turns(len(pieces)), pieces
        computed: Future[Tensor] = Future()
        pending = [
            self._launchers[piece.index - 1].submit(piece.compute, turns, turn)
            for turn, piece in enumerate(others, start=1)
        ]
        try:
            computed.set_result(first.compute(turns, 0))
        except BaseException as error:
            computed.set_exception(error)
        wait(pending)
        for exchange in {piece.exchange for piece in pieces if piece.exchange is not None}:
            exchange.close()
        errors = [failure for future in (computed, *pending) if (failure := future.exception()) is not None]
        if errors:
            raise min(errors, key=lambda failure: isinstance(failure, OtherDeviceFailed))
        return [future.result() for future in (computed, *pending)]


@torch.no_grad()
def compute_whole(
    transformer: QwenImageTransformer2DModel, step: Step, prompt: Tensor, name: str, turns: Turns, turn: int
) -> Tensor:
    """A branch's forward, in the thread of its device."""
    with Member(turns, turn).working(), current(prompt.device):
        modulate(transformer, step.times, step.index)
        return forward(transformer, step, prompt, name)


@torch.no_grad()
def compute_part(
    transformer: QwenImageTransformer2DModel,
    step: Step,
    prompt: Tensor,
    rows: tuple[slice, slice],
    text_tokens: int,
    launches: Launches,
    exchange: Exchange,
    rank: int,
    turns: Turns,
    turn: int,
) -> Tensor:
    """The prediction for the tokens `rows` of images and text, in the thread of their device."""
    member = Member(turns, turn, exchange, rank)
    with member.working(), current(prompt.device):
        modulate(transformer, step.times, step.index)
        part = begin(transformer, step.hidden, step.time, step.shapes, prompt, rows, text_tokens)
        launches.through(transformer, part, member)
        return end(transformer, part)


def forward(transformer: QwenImageTransformer2DModel, step: Step, prompt: Tensor, branch: str) -> Tensor:
    """The transformer's prediction. A feature cache holds the features of each `branch` apart."""
    with transformer.cache_context(branch) if transformer.is_cache_enabled else nullcontext():
        predicted: Tensor = transformer(
            hidden_states=step.hidden,
            timestep=step.time,
            encoder_hidden_states=prompt,
            encoder_hidden_states_mask=None,
            img_shapes=[step.shapes],
            return_dict=False,
        )[0]
    return predicted
