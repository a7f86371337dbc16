"""The text encoder's vision encoder, Qwen2.5-VL's vision transformer: batched window attention, and cached features.

transformers computes the attention of one window after the other. An image of 1024x1024 has a hundred windows in each
of 28 layers, and launching the kernels takes longer than they compute.
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

# transformers calls a kernel with "flash" in its name once, with the windows' lengths, instead of once per window.
NAME = "flash_windows_by_length"

# Rows by the tensor of window ends that all layers of an image share. Reading that tensor waits for the device.
_rows: MutableMapping[Tensor, list[Tensor]] = WeakIdKeyDictionary()


def batch_window_attention(visual: PreTrainedModel) -> None:
    """Make the vision transformer compute all windows of one length in one call. The results are equal."""
    AttentionInterface.register(NAME, window_attention)
    visual.config._attn_implementation = NAME


def window_attention(
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
    attention = partial(F.scaled_dot_product_attention, scale=scaling)
    if len(cu_seq_lens_q) == 2:
        return attention(query, key, value).transpose(1, 2), None
    if cu_seq_lens_q not in _rows:
        _rows[cu_seq_lens_q] = rows_by_length(cu_seq_lens_q)
    # (tokens, heads, width)
    streams = [stream[0].transpose(0, 1) for stream in (query, key, value)]
    out = torch.empty_like(streams[0], memory_format=torch.contiguous_format)
    for rows in _rows[cu_seq_lens_q]:
        queries, keys, values = (stream[rows].transpose(1, 2) for stream in streams)
        out[rows] = attention(queries, keys, values).transpose(1, 2)
    return out.unsqueeze(0), None


def rows_by_length(ends: Tensor) -> list[Tensor]:
    """For each window length, the token indices of all windows of that length: (windows, length), on `ends`' device."""
    rows: dict[int, list[Tensor]] = {}
    for start, end in pairwise(ends.tolist()):
        rows.setdefault(end - start, []).append(torch.arange(start, end))
    return [torch.stack(each).to(ends.device) for each in rows.values()]


@contextmanager
def cached_features(visual: nn.Module, cache: Callable[[Callable[[], Tensor]], Tensor]) -> Iterator[None]:
    """Within, the vision transformer's features of its images, (merged tokens, width), come from `cache`.

    `cache` is called with the function that computes them.
    """
    compute, replaced = visual.forward, vars(visual).get("forward")

    def forward(*pixels: Any, **options: Any) -> BaseModelOutputWithPooling:
        features = cache(lambda: compute(*pixels, **options).pooler_output)
        return BaseModelOutputWithPooling(pooler_output=features)

    visual.forward = forward
    try:
        yield
    finally:
        del visual.forward
        if replaced is not None:
            visual.forward = replaced
