"""Every way through the program sees the same pixels of a file, and those that are in it."""

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from unipt_jax.captioning import runner, sources
from unipt_jax.data import builders, images, pipeline, tokenization
from unipt_jax.data.annotations import Record
from unipt_jax.encoder import Processor
from unipt_jax.evaluation import features
from unipt_jax.search import app, index
from unipt_jax.search.gallery import Gallery

HEIGHT, WIDTH = 32, 12
RNG = np.random.default_rng(0)
RGB = RNG.integers(256, size=(40, 20, 3), dtype=np.uint8)
GREY = RGB[..., 0]
HOLES = RNG.random((40, 20)) < 0.5
ON_WHITE = np.where(HOLES[..., None], 255, RGB)
BITS = np.where(GREY > 127, 255, 0).astype(np.uint8)
COLOURS = np.array([[250, 0, 250], [10, 200, 30], [0, 0, 90], [255, 255, 0]], np.uint8)
CODES = (GREY % 4).astype(np.uint8)


def thrice(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def alpha(colours):
    return np.dstack([colours, np.where(HOLES, 0, 255).astype(np.uint8)])


def palette():
    image = Image.fromarray(CODES).convert("P")
    image.putpalette(COLOURS.tobytes())
    return image


def saved(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_pillow_alone(content):
    """For lossy formats, whose pixels are the decoder's to choose."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def files():
    """Yields each file's name and content, and its pixels as the arrays above have them."""
    picture = Image.fromarray(RGB)
    yield (
        "la.png",
        saved(Image.fromarray(alpha(GREY)), "PNG"),
        np.where(HOLES[..., None], 255, thrice(GREY)),
    )
    yield "rgba.PNG", saved(Image.fromarray(alpha(RGB)), "PNG"), ON_WHITE
    hole = np.where((CODES == 0)[..., None], 255, COLOURS[CODES])
    yield "palette.png", saved(palette(), "PNG", transparency=0), hole
    yield "16.png", saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), thrice(GREY)
    yield "1.png", saved(Image.fromarray(GREY > 127), "PNG"), thrice(BITS)
    yield "l.bmp", saved(Image.fromarray(GREY), "BMP"), thrice(GREY)
    yield "float.tiff", saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), thrice(GREY)
    sideways = Image.fromarray(np.ascontiguousarray(np.rot90(RGB)))
    yield "turned.tif", saved(sideways, "TIFF", exif=turned(6)), RGB
    yield (
        "alpha.webp",
        saved(Image.fromarray(alpha(RGB)), "WEBP", lossless=True, exact=True),
        ON_WHITE,
    )
    frames = [palette(), Image.new("P", (20, 40))]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    yield "film.gif", content, COLOURS[CODES]
    for name, kind in (("lossy.avif", "AVIF"), ("lossy.jpeg", "JPEG")):
        content = saved(picture, kind)
        yield name, content, as_pillow_alone(content)
    for name, stored in (("cmyk.JPG", picture), ("turned.jpg", sideways)):
        content = saved(stored.convert("CMYK"), "JPEG", exif=turned(6 if "turned" in name else 1))
        expected = as_pillow_alone(content)
        yield name, content, np.rot90(expected, -1) if "turned" in name else expected


FILES = {name: (content, pixels.astype(np.uint8)) for name, content, pixels in sorted(files())}
CAPTION = ("a man in red",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("images")
    for name, (content, _) in FILES.items():
        (made / name).write_bytes(content)
    return made


def resized(pixels):
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def prepared(folder, workdir, size):
    """What training and evaluation see of a prepared data set, by the files' names."""
    records = [Record(name, CAPTION, "", "train", at) for at, name in enumerate(FILES)]
    assert builders.check_images(records, folder) == []
    builders.write(
        records,
        source=folder,
        name="difficult",
        workdir=workdir,
        tokenizer="",
        quarantined=0,
        notices={},
        pixels=size,
    )
    split = builders.open_split(workdir, "train")
    how = pipeline.Preprocess(HEIGHT, WIDTH, 0.0, 8, (), 0.15, False)
    tokenizer = tokenization.load("examples/tokenizer")
    batch = pipeline.train_batches(split, tokenizer, how, batch_size=len(FILES), seed=0)[0]
    names = [split.images[int(number)]["path"] for number in batch["record"]]
    evaluated = [features._load(split, at, HEIGHT, WIDTH) for at in range(len(FILES))]
    return dict(zip(names, batch["image"], strict=True)), dict(zip(FILES, evaluated, strict=True))


def captioned(images, workdir):
    source = sources.open_source(str(images), workdir)
    load = runner.LoadImages(source, HEIGHT, WIDTH, len(FILES), stop=True)
    batch = load(range(source.size))
    return dict(zip(batch["paths"], batch["image"], strict=True))


def test_every_way_sees_the_pixels_that_a_file_holds(folder, tmp_path):
    """Prepared or not, in training, evaluation, captioning, search and by the library's door.

    (P48, P50, P51, P96)
    """
    workdirs = [tmp_path / name for name in ("encoded", "pixels", "captions", "again")]
    for workdir in workdirs[2:]:
        workdir.mkdir()
    trained, evaluated = prepared(folder, workdirs[0], None)
    trained_on_pixels, evaluated_on_pixels = prepared(folder, workdirs[1], (HEIGHT, WIDTH))
    door = Processor(HEIGHT, WIDTH, tokenization.load("examples/tokenizer"), 8).images
    load = index._Load(folder, tuple(FILES), len(FILES), (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    searched = load(range(len(FILES)))
    opened = [Image.open(folder / name) for name in FILES]
    page = mock.Mock(spec=Gallery, encode_image=lambda pixels: pixels)
    ways = {
        "training": trained,
        "training on pixels": trained_on_pixels,
        "evaluation": evaluated,
        "evaluation on pixels": evaluated_on_pixels,
        "captioning of a folder": captioned(folder, workdirs[2]),
        "captioning of a data set": captioned(workdirs[0], workdirs[3]),
        "paths": dict(zip(FILES, door([folder / name for name in FILES]), strict=True)),
        "Pillow's images": dict(zip(FILES, door(opened), strict=True)),
        "a picture that is sent": {
            name: images.resize(app._by_picture(page, str(folder / name)), HEIGHT, WIDTH)
            for name in FILES
        },
        "search": dict(zip(FILES, searched["image"], strict=True)),
        "search, for captions": dict(zip(FILES, searched["judged"], strict=True)),
    }
    for way, seen in ways.items():
        assert seen.keys() == FILES.keys(), way
        for name, (_, pixels) in FILES.items():
            np.testing.assert_array_equal(seen[name], resized(pixels), err_msg=f"{way}, {name}")
    for name, (_, pixels) in FILES.items():
        found = images.decode(index.read(folder, name), name)
        np.testing.assert_array_equal(found, pixels, err_msg=name)
