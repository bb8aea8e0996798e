"""Resolution Adaptive Networks in pure torch: the network, its training, its early exits."""

from ranet.config import ModelConfig, OptimConfig, TrainConfig
from ranet.inference.anytime import choose_answer
from ranet.inference.budgeted import choose_exits, fit_budgets, fit_thresholds, score_budget
from ranet.inference.cascade import Cascade, Prediction, Progress
from ranet.inference.latency import measure_latency
from ranet.model.network import OptimizedRANet, RANet
from ranet.model.official import model_from_official, official_state_dict
from ranet.plan import mult_adds, official_ops
from ranet.presets import PRESETS

__all__ = [
    "PRESETS",
    "Cascade",
    "ModelConfig",
    "OptimConfig",
    "OptimizedRANet",
    "Prediction",
    "Progress",
    "RANet",
    "TrainConfig",
    "choose_answer",
    "choose_exits",
    "fit_budgets",
    "fit_thresholds",
    "measure_latency",
    "model_from_official",
    "mult_adds",
    "official_ops",
    "official_state_dict",
    "score_budget",
]
