"""The driving commands as Florence-2's text encoder reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COMMAND_PHRASES = ("turn left", "go straight", "turn right", "no command given")
"""What the text encoder reads, in the order of ``dpvla.batch.COMMANDS``; the paper names the first three."""


def tokenize_commands(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Word ids and mask of ``COMMAND_PHRASES``: done once, so that no data loader ever needs a tokenizer."""
    rows = [tokenizer(phrase)["input_ids"] for phrase in COMMAND_PHRASES]
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return ids, mask
