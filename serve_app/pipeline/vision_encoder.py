"""The text encoder's eye, Qwen2.5-VL's vision transformer: its windows at once, and what it saw kept for who asks next.

transformers attends within one window after the other: an image of 1024x1024 has a hundred of them in each of 28
layers, and the launching takes longer than the computing.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# transformers tells the lengths of the windows, instead of calling for each one, to a kernel with "flash" in its name.
NAME = "flash_windows_by_length"

# By the tensor of ends that an image's layers share: asking the device for them waits until it has caught up.
_rows: MutableMapping[Tensor, list[Tensor]] = WeakIdKeyDictionary()


def attend_to_windows_at_once(visual: PreTrainedModel) -> None:
    """Have the vision transformer attend within all windows of one length in one call: the same numbers."""
    AttentionInterface.register(NAME, attend)
    visual.config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of (1, heads, tokens, width) within windows that end at `cu_seq_lens_q` (windows + 1), from 0 on.

    The result is (1, tokens, heads, width).
    """
    attended = partial(F.scaled_dot_product_attention, scale=scaling)
    if len(cu_seq_lens_q) == 2:
        return attended(query, key, value).transpose(1, 2), None
    if cu_seq_lens_q not in _rows:
        _rows[cu_seq_lens_q] = rows_by_length(cu_seq_lens_q)
    # (tokens, heads, width)
    streams = [stream[0].transpose(0, 1) for stream in (query, key, value)]
    out = torch.empty_like(streams[0], memory_format=torch.contiguous_format)
    for rows in _rows[cu_seq_lens_q]:
        queries, keys, values = (stream[rows].transpose(1, 2) for stream in streams)
        out[rows] = attended(queries, keys, values).transpose(1, 2)
    return out.unsqueeze(0), None


def rows_by_length(ends: Tensor) -> list[Tensor]:
    """For each length of a window, the tokens of all such windows: (windows, length), where `ends` lies."""
    rows: dict[int, list[Tensor]] = {}
    for start, end in pairwise(ends.tolist()):
        rows.setdefault(end - start, []).append(torch.arange(start, end))
    return [torch.stack(each).to(ends.device) for each in rows.values()]


@contextmanager
def seeing(visual: nn.Module, remembered: Callable[[Callable[[], Tensor]], Tensor]) -> Iterator[None]:
    """Within, what the vision transformer makes of its images, (merged tokens, width), goes through `remembered`."""
    look, replaced = visual.forward, vars(visual).get("forward")

    def forward(*pixels: Any, **options: Any) -> BaseModelOutputWithPooling:
        seen = remembered(lambda: look(*pixels, **options).pooler_output)
        return BaseModelOutputWithPooling(pooler_output=seen)

    visual.forward = forward
    try:
        yield
    finally:
        del visual.forward
        if replaced is not None:
            visual.forward = replaced
