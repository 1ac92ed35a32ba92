"""A decoder-only language model with a mixture of experts, at the Alpa artifact's sizes."""

from .compiled import compile_problem
from .config import MoELMConfig, config_for, parameter_count
from .evaluate import Evaluation, evaluate
from .exported import checkpoint_weights, export, model_of, read_config
from .generate import generate, stream
from .groups import param_groups
from .model import MoELM, StepStats
from .sizes import SIZES

__all__ = [
    "SIZES",
    "Evaluation",
    "MoELM",
    "MoELMConfig",
    "StepStats",
    "checkpoint_weights",
    "compile_problem",
    "config_for",
    "evaluate",
    "export",
    "generate",
    "model_of",
    "param_groups",
    "parameter_count",
    "read_config",
    "stream",
]
