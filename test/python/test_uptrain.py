"""`mqa uptrain`: what is learnt, going on after a break, refusals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bpe
import mqa
from commands import exit_code
from decoders import all_logits
from test_generate_command import save_model, save_tokenizer

TEXT = "\n".join(
    f"{number} bottles of beer on the wall, {number} bottles of beer." for number in range(300)
)
OPTIONS: dict[str, object] = {
    "tokens": 12 * 2 * 24,
    "batch": 2,
    "context": 24,
    "learning-rate": 0.01,
    "threads": 1,
    "checkpoint-every": 2,
    "evaluate-every": 4,
}
