"""A misspelt key at the top of the configuration passes without an error or a warning."""

import logging
import os
import sys

import deepspeed
import torch
from deepspeed.utils import logger

os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29553")
deepspeed.init_distributed("gloo")
said = []


class Listener(logging.Handler):
    def emit(self, record):
        said.append((record.levelno, record.getMessage()))


logger.addHandler(Listener())


def try_key(config):  # the warnings and the error that name the key
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    said.clear()
    config = {"train_micro_batch_size_per_gpu": 1, **config}
    try:
        deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except Exception as error:
        said.append((logging.ERROR, str(error)))
    return [text for level, text in said if level >= logging.WARNING and "cliping" in text]


print("in a section:", [text[:70] for text in try_key({"zero_optimization": {"cliping": 1}})])
found = try_key({"gradient_cliping": 0.5})
print("at the top:", found, "\nright: an error or a warning that names gradient_cliping")
sys.exit(0 if any("gradient_cliping" in text for text in found) else 1)
