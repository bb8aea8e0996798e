"""Checks of a run's images before anything starts."""

from pipelines.data.format.metadata import DatasetInfo


def check_classes(info: DatasetInfo, source: str, num_classes: int) -> None:
    """Refuse a network that tells apart another number of classes than the images have."""
    if len(info.class_names) != num_classes:
        raise ValueError(
            f"model.num_classes must be {len(info.class_names)}, the classes of data.source "
            f"{source}, got {num_classes}"
        )
