"""Define the recipe: one schema for the YAML file, the flow's parameters and ``--set``.

This package owns the fields (one module per group of settings), their defaults and the checks that
need nothing but the recipe itself. Reading files and resolving hub names is
:mod:`sdpo.config.load`; what the values do is said by the modules that use them. Defaults are the
sDPO paper's recipe (arXiv 2403.19270, which follows Zephyr: 2310.16944) wherever the paper has one.
"""

from sdpo.config.data import ColumnsConfig, DataConfig, ReserveConfig, SourceConfig
from sdpo.config.describe import describe
from sdpo.config.effects import settings_without_effect, unread_settings
from sdpo.config.group import Group
from sdpo.config.judging import JudgeConfig, WinRateConfig
from sdpo.config.measuring import EvaluationConfig, ProbeConfig
from sdpo.config.model import ModelConfig
from sdpo.config.partition import PartitionConfig, StrategyName
from sdpo.config.run import RunConfig
from sdpo.config.running import LaunchConfig, LaunchStrategy, StoreConfig, TrackingConfig
from sdpo.config.supervised import SupervisedColumnsConfig, SupervisedConfig
from sdpo.config.training import Objective, Precision, StepConfig, TrainingConfig

__all__ = [
    "ColumnsConfig",
    "DataConfig",
    "EvaluationConfig",
    "Group",
    "JudgeConfig",
    "LaunchConfig",
    "LaunchStrategy",
    "ModelConfig",
    "Objective",
    "PartitionConfig",
    "Precision",
    "ProbeConfig",
    "ReserveConfig",
    "RunConfig",
    "SourceConfig",
    "StepConfig",
    "StoreConfig",
    "StrategyName",
    "SupervisedColumnsConfig",
    "SupervisedConfig",
    "TrackingConfig",
    "TrainingConfig",
    "WinRateConfig",
    "describe",
    "settings_without_effect",
    "unread_settings",
]
