"""What a run would take, and what it would lack: said before anything starts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
import torch
import yaml

import cluster.provisioning
from cluster.config import ClusterConfig
from cluster.errors import RunError, TrackingError
from cluster.execution.connection import connected, local_cpus
from cluster.execution.resources import wants_gpu
from cluster.provisioning.cluster_file import CLUSTER_FILE, ClusterSpec, read_cluster_spec
from cluster.storage.filesystem import resolve_storage
from cluster.storage.s3 import check_writable, is_uri
from cluster.tracking import client, runs
from pipelines.data.config import LOCAL_SOURCES, Split
from pipelines.data.format.metadata import read_info
from pipelines.data.loading.staging import remote_files
from pipelines.data.preflight import check_classes
from pipelines.data.sources.factory import DOWNLOADS, check_source, open_source
from pipelines.data.splits import hold_out
from pipelines.evaluation.budgets import check_budgets
from pipelines.run import Run, identity
from ranet import RANet, mult_adds
from ranet.config import TrainConfig
from ranet.training.schedule import is_checkpoint_due

RATES = Path(cluster.provisioning.__file__).with_name("throughput.yaml")
"""Measured training images a second, by network and device."""

IMAGENET_CLASSES, IMAGENET_TRAIN = 1000, 1_281_167
"""Image folders of so many classes that are not prepared yet are supposed to be ImageNet's, which
has so many training images; some of them are held out."""
IMAGENET_QUALITY = 90
IMAGENET_BYTES = {256: 16_370, 320: 23_622, 500: 43_240}
"""Bytes an image, stored as JPEG of that quality, by `data.max_side`: means of a thousand
photographs (docs/operating.md)."""
CIFAR = {"cifar10": (10, 5000), "cifar100": (100, 500)}
"""Classes, and training images of each."""


@dataclass
class PreflightReport:
    """Lines for people, and sentences on what keeps the run from starting."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)

    @property
    def starts(self) -> bool:
        """Whether the run would start."""
        return not self.lacks

    def __str__(self) -> str:
        """Give all of it as text."""
        told = [f"{name:<13} {value}" for name, value in self.lines]
        told += [f"LACKS         {sentence}" for sentence in self.lacks]
        return "\n".join([*told, "would start" if self.starts else "would not start"])

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Take an error that would end the run for something that it lacks."""
        try:
            yield
        except (RunError, TrackingError, ValueError, OSError) as error:
            self.lacks.append(str(error))


@dataclass(frozen=True)
class Place:
    """Where a run's workers would be."""

    gpus: int
    """GPUs of each worker."""
    device: str
    """Kind of GPU as Ray names it, or cpu."""
    num_workers: int
    """Workers at most."""
    offer: ClusterSpec | None
    """The cluster file whose machines would be rented; None where what is there will do."""


def preflight(run: Run, *, new_attempt: bool = False) -> PreflightReport:
    """Compute what a run would take and check what it needs; nothing is started or kept."""
    found = PreflightReport()
    costs = mult_adds(run.model)
    with torch.device("meta"):
        model = RANet(run.model)
    parameters = sum(each.numel() for each in model.parameters())
    found.lines += [
        ("network", f"{parameters / 1e6:.2f} M parameters, {len(costs)} exits, "
                    f"{costs[0] / 1e6:,.2f} to {costs[-1] / 1e6:,.2f} M mult-adds an image"),
    ]  # fmt: skip
    with found.checking():
        check_budgets(costs, run.evaluation.budget_fractions)
    with found.checking():
        client.check_reachable()
        runs.check_can_start(run.name, settings=identity(run), new_attempt=new_attempt)
    with found.checking():
        resolve_storage(run.cluster.storage_path)
    hand = None
    with found.checking():
        hand = _at_hand(run.cluster, found)
    num_images, cache_bytes = _images(run, found, is_here=hand is not None and hand.suffices)
    if hand is not None:
        with found.checking():
            place = _place(run.cluster, hand, cache_bytes, found)
            if num_images:
                _time(run, num_images, costs[-1], place, found)
    _checkpoints(run, model, num_images, found)
    return found


def _images(run: Run, found: PreflightReport, *, is_here: bool) -> tuple[int, int]:
    """Tell of the images; return those to train on, 0 where unknown, and the bytes to copy.

    Args:
        run: names them.
        found: is told of them.
        is_here: the run would be where this process is, and not on machines that are rented.
    """
    try:
        info = read_info(run.data, run.model.image_size)
    except FileNotFoundError as error:
        return _unprepared(run, found, str(error), is_here=is_here)
    except (ValueError, OSError) as error:
        found.lacks.append(str(error))
        return _suppose(run, found, "cannot be read")
    with found.checking():
        check_classes(info, run.data.source, run.model.num_classes)
    found.lines.append(("images", _counted(info.num_samples)))
    cache_bytes = 0
    if is_uri(info.folder):
        cache_bytes = sum(file.bytes for file in remote_files(info.folder))
    _staging(run, found, _size(cache_bytes))
    return info.num_samples["train"], cache_bytes


