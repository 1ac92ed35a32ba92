"""The ``SummaryWriter`` that DeepSpeed's ``tensorboard`` section asks for.

The base imports tensorboardX at start whether or not a run wants TensorBoard. Here the writer is
looked for when it is made: TensorBoard's own through torch first, tensorboardX second.
"""

from __future__ import annotations

from typing import Any


def SummaryWriter(*args: Any, **kwargs: Any) -> Any:  # the name the base calls
    """Make a summary writer; the arguments are those of ``torch.utils.tensorboard``.

    Raises ImportError, with the command that mends it, where neither package is installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter as Writer
    except ImportError:
        try:
            from tensorboardX import SummaryWriter as Writer
        except ImportError:
            raise ImportError(
                'the DeepSpeed configuration asks for "tensorboard", but neither tensorboard nor '
                "tensorboardX is installed: pip install tensorboard"
            ) from None
    return Writer(*args, **kwargs)
