"""Which images are held out."""

from collections.abc import Sequence

import numpy as np


def hold_out(
    labels: np.ndarray, share: float, seed: int, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Split the images of every class by the same share, at least one on either side.

    Returns:
        Sorted indices of the images kept and of those held out.

    Raises:
        ValueError: a class has fewer than two images.
    """
    held = []
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        if not len(members):  # a class of data.class_index of which there are no images here
            continue
        if len(members) < 2:
            raise ValueError(
                f"class {name!r} has {len(members)} training images, but holding out validation "
                "images needs 2 or more: add images or leave the class out"
            )
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(np.random.default_rng((seed, label)).permutation(members)[:count])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