def _unprepared(
    run: Run, found: PreflightReport, missing: str, *, is_here: bool
) -> tuple[int, int]:
    """Tell of images that a start would prepare first, as far as it could."""
    data = run.data
    told = "not prepared yet: that comes first"
    if data.source in LOCAL_SOURCES and not data.source_dir:
        found.lacks.append(missing)
    elif data.source in LOCAL_SOURCES and not is_here and not is_uri(data.source_dir):
        told += f", from {data.source_dir} of the machines to rent, which was not looked for"
    else:
        with found.checking():
            check_source(data)
    if data.source in CIFAR:
        told += f", with a download where {data.source_dir or DOWNLOADS} lacks them"
    if is_uri(data.prepared_dir):
        with found.checking():
            check_writable("data.prepared_dir", data.prepared_dir)
    return _suppose(run, found, told)


def _suppose(run: Run, found: PreflightReport, told: str) -> tuple[int, int]:
    counts, stored_bytes = _supposed(run)
    if counts is None:
        found.lines.append(("images", f"{told}; their number is unknown"))
        return 0, 0
    found.lines.append(("images", f"{told}; {_counted(counts)} supposed"))
    size = f"about {_size(stored_bytes)}" if stored_bytes else "an unknown number of bytes"
    _staging(run, found, size)
    return counts["train"], stored_bytes if is_uri(run.data.prepared_dir) else 0


def _staging(run: Run, found: PreflightReport, size: str) -> None:
    is_remote = is_uri(run.data.prepared_dir)
    copied = f"{size} from S3 to each node" if is_remote else "none: read in place"
    found.lines.append(("to stage", copied))


def _supposed(run: Run) -> tuple[dict[Split, int] | None, int]:
    """Return how many images each split should have, and their bytes, 0 where unknown."""
    data = run.data
    if data.source == "digits":
        source = open_source(data, run.model.image_size)
        labels, test, pixels = source.train.labels, len(source.test.labels), run.model.image_size
    elif data.source in CIFAR:
        num_classes, each = CIFAR[data.source]
        labels, test, pixels = np.repeat(np.arange(num_classes), each), 10_000, 32
    elif data.source == "imagefolder" and run.model.num_classes == IMAGENET_CLASSES:
        held = round(IMAGENET_TRAIN * data.validation_share)
        counts: dict[Split, int] = {"train": IMAGENET_TRAIN - held, "val": held, "test": 50_000}
        known = data.image_format == "jpeg" and data.jpeg_quality == IMAGENET_QUALITY
        return counts, IMAGENET_BYTES.get(data.max_side, 0) * sum(counts.values()) * known
    else:
        return None, 0
    names = [str(label) for label in range(int(labels.max()) + 1)]
    kept, held_out = hold_out(labels, data.validation_share, data.split_seed, names)
    counts = {"train": len(kept), "val": len(held_out), "test": test}
    return counts, sum(counts.values()) * 3 * pixels**2 * (data.image_format == "raw")


def _counted(counts: Mapping[Split, int]) -> str:
    return ", ".join(f"{counts[split]:,} {split}" for split in counts)


@dataclass(frozen=True)
class AtHand:
    """The cluster that a run would find without renting, or this machine."""

    where: str
    resources: Mapping[str, float]
    """As Ray names them."""
    gpus: int
    """GPUs of each worker."""
    room: int
    """Workers that fit."""
    suffices: bool
    """Whether the run would be there: it fits, or has no use for a GPU."""


def _at_hand(cluster: ClusterConfig, found: PreflightReport) -> AtHand:
    """Look at the cluster that is here, or at this machine."""
    if address := os.environ.get("RAY_ADDRESS"):
        with connected(cluster):
            gpus, has = int(wants_gpu(cluster)), ray.cluster_resources()
        where, cores, told = f"the cluster at {address}", has.get("CPU", 0), ""
    else:
        here = torch.cuda.device_count()
        enough = cluster.device == "auto" and here >= cluster.min_workers
        gpus = int(cluster.device == "gpu" or enough)
        has, where = {"CPU": os.cpu_count() or 1, "GPU": here}, "this machine"
        cores = has["CPU"] if gpus else local_cpus(cluster)
        told = ", which share its CPUs" if cores > has["CPU"] else ""
    room = int(min(
        cores // cluster.cpus_per_worker, has.get("GPU", 0) // gpus if gpus else float("inf")
    ))  # fmt: skip
    found.lines.append((
        "cluster",
        f"{where} has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs: room for {room} "
        f"of {cluster.min_workers} to {cluster.max_workers} workers{told}",
    ))  # fmt: skip
    return AtHand(where, has, gpus, room, room >= cluster.min_workers or not gpus)


