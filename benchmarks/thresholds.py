"""Compare the joint rule for exit thresholds with the geometric rule.

    python -m benchmarks.thresholds [--repeats 10] [--plot thresholds.png]
    python -m benchmarks.thresholds --trained configs/digits.yaml=FOLDER/exit_outputs.pt

Every repetition samples the fitting images again, fits all budgets on them and scores the rest. The
networks are synthetic ones whose exits have known faults, small classifiers trained on
scikit-learn's digits, and trained RANets given by config and exit_outputs.pt ("val" and "test" are
pooled, then split in halves).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipelines.run import read_run
from ranet import mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs
from ranet.inference.threshold_search import Rule, fit_budgets
from ranet.inference.thresholds import score_budget

RULES: tuple[Rule, ...] = ("geometric", "joint")
FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Net:
    """Cached exit outputs of one network on held-out images."""

    name: str
    confidences: Tensor
    """(exits, samples)."""
    correct: Tensor
    """(exits, samples)."""
    costs: Sequence[float]
    num_fit: int
    """Images to fit on; the rest are scored."""

    @property
    def budgets(self) -> list[float]:
        """Mean costs to compare at, as fractions of the last exit's cost."""
        return [f * self.costs[-1] for f in FRACTIONS if f * self.costs[-1] >= self.costs[0]]


