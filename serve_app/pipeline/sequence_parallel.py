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
    """The stream on which a GPU receives, and for each other GPU the stream on which the other one sends to it.

    And the memory in which it receives.
    """

    def __init__(self, device: torch.device, devices: Sequence[torch.device]) -> None:
        cuda = [other for other in devices if other.type == "cuda" and other != device]
        self.receiving = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self.sending = {other: torch.cuda.Stream(other) for other in cuda}  # type: ignore[no-untyped-call]
        self.rooms: list[Tensor] = []

    def make_rooms(self, shape: Sequence[int], like: Tensor) -> None:
        """Make memory for the keys and values of two blocks. It stays as long as the shape does: graphs refer to it."""
        if not self.rooms or self.rooms[0].shape != torch.Size(shape):
            self.rooms = [like.new_empty(shape) for _ in range(2)]


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

    Each device has rooms for those of all tokens: it writes its own there, and fetches the others' from their rooms. It
    uses two in turns, so that it may write the next block's while others still fetch this one's.

    Devices wait for each other in their queues only. `close` it after all threads have ended.
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
        self.tokens = self._text_tokens + images[-1].computed.stop
        # For each device, when it has written to each of its rooms.
        self._ready: list[list[torch.cuda.Event | None]] = [[None, None] for _ in devices]
        self._blocks = [0] * len(devices)

    def close(self) -> None:
        """Let whatever the devices do next wait for the last copies."""
        for streams in self._streams:
            for device, sending in streams.sending.items():
                torch.cuda.current_stream(device).wait_stream(sending)

    def write(self, rank: int, keys_and_values: Tensor) -> Tensor:
        """Copy a device's keys and values of the next block, (1, tokens, 2, heads, width), to its room.

        Returns the room, (1, all tokens, 2, heads, width), text first. It has those of the others after `fetch`.
        """
        self._streams[rank].make_rooms((1, self.tokens, *keys_and_values.shape[2:]), keys_and_values)
        room = self._streams[rank].rooms[self._blocks[rank] % 2]
        text, images = self._text[rank], self._images[rank]
        of_text, of_images = self._rows(room, rank)
        text_length = text.computed.stop - text.computed.start
        of_text.copy_(keys_and_values[:, text.own_of_computed])
        of_images.copy_(keys_and_values[:, text_length:][:, images.own_of_computed])
        return room

    def announce(self, rank: int) -> None:
        """Let the others fetch what the device has written."""
        if self._devices[rank].type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(self._devices[rank]))
            self._ready[rank][self._blocks[rank] % 2] = ready

    def fetch(self, rank: int) -> None:
        """Copy the others' keys and values of the block to the device's room. All have announced theirs."""
        number = self._blocks[rank] % 2
        self._blocks[rank] += 1
        streams = self._streams[rank]
        for other, device in enumerate(self._devices):
            if other == rank:
                continue
            here, there = (self._rows(each.rooms[number], other) for each in (streams, self._streams[other]))
            own, ready, sending = self._ready[rank][number], self._ready[other][number], streams.sending.get(device)
            if own is None or ready is None or sending is None or streams.receiving is None:
                # In the memory of the same device, and in the same stream.
                for mine, theirs in zip(here, there, strict=True):
                    mine.copy_(theirs)
                continue
            # torch copies on the sender's current stream, and makes it and the receiver's wait for each other.
            with torch.cuda.stream(sending), torch.cuda.stream(streams.receiving):
                sending.wait_event(ready)
                # The attention that has read this room before is complete by then.
                streams.receiving.wait_event(own)
                for mine, theirs in zip(here, there, strict=True):
                    mine.copy_(theirs, non_blocking=True)
        if streams.receiving is not None:
            torch.cuda.current_stream(self._devices[rank]).wait_stream(streams.receiving)

    def _rows(self, room: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The rows of text and of images that the device at `rank` computes for all."""
        return room[:, self._text[rank].own], room[:, self._text_tokens :][:, self._images[rank].own]


def attended(query: Tensor, keys_and_values: Tensor, backend: AttentionBackendName | None) -> Tensor:
    """The attention of `query`, (1, tokens, heads, width), to the keys and values of all devices of the exchange.

    `keys_and_values` are this device's, (1, tokens, 2, heads, width).
    """
    name = (backend or AttentionBackendName.NATIVE).value
    made: Tensor = torch.ops.serve_app.attend(query, keys_and_values, name)
    return made


class Recorder(Protocol):
    """Records the launches of a member, except for those of the exchange."""

    def paused(self) -> AbstractContextManager[None]: ...


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
        """Within, `recorder` is paused while the member exchanges keys and values."""
        self._recorder = recorder
        try:
            yield
        finally:
            self._recorder = None

    @property
    def tokens(self) -> int:
        """The tokens of all devices of the exchange."""
        return 0 if self.exchange is None else self.exchange.tokens

    def gather(self, keys_and_values: Tensor) -> Tensor:
        """The keys and values of all devices of the exchange, if there is one. Lets the others launch meanwhile."""
        if self.exchange is None:
            self.turns.pass_on(self.index)
            return keys_and_values
        room = self.exchange.write(self.rank, keys_and_values)
        with nullcontext() if self._recorder is None else self._recorder.paused():
            self.exchange_written()
        return room

    def exchange_written(self) -> None:
        """Exchange what has been written to the room."""
        assert self.exchange is not None
        self.exchange.announce(self.rank)
        self.turns.pass_on(self.index)
        self.exchange.fetch(self.rank)


def _attend(query: Tensor, keys_and_values: Tensor, backend: str) -> Tensor:
    member: Member | None = getattr(_current, "member", None)
    if member is not None:
        keys_and_values = member.gather(keys_and_values)
    key, value = keys_and_values.unbind(2)
    return kernel(backend)(query, key, value).contiguous()


# An operator, so that compiled blocks are one graph with and without an exchange. Not made by `custom_op`, which takes
# longer to call.
_operators = torch.library.Library("serve_app", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define("attend(Tensor query, Tensor keys_and_values, str backend) -> Tensor")  # type: ignore[no-untyped-call]
for _key in ("CPU", "CUDA"):
    _operators.impl("attend", _attend, _key)  # type: ignore[no-untyped-call]


@torch.library.register_fake("serve_app::attend", lib=_operators)  # type: ignore[untyped-decorator]
def _(query: Tensor, keys_and_values: Tensor, backend: str) -> Tensor:
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
