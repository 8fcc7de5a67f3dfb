"""Training in several processes, each with a part of every batch, and `nn.DataParallel`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from examples.programs import Result
from examples.programs.digits import HELD_OUT, batches, cnn, images, train


def distributed() -> Result:
    """In each of the processes of the default group."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(cnn())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    criterion = nn.CrossEntropyLoss()
    losses = []
    for x, y in batches():
        loss = criterion(model(x[rank::world]), y[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(total := loss.detach().clone())
        losses.append(total / world)
    # Batch norm over all processes trains on GPUs alone; it predicts everywhere.
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model.module).eval()
    with torch.no_grad():
        return Result(torch.stack(losses), synced(images()[0][-HELD_OUT:]).argmax(1))


def data_parallel() -> Result:
    """In threads, one for each GPU; without a GPU the module itself runs."""
    return train(nn.DataParallel(cnn()))
