"""Optimizers, with the constructor signatures of torch's own."""

from pyext.optim.adam import Adam, AdamTelemetry, AdamW

__all__ = ["Adam", "AdamTelemetry", "AdamW"]