def main() -> None:
    """Print the comparison as tables, and plot it if asked to."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    nets = [*synthetic_nets(), *digits_nets()]
    for number, pair in enumerate(arguments.trained, start=1):
        config, _, scores = pair.partition("=")
        nets.append(trained_net(number, Path(config), Path(scores)))
    results = {}
    for net in nets:
        results[net.name] = compare(net, arguments.repeats)
        print_table(net, results[net.name])
    print_times()
    if arguments.plot:
        plot(nets, results, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10, help="random splits (default: 10)")
    parser.add_argument(
        "--trained",
        nargs="+",
        default=[],
        metavar="CONFIG=EXIT_OUTPUTS",
        help="runs, with their scores.pt",
    )
    parser.add_argument("--plot", type=Path, help="file of the plotted curves")
    return parser.parse_args()


def synthetic_nets() -> list[Net]:
    """Six exits on images of varying difficulty, one possibly faulty."""
    good = [0.3, 0.7, 1.0, 1.3, 1.5, 1.65]
    harmful = [0.3, 0.7, 1.0, 0.2, 1.5, 1.4]
    costs = [10.0, 25.0, 40.0, 60.0, 80.0, 100.0]
    nets = [
        Net("every exit pays", *answers(good), costs, 2000),
        Net("every exit pays, 180 to fit", *answers(good), costs, 180),
    ]
    confidences, correct = answers(good)
    confidences[3], correct[3] = confidences[2], correct[2]
    nets.append(Net("useless exit 4", confidences, correct, costs, 2000))
    nets.append(Net("harmful exits 4 and 6", *answers(harmful), costs, 2000))
    confidences, correct = answers(good)
    unfounded = torch.randn(confidences.shape[1], generator=torch.Generator().manual_seed(1)).abs()
    confidences[1] = torch.sigmoid(1.2 * confidences[1].logit().abs() / 2 + 4 * unfounded)
    nets.append(Net("over-confident exit 2", confidences, correct, costs, 2000))
    return nets


def answers(skills: Sequence[float], num_samples: int = 4000) -> tuple[Tensor, Tensor]:
    """Sample confidences and correctness from skill and difficulty."""
    generator = torch.Generator().manual_seed(0)
    difficulty, shared = torch.randn(2, num_samples, generator=generator)
    own, seen = torch.randn(2, len(skills), num_samples, generator=generator)
    margins = torch.tensor(skills)[:, None] - difficulty + 0.3 * shared + 0.5 * own
    return torch.sigmoid(2 * (margins + 0.3 * seen).abs()), margins > 0


def digits_nets() -> list[Net]:
    """Classifiers of growing capacity as exits, two on coarse pixels."""
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = pixels[order].float().reshape(-1, 1, 8, 8) / 16
    labels = labels[order]
    num_train = 600
    confidences, correct, costs = [], [], []
    torch.manual_seed(0)
    for pool, hidden in ((2, 0), (1, 4), (1, 6), (2, 8), (1, 16), (1, 32)):
        inputs = images.shape[-1] ** 2 // pool**2
        layers = [nn.AvgPool2d(pool), nn.Flatten()]
        if hidden:
            layers += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
        else:
            layers += [nn.Linear(inputs, 10)]
        classifier = nn.Sequential(*layers)
        train(classifier, images[:num_train], labels[:num_train])
        with torch.inference_mode():
            confidence, answer = classifier(images[num_train:]).softmax(1).max(1)
        confidences.append(confidence)
        correct.append(answer == labels[num_train:])
        own_cost = inputs * hidden + hidden * 10 if hidden else inputs * 10
        costs.append(float(own_cost + sum(costs[-1:])))
    cached = torch.stack(confidences), torch.stack(correct), costs
    half = len(confidences[0]) // 2
    return [Net("digits", *cached, half), Net("digits, 180 to fit", *cached, 180)]


def train(classifier: nn.Module, images: Tensor, labels: Tensor, epochs: int = 30) -> None:
    """Train briefly, so that mistakes are left."""
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(images[batch]), labels[batch]).backward()
            optimizer.step()


def trained_net(number: int, config: Path, path: Path) -> Net:
    """Read the scores of a trained RANet."""
    run = read_run([f"--config={config}"])
    saved = torch.load(path, weights_only=True)
    splits = [SplitOutputs.from_state(saved[split]).single for split in ("val", "test")]
    confidences = torch.cat([split.confidences for split in splits], dim=1)
    correct = torch.cat([split.correct for split in splits], dim=1)
    costs = [float(cost) for cost in mult_adds(run.model)]
    name = f"RANet {number}: {run.name}"
    return Net(name, confidences, correct, costs, correct.shape[1] // 2)


def compare(net: Net, repeats: int) -> dict[Rule, Tensor]:
    """Score each rule on held-out images, (repeats, budgets, 2)."""
    results: dict[Rule, list[list[tuple[float, float]]]] = {rule: [] for rule in RULES}
    for repeat in range(repeats):
        generator = torch.Generator().manual_seed(repeat)
        order = torch.randperm(net.correct.shape[1], generator=generator)
        fit, unseen = order[: net.num_fit], order[net.num_fit :]
        for rule in RULES:
            fitted = fit_budgets(
                net.confidences[:, fit], net.correct[:, fit], net.costs, net.budgets, rule=rule
            )
            scores = [
                score_budget(net.confidences[:, unseen], net.correct[:, unseen], net.costs, row)
                for row in fitted
            ]
            results[rule].append([(score.top1, score.mean_cost) for score in scores])
    return {rule: torch.tensor(rows) for rule, rows in results.items()}


def print_table(net: Net, results: dict[Rule, Tensor]) -> None:
    """Print top-1, paired difference and cost of both rules as Markdown."""
    budgets = torch.tensor(net.budgets)
    singles = " ".join(f"{top1:.1f}" for top1 in (100 * net.correct.float().mean(1)).tolist())
    print(f"\n### {net.name}: {net.num_fit} to fit, {net.correct.shape[1] - net.num_fit} to score")
    print(f"\nExits alone: top-1 {singles}, cost {' '.join(f'{c:g}' for c in net.costs)}\n")
    fractions = [f"{budget / net.costs[-1]:.1f}" for budget in net.budgets]
    print(f"| budget | {' | '.join(fractions)} |")
    print("|---" * (len(fractions) + 1) + "|")
    for rule in RULES:
        print_row(f"{rule} top-1", results[rule][..., 0], ".2f")
    print_row("joint - geometric", results["joint"][..., 0] - results["geometric"][..., 0], "+.2f")
    for rule in RULES:
        print_row(f"{rule} cost / budget", results[rule][..., 1] / budgets, ".3f")


def print_row(name: str, values: Tensor, form: str) -> None:
    """Print mean and standard deviation over the repeats (repeats, budgets)."""
    pairs = zip(values.mean(0).tolist(), values.std(0).tolist(), strict=True)
    cells = (f"{mean:{form}} ± {std:{form.lstrip('+')}}" for mean, std in pairs)
    print(f"| {name} | {' | '.join(cells)} |")


def print_times() -> None:
    """Print how long 40 budgets of a large validation set take."""
    confidences, correct = answers([0.3, 0.7, 1.0, 1.3, 1.5, 0.9, 1.65, 1.6], 50_000)
    costs = [10.0, 25.0, 40.0, 60.0, 80.0, 100.0, 120.0, 130.0]
    print("\n### Time: 50,000 images, 8 exits, 40 budgets, one thread\n")
    for rule in RULES:
        start = time.process_time()
        fit_budgets(confidences, correct, costs, torch.linspace(13, 130, 40), rule=rule)
        print(f"- {rule}: {time.process_time() - start:.1f} CPU seconds")


def plot(nets: Sequence[Net], results: dict[str, dict[Rule, Tensor]], path: Path) -> None:
    """Plot held-out top-1 against mean cost, one panel per network."""
    columns = 4
    rows = -(-len(nets) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    panels = list(grid.flat)
    for panel in panels:
        panel.axis("off")
    for panel, net in zip(panels, nets, strict=False):
        panel.axis("on")
        for rule in RULES:
            top1, cost = results[net.name][rule].unbind(-1)
            panel.errorbar(
                cost.mean(0) / net.costs[-1], top1.mean(0), top1.std(0), label=rule, capsize=2
            )
        panel.set(title=net.name, xlabel="mean cost / cost of the last exit", ylabel="top-1, %")
    panels[0].legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
