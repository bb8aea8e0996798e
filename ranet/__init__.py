"""Resolution Adaptive Networks (RANet) in pure torch: model, training and inference."""

from ranet.architecture import mult_adds, official_ops
from ranet.config import ModelConfig, OptimConfig, TrainConfig
from ranet.evaluation.exit_outputs import select_ensemble
from ranet.inference.cascade import Cascade, PartialPrediction, Prediction
from ranet.inference.classifier import BudgetedClassifier
from ranet.inference.latency import measure_latency
from ranet.inference.threshold_search import fit_budgets, fit_thresholds
from ranet.inference.thresholds import assign_exits, score_budget
from ranet.model.metadata import ModelMetadata
from ranet.model.network import FusedRANet, RANet
from ranet.model.official import model_from_official, official_state_dict
from ranet.model.saved import SavedModel, pretrained_names, read_model, write_model
from ranet.presets import PRESETS

__all__ = [
    "PRESETS",
    "BudgetedClassifier",
    "Cascade",
    "FusedRANet",
    "ModelConfig",
    "ModelMetadata",
    "OptimConfig",
    "PartialPrediction",
    "Prediction",
    "RANet",
    "SavedModel",
    "TrainConfig",
    "assign_exits",
    "fit_budgets",
    "fit_thresholds",
    "measure_latency",
    "model_from_official",
    "mult_adds",
    "official_ops",
    "official_state_dict",
    "pretrained_names",
    "read_model",
    "score_budget",
    "select_ensemble",
    "write_model",
]
