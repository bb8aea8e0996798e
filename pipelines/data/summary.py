"""Summary of prepared images: files, classes, splits, duplicates, mean and deviation."""

from dataclasses import asdict, fields
from typing import Any

from pipelines.data.format.metadata import DatasetInfo, SourceRecord


def describe(info: DatasetInfo) -> str:
    """Describe the prepared images in several lines."""
    lines = [
        f"{info.folder}: {len(info.class_names)} classes",
        f"  files  {describe_files(info.source)}",
    ]
    for split, count in info.num_samples.items():
        per_class = info.samples_per_class[split]
        lines.append(
            f"  {split:5}  {count:>9,} images, {min(per_class):,} to {max(per_class):,} per class, "
            f"heights {_range(info.heights[split])}, widths {_range(info.widths[split])}"
        )
        if skipped := info.skipped[split]:
            lines.append(f"         {len(skipped):>9,} unreadable, skipped:")
            lines += [f"           {reason}" for reason in skipped]
    duplicates = [f"{count:,} in {pair}" for pair, count in info.duplicates.items()]
    lines.append(f"  equal files in two splits: {', '.join(duplicates) or 'none'}")
    lines.append(f"  training images: mean {list(info.mean)}, std {list(info.std)}")
    return "\n".join(lines)


def describe_files(source: SourceRecord) -> str:
    """Describe the files of a source: seen, taken, skipped by reason."""
    images = source.num_train + source.num_test
    skipped = [f"{count:,} {reason}" for reason, count in source.files_skipped.items()]
    return (
        f"{source.files_seen:,} seen, {images:,} images, "
        f"{sum(source.files_skipped.values()):,} skipped"
        + (f" ({', '.join(skipped)})" if skipped else "")
    )


def summary_of(info: DatasetInfo) -> dict[str, Any]:
    """Return the summary for a JSON file."""
    return {
        **asdict(info),
        "images_per_class": {
            split: {"min": min(counts), "max": max(counts)}
            for split, counts in info.samples_per_class.items()
        },
    }


def info_from_summary(summary: dict[str, Any]) -> DatasetInfo:
    """Make prepared images' description from the result of `summary_of`, read from JSON.

    Raises:
        ValueError: an entry is missing.
    """
    try:
        values: dict[str, Any] = {field.name: summary[field.name] for field in fields(DatasetInfo)}
        values["source"] = SourceRecord(**summary["source"])
        return DatasetInfo(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the summary of the images has another format ({error!r})") from error


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low} to {high}"
