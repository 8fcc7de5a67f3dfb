"""16-bit training: a model of bfloat16 or float16, and autocast with scaled gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from examples.programs import Result
from examples.programs.digits import HELD_OUT, batches, images, perceptron


def converted(dtype: torch.dtype) -> Result:
    """`model.half()`, or `model.bfloat16()`."""
    model = perceptron().to(dtype)
    if dtype == torch.float16:  # in which the squares that Adam averages underflow
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for x, y in batches(epochs=4):
        loss = F.cross_entropy(model(x.to(dtype)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return Result(torch.stack(losses), model(images()[0][-HELD_OUT:].to(dtype)).argmax(1))


def autocast(dtype: torch.dtype) -> Result:
    """Parameters of float32, arithmetic of 16 bits, a scaled loss."""
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses = []
    for x, y in batches():
        with torch.autocast("cpu", dtype=dtype):
            loss = criterion(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        return Result(torch.stack(losses), model(images()[0][-HELD_OUT:]).argmax(1))
