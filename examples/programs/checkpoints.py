"""Training is stopped in the middle and resumed: model, optimizer and schedule come from a file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from examples.programs import Result
from examples.programs.digits import HELD_OUT, STEPS, batches, cnn, images

HALF = STEPS // 2


def made(device: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Any]:
    model = cnn().to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, amsgrad=True)
    return model, optimizer, CosineAnnealingLR(optimizer, STEPS)


def steps(model: nn.Module, optimizer: Any, scheduler: Any, first: int, last: int) -> list[Tensor]:
    p = next(model.parameters())
    losses = []
    for x, y in itertools.islice(batches(), first, last):
        loss = F.cross_entropy(model(x.to(p)), y.to(p.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    return losses


def first_half(file: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    model, optimizer, scheduler = made(device, dtype)
    losses = steps(model, optimizer, scheduler, 0, HALF)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    return losses


def second_half(file: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Result:
    """Another device and dtype may go on."""
    model, optimizer, scheduler = made(device, dtype)
    saved = torch.load(file, map_location=device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    losses = steps(model, optimizer, scheduler, HALF, STEPS)
    model.eval()
    with torch.no_grad():
        predictions = model(images()[0][-HELD_OUT:].to(device, dtype)).argmax(1)
    return Result(torch.stack(losses), predictions)
