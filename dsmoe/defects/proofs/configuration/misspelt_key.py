"""Defect 53, part: a misspelt key of the configuration."""

NUMBER = 53
TITLE = "A misspelt key of the configuration is refused or named"


def observe(tools, phase):
    import logging

    import torch

    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    tools.begin()
    from deepspeed.utils import logger

    logger.addHandler(Listener())
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        tools.start(model, {"gradient_cliping": 0.5}, optimizer)
    except Exception as error:
        if "initialize CUDA" in str(error):  # no GPU here: nothing to do with the key
            raise
        said.append(str(error))
    return [text[:150] for text in said if "gradient_cliping" in text]


def judge(seen):
    said = seen[0][0]
    if said:
        return "fixed", f"said: {said[0]}", "a message or an error that names gradient_cliping"
    return "lives", "no warning and no error: no clipping", "a message or an error that names it"
