"""Choice of held-out images."""

from collections.abc import Sequence

import numpy as np

LISTED_CLASSES = 10
"""Number of classes in a message."""


def hold_out(
    labels: np.ndarray, share: float, seed: int, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out the same share of every class, at least one image.

    At least one image of every class is kept as well.

    Returns:
        Sorted indices of the kept images and of the held-out images.

    Raises:
        ValueError: a class has fewer than two images.
    """
    held = []
    too_few: list[str] = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        if not len(members):  # a class of data.class_index without images in this source
            continue
        if len(members) < 2:
            too_few.append(name)
            continue
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(np.random.default_rng((seed, label)).permutation(members)[:count])
    if too_few:
        raise ValueError(
            f"class {', '.join(map(repr, too_few[:LISTED_CLASSES]))} has 1 training images, but "
            "holding out validation images needs 2 or more: add images or remove the class"
        )
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