def _place(cluster: ClusterConfig, hand: AtHand, cache_bytes: int, found: PreflightReport) -> Place:
    """Find room for the workers: at hand, or in the cluster file."""
    gpus, room = hand.gpus, hand.room
    if hand.suffices:
        if room < cluster.min_workers:
            found.lacks.append(
                f"cluster.num_workers asks for {cluster.min_workers} workers of "
                f"{cluster.cpus_per_worker} CPUs, but {hand.where} has room for {room}; ask for "
                "less or add nodes"
            )
        kinds = [
            name.partition(":")[2]
            for name in hand.resources
            if name.startswith("accelerator_type:")
        ]
        device = ", ".join(kinds) or "unknown" if gpus else "cpu"
        return Place(gpus, device, min(room, cluster.max_workers), None)
    offer = read_cluster_spec(CLUSTER_FILE)
    found.lacks += offer.lacks(cluster, gpus=gpus, cache_bytes=cache_bytes)
    places = list(offer.places(cluster, gpus=gpus))[: cluster.max_workers]
    machines = " and ".join(dict.fromkeys(
        f"{group.machine_name} ({'spot' if group.is_spot else 'on demand'})" for group in places
    ))  # fmt: skip
    found.lines.append(("to rent", f"{machines or 'nothing'}, by {CLUSTER_FILE}"))
    device = places[0].machine.accelerator if places else "unknown"
    return Place(gpus, device, len(places), offer)


def _time(run: Run, num_images: int, cost: int, place: Place, found: PreflightReport) -> None:
    """Tell steps, hours and dollars."""
    steps = num_images // run.train.batch_size
    total = run.train.epochs * steps * run.train.batch_size
    found.lines.append((
        "steps",
        f"{run.train.epochs} epochs of {steps:,}, {run.train.epochs * steps:,} in all; "
        f"{total:,} images to train on",
    ))  # fmt: skip
    price = (
        place.offer.dollars_per_hour(run.cluster, gpus=place.gpus, num_workers=place.num_workers)
        if place.offer
        else 0.0
    )
    rate = stored_rate(run.train, cost, place.device, run.cluster.cpus_per_worker)
    if rate is None:
        found.lines.append((
            "images/s",
            f"unknown: {RATES.name} has no rate of this network in {run.train.precision} on "
            f"{place.device}",
        ))  # fmt: skip
    else:
        found.lines.append((
            "images/s",
            f"{rate * place.num_workers:,.0f} with {place.num_workers} workers, {rate:g} each "
            "(measured; all together computed)",
        ))  # fmt: skip
    supposed = "" if rate else "were it 100 images/s a worker: "
    hours = total / ((rate or 100.0) * max(place.num_workers, 1)) / 3600
    found.lines.append(("time", f"{supposed}{hours:,.2f} h, validation and starts not counted"))
    if place.offer:
        found.lines.append((
            "price",
            f"${price:.2f} an hour with {place.num_workers} workers and the head; "
            f"{supposed}${price * hours:,.2f} (prices stated in cluster/provisioning/instance_types.py)",
        ))  # fmt: skip


def _checkpoints(run: Run, model: torch.nn.Module, num_images: int, found: PreflightReport) -> None:
    size = checkpoint_bytes(run.train, model)
    keep = run.cluster.keep_checkpoints
    line = f"{_size(size)} each, {keep} kept"
    if num_images:
        steps = num_images // run.train.batch_size
        places = ((done // steps, done % steps) for done in range(1, run.train.epochs * steps + 1))
        number = sum(is_checkpoint_due(run.train, *place, steps) for place in places) + 1
        line += f"; {number:,} in all, {_size(number * size)} to {run.cluster.storage_path}"
    found.lines.append(("checkpoints", line))


def checkpoint_bytes(train: TrainConfig, model: torch.nn.Module) -> int:
    """Compute the size of a checkpoint: weights, momentum, best weights, and their average."""
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    momentum = sum(each.numel() * each.element_size() for each in model.parameters())
    return weights * (3 if train.ema.decay else 2) + momentum


def stored_rate(train: TrainConfig, cost: int, device: str, cores: int) -> float | None:
    """Find the measured images a second of one worker; None where nobody measured them.

    Args:
        train: for its precision.
        cost: mult-adds of the last exit, by which a network is known.
        device: kind of GPU, or cpu.
        cores: CPUs of a worker, which count for device cpu.
    """
    for entry in yaml.safe_load(RATES.read_bytes()):
        known = (entry["mult_adds"], entry["precision"], entry["device"], entry.get("cores"))
        if known == (cost, train.precision, device, cores if device == "cpu" else None):
            return float(entry["images_per_second"])
    return None


def _size(count: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:,} bytes"
