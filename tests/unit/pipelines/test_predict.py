"""Reading of the image files that are classified."""

import os

from pipelines.data.loading.image_files import read_images
from pipelines.predict import image_files
from ranet.model.metadata import Preprocessing
from tests.support.image_files import encoded, pixels


def preprocessing(size: int, crop_share: float = 7 / 8) -> Preprocessing:
    return Preprocessing(image_size=size, crop_share=crop_share, mean=(0,) * 3, std=(1,) * 3)


def test_folder_stands_for_the_images_below_it(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/notes.txt", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(pixels(0)))
    (tmp_path / "empty").mkdir()
    files, errors = image_files([f"{tmp_path}/", "x.png", f"{tmp_path}/empty"])
    assert files == [f"{tmp_path}/a/c.JPG", f"{tmp_path}/b.png", "x.png"]
    assert errors == [f"{tmp_path}/empty contains no image files"]


def test_central_square_has_the_share_that_the_network_names(tmp_path):
    image = pixels(0, 40, 60)
    (tmp_path / "a.png").write_bytes(encoded(image))
    for share, side in ((1.0, 40), (0.5, 20)):
        images, _ = read_images([f"{tmp_path}/a.png"], preprocessing(side, share), 10_000)
        top, left = (40 - side) // 2, (60 - side) // 2
        square = image[top : top + side, left : left + side].transpose(2, 0, 1)
        assert (images[f"{tmp_path}/a.png"] == square).all()


def test_unreadable_files_do_not_prevent_answers_for_the_others(tmp_path):
    for name in ("a.png", "z.jpg"):
        (tmp_path / name).write_bytes(encoded(pixels(0), "PNG"))
    (tmp_path / "large.png").write_bytes(encoded(pixels(0, 33, 32)))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "link.png").symlink_to("gone/x.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ("a", "large", "text", "link", "folder", "pipe", "missing")
    paths = [*(f"{tmp_path}/{name}.png" for name in names), f"{tmp_path}/z.jpg"]
    images, errors = read_images(paths, preprocessing(16), 32 * 32)
    assert list(images) == [paths[0], paths[-1]]
    assert all(image.shape == (3, 16, 16) for image in images.values())
    assert [error.removeprefix(f"{tmp_path}/") for error in errors] == [
        "large.png has 32 x 33 pixels, more than max_pixels, 1,024; shrink it, or raise max_pixels "
        "if the memory suffices",
        "text.png is not a readable image: unknown format; the accepted ones are AVIF, BMP, GIF, "
        "JPEG, PNG, PPM, TIFF, WEBP",
        "link.png is a broken link to gone/x.png",
        "folder.png is a folder, not an image file",
        "pipe.png is a named pipe, not an image file",
        "missing.png: no such file",
    ]


def test_file_with_a_name_in_latin_1_is_read(tmp_path):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(encoded(pixels(0)))
    images, errors = read_images([path], preprocessing(32), 10_000)
    assert list(images) == [path]
    assert not errors
