"""Run by `test_token_store.py` under torchrun: two processes write one token cache."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dpvla.rl import token_store
from dpvla.rl.config import TokensConfig
from dpvla.rl.token_store import open_tokens
from tests.dpvla.rl.test_token_store import PORTION, SHARDS, counting, full_after
from tests.gpu.tiny_driving import make_policy

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    token_store.SHARD_BYTES = 1.0
    policy, source = make_policy()
    config = TokensConfig(directory=str(folder))
    with full_after(0) if rank == 1 else nullcontext(), pytest.raises(OSError, match="cannot write shard 1 of 3"):
        open_tokens(config, policy, source, accelerator, PORTION, agreed=False)
    accelerator.wait_for_everyone()
    assert sorted(path.name for path in folder.glob("shard_*")) == ["shard_00000.safetensors"]
    with counting(policy) as sizes:
        files = open_tokens(config, policy, source, accelerator, PORTION, agreed=False)
    assert files is not None and files.description.shards == SHARDS
    assert sizes == [1, PORTION, PORTION], sizes
    torch.distributed.destroy_process_group()
