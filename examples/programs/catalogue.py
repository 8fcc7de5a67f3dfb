"""All programs that run in one process, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from examples.programs import (
    Result,
    attention,
    bilinear_cnn,
    derivatives,
    digits,
    low_precision,
    parallel,
    regression,
    sine,
)

PROGRAMS: dict[str, Callable[[], Result]] = {
    "sine, by hand": sine.by_hand,
    "sine, by autograd": sine.by_autograd,
    "sine, by a Function": sine.by_function,
    **{f"sine, Adam, {name}": partial(sine.by_nn, one) for name, one in sine.SCHEDULES.items()},
    "logistic regression": regression.logistic_regression,
    "two rings": regression.two_rings,
    "polynomial": regression.polynomial,
    "digits, perceptron": digits.plain_perceptron,
    "digits, CNN": digits.plain_cnn,
    "digits, label smoothing, LSR class": digits.smoothing_by_a_class,
    "digits, label smoothing, in the loop": digits.smoothing_in_the_loop,
    "digits, label smoothing, argument": digits.smoothing_by_the_argument,
    "digits, mixup": digits.mixup,
    "digits, L1 penalty": digits.l1_penalty,
    "digits, no decay on biases": digits.no_decay_on_biases,
    "digits, clipped gradients": digits.clipped_gradients,
    "digits, accumulated gradients": digits.accumulated_gradients,
    "digits, two learning rates": digits.two_learning_rates,
    "digits, frozen body": digits.frozen_body,
    "bilinear CNN, pooled": bilinear_cnn.pooled,
    "bilinear CNN, full head": bilinear_cnn.full_head,
    "bilinear CNN, factorised head": bilinear_cnn.factorised_head,
    "attention in einsum": attention.attention,
    "derivatives, gradient penalty": derivatives.gradient_penalty,
    "derivatives, several outputs": derivatives.several_outputs,
    "derivatives, Hessian-vector product": derivatives.hessian_vector_product,
    "derivatives, torch.func": derivatives.by_func,
    "digits, model.half()": partial(low_precision.converted, torch.float16),
    "digits, model.bfloat16()": partial(low_precision.converted, torch.bfloat16),
    "digits, autocast to bfloat16": partial(low_precision.autocast, torch.bfloat16),
    "digits, autocast to float16": partial(low_precision.autocast, torch.float16),
    "digits, DataParallel": parallel.data_parallel,
}
