"""Checks of prepared images before a run starts."""

from pipelines.data.format.metadata import DatasetInfo


def check_classes(info: DatasetInfo, source: str, num_classes: int) -> None:
    """Check that the network has as many classes as the images.

    Raises:
        ValueError: The numbers of classes differ.
    """
    if len(info.class_names) != num_classes:
        raise ValueError(
            f"model.num_classes must be {len(info.class_names)}, the number of classes of data.source "
            f"{source}, got {num_classes}"
        )
