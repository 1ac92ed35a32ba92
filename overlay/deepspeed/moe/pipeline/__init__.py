"""The layers of the language model in stages over hosts: a pipeline. See docs/guide/pipeline.md."""

from .partition import StageLayers, cut
from .schedule import one_forward_one_backward
from .stage_engine import StageEngine, StepLoss
from .stage_groups import StageGroups, make_stage_groups
from .stage_model import StageModel, stage_param_groups

__all__ = [
    "StageEngine",
    "StageGroups",
    "StageLayers",
    "StageModel",
    "StepLoss",
    "cut",
    "make_stage_groups",
    "one_forward_one_backward",
    "stage_param_groups",
]
