"""The ``SummaryWriter`` that DeepSpeed's ``tensorboard`` section asks for.

DeepSpeed's own code imports tensorboardX at start, even if a run does not use TensorBoard. Here the
import happens when a writer is made: TensorBoard's own through torch, else tensorboardX.
"""

from __future__ import annotations

from typing import Any


def SummaryWriter(*args: Any, **kwargs: Any) -> Any:  # the name that DeepSpeed calls
    """Make a summary writer; the arguments are those of ``torch.utils.tensorboard``.

    Raises ImportError, with the command that fixes it, if neither package is installed.
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
