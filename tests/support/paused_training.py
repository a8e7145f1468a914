"""Trainings that pause themselves at a step, so that no test depends on how fast they are; also as a program.

torchrun --nproc-per-node 2 paused_training.py 50 train_cnn.py --data digits
"""

import itertools
import math
import os
import runpy
import signal
import sys

from toolkit.training.loop import FitCallbacks
from toolkit.training.train_step import TrainStep


def pause_at_step(*numbers):
    """Have this process pause itself before some steps of its trainings, counted from 1."""
    step, count = TrainStep.step, itertools.count(1)

    def pause_and_step(*arguments):
        if next(count) in numbers:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(*arguments)

    TrainStep.step = pause_and_step


def save_each_epoch():
    """Have this process save a checkpoint and send metrics after each epoch, whatever share of the time that takes."""
    FitCallbacks.checkpoint_share = property(lambda _: math.inf, lambda *_: None)


if __name__ == "__main__":
    _, number, *sys.argv = sys.argv
    pause_at_step(int(number))
    runpy.run_path(sys.argv[0], run_name="__main__")
