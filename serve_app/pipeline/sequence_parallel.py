"""One forward on several devices: each computes a part of the tokens, and attends to the keys and values of all.

In every block the devices exchange keys and values once, just before the attention. For n devices each receives
(n - 1) / n of them: 2 * tokens * width values. That is as much as exchanging heads for tokens and back (Ulysses) on two
devices, twice as much on four; but it waits once per block and not twice, takes any number of heads and tokens, and
keeps the order of the keys, so that each row of the attention is computed as on one device.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

# The `Member` that the current thread is.
_current = threading.local()


@dataclass(frozen=True)
class Part:
    """The tokens that one device computes, and those of them that nobody computes before it, as rows of all tokens.

    Parts have equal lengths, so that all devices use the same kernels. Where the number of devices does not divide
    that of the tokens, the last parts overlap by a few tokens.
    """

    computed: slice
    own: slice

    @property
    def own_of_computed(self) -> slice:
        """The rows of `own` among those of `computed`."""
        return slice(self.own.start - self.computed.start, self.own.stop - self.computed.start)


def split(tokens: int, count: int) -> list[Part]:
    """The parts of `tokens` tokens for `count` devices.

    A part has two tokens at least if there are two: for a single one, compiled code would be compiled anew.
    """
    length = min(tokens, max(2, -(-tokens // count)))
    parts = []
    for index in range(count):
        start = min(index * length, tokens - length)
        own = slice(min(index * length, tokens), min((index + 1) * length, tokens))
        parts.append(Part(slice(start, start + length), own))
    return parts


class Streams:
    """For one GPU the stream on which it receives, and for each other GPU the one on which that sends to it.

    And the memory in which it receives.
    """

    def __init__(self, device: torch.device, devices: Sequence[torch.device]) -> None:
        cuda = [other for other in devices if other.type == "cuda" and other != device]
        self.receiving = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self.sending = {other: torch.cuda.Stream(other) for other in cuda}  # type: ignore[no-untyped-call]
        self._received: Tensor | None = None

    def room(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory for what the GPU receives: the same one as long as the shape is the same, since graphs refer to it."""
        if self._received is None or self._received.shape != torch.Size(shape):
            self._received = like.new_empty(shape)
        return self._received


@dataclass
class Posted:
    """The keys and values that one device has computed, (1, tokens, 2, heads, width), and when they are complete."""

    tensor: Tensor
    ready: torch.cuda.Event | None


class Turns:
    """Lets the threads of several devices launch their work in turns, by blocks.

    All need the interpreter's lock for it. Left to themselves they would hand it over at every kernel, which takes
    longer than launching the kernel.
    """

    def __init__(self, count: int) -> None:
        self._locks = [threading.Lock() for _ in range(count)]
        for lock in self._locks[1:]:
            lock.acquire()
        # Only the thread whose turn it is touches these.
        self._working = list(range(count))
        self._failed = False

    @contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Within, the thread is one of those that take turns, from its first turn on.

        If one fails, the others raise OtherDeviceFailed at their next turn.
        """
        self._locks[index].acquire()
        try:
            self._check()
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            following = self._following(index)
            self._working.remove(index)
            if following != index:
                self._locks[following].release()

    def pass_on(self, index: int) -> None:
        """Let each other thread have a turn."""
        following = self._following(index)
        if following != index:
            self._locks[following].release()
            self._locks[index].acquire()
            self._check()

    def _following(self, index: int) -> int:
        position = self._working.index(index) + 1
        return self._working[position % len(self._working)]

    def _check(self) -> None:
        if self._failed:
            raise OtherDeviceFailed


class OtherDeviceFailed(RuntimeError):
    """The work of a device is abandoned because another one's has failed."""


class Exchange:
    """The keys and values of the devices that share one forward, each with its thread, gathered for each block.

    Devices wait for each other in their queues only. `close` it after all threads have ended, and before its tensors
    are freed.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        text: Sequence[Part],
        images: Sequence[Part],
        streams: Sequence[Streams],
    ) -> None:
        self._devices = devices
        self._text, self._images, self._streams = text, images, streams
        self._text_tokens = text[-1].computed.stop
        self._tokens = self._text_tokens + images[-1].computed.stop
        # Two of each: a device may post the next block's before another one has fetched this block's.
        self._posted: list[list[Posted | None]] = [[None, None] for _ in devices]
        self._blocks = [0] * len(devices)

    def close(self) -> None:
        """Let whatever the devices do next wait for the last copies."""
        for streams in self._streams:
            for device, sending in streams.sending.items():
                torch.cuda.current_stream(device).wait_stream(sending)

    def post(self, rank: int, keys_and_values: Tensor) -> None:
        """Make a device's keys and values of the next block available to the others."""
        ready = None
        if keys_and_values.is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(keys_and_values.device))
        self._posted[rank][self._blocks[rank] % 2] = Posted(keys_and_values, ready)

    def gather(self, rank: int) -> Tensor:
        """All keys and values of the block, text first, (1, tokens, 2, heads, width), on the device at `rank`.

        All devices have posted theirs. The result is valid until the device posts those of the next block.
        """
        block = self._blocks[rank]
        self._blocks[rank] = block + 1
        posted = [mine[block % 2] for mine in self._posted]
        own = posted[rank]
        assert own is not None
        everything = self._streams[rank].room((1, self._tokens, *own.tensor.shape[2:]), own.tensor)
        self._copy(everything, own.tensor, rank)
        for other, theirs in enumerate(posted):
            if other != rank:
                assert theirs is not None
                self._fetch(everything, own, theirs, rank, other)
        receiving = self._streams[rank].receiving
        if receiving is not None:
            torch.cuda.current_stream(self._devices[rank]).wait_stream(receiving)
        return everything

    def _fetch(self, everything: Tensor, own: Posted, theirs: Posted, rank: int, other: int) -> None:
        receiving = self._streams[rank].receiving
        sending = self._streams[rank].sending.get(self._devices[other])
        if receiving is None or sending is None or own.ready is None or theirs.ready is None:
            # In the memory of the same device, and in the same stream.
            self._copy(everything, theirs.tensor, other)
            return
        # torch copies on the sender's current stream, and makes it and the receiver's wait for each other.
        with torch.cuda.stream(sending), torch.cuda.stream(receiving):
            sending.wait_event(theirs.ready)
            # The previous block's attention has read its keys and values by then.
            receiving.wait_event(own.ready)
            self._copy(everything, theirs.tensor, other)

    def _copy(self, everything: Tensor, part: Tensor, rank: int) -> None:
        """Copy the tokens of the device at `rank` to their places."""
        text, images = self._text[rank], self._images[rank]
        text_length = text.computed.stop - text.computed.start
        everything[:, text.own].copy_(part[:, text.own_of_computed], non_blocking=True)
        everything[:, self._text_tokens :][:, images.own].copy_(
            part[:, text_length:][:, images.own_of_computed], non_blocking=True
        )


