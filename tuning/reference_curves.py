"""Published accuracy curves of RANets, plotted beside the front of a sweep."""

from collections.abc import Collection, Mapping

RANET_CURVES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "cifar10": ((15e6, 92.0), (20e6, 92.9), (30e6, 93.6), (40e6, 94.0)),
    "cifar100": ((20e6, 71.0), (25e6, 71.9), (50e6, 74.9)),
    "imagenet": ((0.75e9, 70.5), (1e9, 72.4), (1.5e9, 74.6), (2e9, 75.1)),
}
"""Budgeted batch classification by RANet (arXiv:2003.07326), by data set: mean mult-adds per image
and top-1 in percent on the test images. Read from the figures in the repositories of authors, to
about 0.1 points."""
_MARKERS: Mapping[str, tuple[int, str]] = {
    "cifar10": (10, "automobile"),
    "cifar100": (100, "aquarium_fish"),
    "imagenet": (1000, "n01440764"),
}
"""Number of classes of each data set, and a class that distinguishes it from data sets of this
size."""


def reference_curve_for(class_names: Collection[str]) -> str:
    """Return the published data set with these classes.

    Args:
        class_names: names of the classes that have images.

    Returns:
        A key of `RANET_CURVES`; empty for any other data set.
    """
    for name, (count, marker) in _MARKERS.items():
        if len(class_names) == count and marker in class_names:
            return name
    return ""
