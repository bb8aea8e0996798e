"""Compare ensembles of exits with single exits.

    python -m benchmarks.combine --config configs/digits.yaml --weights snapshot.pt

Ways to combine, for exit k: its own logits; the mean of the logits, or of the probabilities, of
exits 1 to k; learned weights, one for each exit passed, fitted by cross-entropy. Validation and
test images are pooled and halved at random, `--repeats` times: weights and thresholds are fitted
on one half, top-1 is of the other. No image was trained on.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.trained import TrainOutput
from ranet import fit_budgets, mult_adds
from ranet.inference.ensemble import mean_logits
from ranet.inference.thresholds import score_budget

FRACTIONS = (0.3, 0.4, 0.5, 0.75, 1.0)


def own(logits: Tensor, fit: Tensor, labels: Tensor) -> Tensor:
    """Each exit by itself."""
    return logits


def together(logits: Tensor, fit: Tensor, labels: Tensor) -> Tensor:
    """Running mean of the logits."""
    return mean_logits(logits)


def mean_probabilities(logits: Tensor, fit: Tensor, labels: Tensor) -> Tensor:
    """Running mean of the probabilities."""
    return mean_logits(logits.softmax(dim=2)).clamp_min(1e-12).log()


def learned(logits: Tensor, fit: Tensor, labels: Tensor) -> Tensor:
    """Weighted sum of the logits passed, with weights fitted for every exit."""
    combined = []
    for k in range(1, len(logits) + 1):
        weights = torch.zeros(k)
        weights[-1] = 1
        weights.requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=50)

        def loss(weights: Tensor = weights, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            mixed = torch.einsum("k,kic->ic", weights, logits[: len(weights), fit])
            value = F.cross_entropy(mixed, labels[fit])
            value.backward()
            return value

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]: it gives a tensor, as it must
        combined.append(torch.einsum("k,kic->ic", weights.detach(), logits[:k]))
    return torch.stack(combined)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "own logits": own,
    "mean of logits": together,
    "mean of probabilities": mean_probabilities,
    "learned weights": learned,
}


@torch.inference_mode()
def all_logits(trained: TrainOutput) -> tuple[Tensor, Tensor]:
    """Logits (exits, images, classes) and labels of the validation and test images."""
    model = trained.model.optimized()
    logits, labels = [], []
    for split in ("val", "test"):
        images, split_labels = trained.images(split)
        logits.append(model(images))
        labels.append(split_labels)
    return torch.cat(logits, dim=1).clone(), torch.cat(labels).clone()


def top1(combined: Tensor, labels: Tensor, fit: Tensor, rest: Tensor, costs: list[float]) -> Tensor:
    """Top-1 in percent of each exit and budget on held-out images."""
    confidences, answers = combined.softmax(dim=2).max(dim=2)
    correct = answers == labels
    budgets = [share * costs[-1] for share in FRACTIONS if share * costs[-1] >= costs[0]]
    fitted = fit_budgets(confidences[:, fit], correct[:, fit], costs, budgets)
    scores = [score_budget(confidences[:, rest], correct[:, rest], costs, row) for row in fitted]
    exits = 100 * correct[:, rest].double().mean(dim=1)
    return torch.cat([exits, torch.tensor([score.top1 for score in scores])])


def main() -> None:
    """Print top-1 of each ensemble, and its difference to single exits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="of the run")
    parser.add_argument("--weights", type=Path, required=True, help="its snapshot.pt")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = TrainOutput.load(arguments.config, arguments.weights)
    logits, labels = all_logits(trained)
    costs = [float(cost) for cost in mult_adds(trained.run.model)]
    results: dict[str, list[Tensor]] = {name: [] for name in WAYS}
    for repeat in range(arguments.repeats):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(repeat))
        fit, rest = order.tensor_split(2)
        for name, combine in WAYS.items():
            combined = combine(logits, fit, labels)
            results[name].append(top1(combined, labels, fit, rest, costs))
    budgets = [f for f in FRACTIONS if f * costs[-1] >= costs[0]]
    columns = [f"exit {k}" for k in range(1, len(costs) + 1)] + [f"budget {f}" for f in budgets]
    print(f"{trained.run.name}: {len(labels)} images, half to fit on\n")
    print(f"| top-1, % | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    base = torch.stack(results["own logits"])
    for name, rows in results.items():
        values = torch.stack(rows)
        form = ".2f" if name == "own logits" else "+.2f"
        shown = values if name == "own logits" else values - base
        cells = (
            f"{mean:{form}} ± {std:.2f}"
            for mean, std in zip(shown.mean(0).tolist(), shown.std(0).tolist(), strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
