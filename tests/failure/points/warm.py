"""Imported once by the process that the nursery forks from: what a worker would load at its start is loaded."""

from __future__ import annotations

import os

import torch

from caesura.models.loading import load_base
from caesura.settings import EMBEDDED_BASE, Settings
from tests.failure.points import nursery

os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(1)
load_base(EMBEDDED_BASE, Settings().bases()[EMBEDDED_BASE], torch.float32, torch.device("cpu"))
__all__ = ["nursery"]
