"""Published accuracy curves."""

from pipelines.data.sources.class_index import read_class_index
from pipelines.tune import classes_in
from tests.support.image_files import dataset_info
from tuning.reference_curves import RANET_CURVES, reference_curve_for


def test_published_curve_is_chosen_by_the_class_names():
    animals = ("bird", "cat", "deer", "dog", "frog", "horse")
    cifar10 = ("airplane", "automobile", *animals, "ship", "truck")
    hundred = ("apple", "aquarium_fish", *map(str, range(98)))
    imagenet = read_class_index("configs/imagenet_classes.txt")
    found = [reference_curve_for(names) for names in (cifar10, hundred, imagenet)]
    assert found == ["cifar10", "cifar100", "imagenet"] == list(RANET_CURVES)
    digits = tuple("0123456789")
    stl10 = ("airplane", "car", "monkey", "bird", "cat", "deer", "dog", "horse", "ship", "truck")
    assert {
        reference_curve_for(names) for names in (digits, stl10, imagenet[:100], cifar10[:9])
    } == {""}
    info = dataset_info(class_names=cifar10, samples_per_class={"train": (5,) * 9 + (0,)})
    assert classes_in(info) == cifar10[:9]