def posted(keys_and_values: Tensor) -> Tensor:
    """Let the other devices of this thread's exchange, if there is one, fetch these; see `attended`.

    (1, tokens, 2, heads, width). Returns an empty tensor, which `attended` takes so that it comes later.
    """
    made: Tensor = torch.ops.serve_app.post(keys_and_values)
    return made


def attended(query: Tensor, keys_and_values: Tensor, posted: Tensor, backend: AttentionBackendName | None) -> Tensor:
    """The attention of `query`, (1, tokens, heads, width), to the keys and values of all devices of the exchange."""
    name = (backend or AttentionBackendName.NATIVE).value
    made: Tensor = torch.ops.serve_app.attend(query, keys_and_values, posted, name)
    return made


class Recorder(Protocol):
    """Records the launches of a member, except for those of the exchange."""

    def paused(self, posted: Tensor | None) -> AbstractContextManager[None]: ...


@dataclass
class Member:
    """The thread that computes for the device at `index`, alone or as the one at `rank` of an exchange."""

    turns: Turns
    index: int
    exchange: Exchange | None = None
    rank: int = 0
    _recorder: Recorder | None = field(default=None, init=False)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within, the attention of the current thread is this member's."""
        with self.turns.member(self.index):
            _current.member = self
            try:
                yield
            finally:
                _current.member = None

    @contextmanager
    def recorded_by(self, recorder: Recorder) -> Iterator[None]:
        """Within, `recorder` is paused for everything that the member does with others."""
        self._recorder = recorder
        try:
            yield
        finally:
            self._recorder = None

    def post(self, keys_and_values: Tensor) -> None:
        """Make the next block's keys and values of this device available to the others of its exchange."""
        if self.exchange is not None:
            with self._paused(keys_and_values):
                self.exchange.post(self.rank, keys_and_values)

    def gather(self) -> Tensor | None:
        """Let the others launch, then get the keys and values of all devices; None without an exchange."""
        with self._paused(None):
            self.turns.pass_on(self.index)
            return None if self.exchange is None else self.exchange.gather(self.rank)

    def _paused(self, posted: Tensor | None) -> AbstractContextManager[None]:
        return nullcontext() if self._recorder is None else self._recorder.paused(posted)


def _post(keys_and_values: Tensor) -> Tensor:
    member: Member | None = getattr(_current, "member", None)
    if member is not None:
        member.post(keys_and_values)
    return keys_and_values.new_empty(0)


def _attend(query: Tensor, keys_and_values: Tensor, posted: Tensor, backend: str) -> Tensor:
    member: Member | None = getattr(_current, "member", None)
    gathered = None if member is None else member.gather()
    key, value = (keys_and_values if gathered is None else gathered).unbind(2)
    return kernel(backend)(query, key, value).contiguous()


# Operators, so that compiled blocks are one graph with and without an exchange. Not made by `custom_op`, which takes
# longer to call.
_operators = torch.library.Library("serve_app", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define("post(Tensor keys_and_values) -> Tensor")  # type: ignore[no-untyped-call]
_ATTEND = "attend(Tensor query, Tensor keys_and_values, Tensor posted, str backend) -> Tensor"
_operators.define(_ATTEND)  # type: ignore[no-untyped-call]
for _key in ("CPU", "CUDA"):
    _operators.impl("post", _post, _key)  # type: ignore[no-untyped-call]
    _operators.impl("attend", _attend, _key)  # type: ignore[no-untyped-call]


@torch.library.register_fake("serve_app::post", lib=_operators)  # type: ignore[untyped-decorator]
def _(keys_and_values: Tensor) -> Tensor:
    return keys_and_values.new_empty(0)


@torch.library.register_fake("serve_app::attend", lib=_operators)  # type: ignore[untyped-decorator]
def _(query: Tensor, keys_and_values: Tensor, posted: Tensor, backend: str) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def kernel(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An attention kernel by diffusers' name, for tensors of (1, tokens, heads, width).

    torch's own kernels are called directly: diffusers switches the others off, for all threads of the process.
    """
    direct = {"_native_cudnn": _cudnn, "_native_flash": _flash}
    if backend in direct:
        return direct[backend]
    return lambda query, key, value: dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend))


def _cudnn(*tensors: Tensor) -> Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors)
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
    return out.transpose(1, 2)


def _flash(*tensors: Tensor) -> Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return out.transpose(1, 2)
