"""Compile the blocks of a model (`torch.compile`), where the training is long enough to get the time back.

All blocks are the same code on other weights, so one of them is compiled and the others use it: on 2 CPU cores that takes 10 to
20 seconds, where a whole d6 takes a minute. What it gains there is that norms, rotations, relu^2 and the residual stream become
a few passes over memory. The output projection and the loss are compiled by nobody: they are already done in chunks that fit
the caches (`nanochat.loss`).
"""

import shutil

import torch

from nanochat.errors import UserError
from nanochat.gpt import GPT

WORTH_S = 600.0  # of training, from which on it is compiled: a twentieth of it is a long start


def choose_compiling(asked: str, *, device: torch.device, seconds: float) -> bool:
    """Whether to compile: `always`, `never`, or `auto`: on CPUs with a C++ compiler, for long trainings.

    `auto` leaves GPUs eager, where this project has not compared the two yet. UserError if it was asked for and cannot be done.
    """
    if asked == "auto":
        return device.type == "cpu" and seconds >= WORTH_S and has_compiler()
    if asked == "always" and device.type == "cpu" and not has_compiler():
        raise UserError(
            "compile: always was asked for, and there is no C++ compiler (g++ or clang++). Install one, or say never"
        )
    return asked == "always"


def has_compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++")))


def compile_blocks(model: GPT) -> None:
    for block in model.blocks:
        block.compile(dynamic=False)
