"""Resolution Adaptive Networks (RANet) in pure torch: model, training and inference."""

from ranet.architecture import mult_adds, official_ops
from ranet.config import ModelConfig, OptimConfig, TrainConfig
from ranet.evaluation.exit_outputs import select_ensemble
from ranet.inference.cascade import Cascade, PartialPrediction, Prediction
from ranet.inference.latency import measure_latency
from ranet.inference.threshold_search import fit_budgets, fit_thresholds
from ranet.inference.thresholds import assign_exits, score_budget
from ranet.model.network import FusedRANet, RANet
from ranet.model.official import model_from_official, official_state_dict
from ranet.presets import PRESETS

__all__ = [
    "PRESETS",
    "Cascade",
    "FusedRANet",
    "ModelConfig",
    "OptimConfig",
    "PartialPrediction",
    "Prediction",
    "RANet",
    "TrainConfig",
    "assign_exits",
    "fit_budgets",
    "fit_thresholds",
    "measure_latency",
    "model_from_official",
    "mult_adds",
    "official_ops",
    "official_state_dict",
    "score_budget",
    "select_ensemble",
]
