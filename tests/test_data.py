"""Reading data sets: each kind comes back as it was written; each broken one is an InputError of one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from simpe.data import DataSet, encode_labels, read
from simpe.errors import InputError

IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return file.getvalue()


def npz_of(**members: bytes) -> bytes:
    """An .npz whose checksums are right, whatever its members hold."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def save(folder: Path, name: str, image: Image.Image) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)


def refused(path: str | Path, *parts: str, unit: str | None = None, split: str = "train") -> None:
    """The path is refused by one line that holds every part."""
    with pytest.raises(InputError) as caught:
        read(path, unit, split)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def reads_or_refuses(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), {name: content})
        try:
            data = read(path / name if name.endswith(".npz") else path)
        except InputError:
            return
    assert len(data.samples) > 0
    assert data.labels is None or data.labels.shape == (len(data.samples),)


def damage(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few bytes replaced, then cut, or with something behind it."""
    spots = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)

    def apply(args: tuple[list[tuple[int, int]], int, bytes]) -> bytes:
        flips, end, tail = args
        changed = bytearray(content)
        for at, value in flips:
            changed[at] = value
        return bytes(changed[:end]) + tail

    ends = st.one_of(st.just(len(content)), st.integers(0, len(content)))
    return st.tuples(spots, ends, st.one_of(st.just(b""), st.binary(max_size=3))).map(apply)


# The data set itself


def test_repr_shows_nothing() -> None:
    data = DataSet(IMAGES, LABELS, LABELS, ("a", "b"))
    assert repr(data) == str(data) == "DataSet(...)"


def test_an_error_is_one_plain_line() -> None:
    assert str(InputError("a\nb\r\x1b[2Jc\u2028d\udcff")) == "a?b??[2Jc?d?"


def test_sklearn_digits() -> None:
    from sklearn.datasets import load_digits

    data = read("sklearn")
    raw = load_digits()
    assert data.samples.dtype == np.uint8
    assert data.samples.shape == (1797, 8, 8)
    assert set(data.samples[raw.images == 16]) == {255}
    assert np.abs(data.samples - raw.images * 255 / 16).max() <= 0.5
    assert data.labels is not None
    assert np.array_equal(data.labels, raw.target)
    assert data.classes == tuple("0123456789")
    assert np.array_equal(read("sklearn", split="test").samples, data.samples)  # what has no test split is read whole
    refused("sklearn", "sklearn", "no unit 'user'", unit="user")


def test_what_is_not_a_data_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"notes.txt": b"hello", "empty/.hidden": b"", "broken\nname.npz": b"junk"})
    refused(tmp_path / "nowhere", "nowhere", "no such file")
    refused(tmp_path / "nowhere.npz", "nowhere.npz", "no such file")
    refused(tmp_path / "nul\0", "no such file")
    refused(tmp_path / "notes.txt", "notes.txt", "not a data set", ".npz")
    refused(tmp_path / "empty", "empty", "no data")
    refused(tmp_path / "broken\nname.npz", "broken?name.npz", "damaged")
    refused("sklearn", "'dev'", "'train' or 'test'", split="dev")


# IDX


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "form", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}.idx{}", "emnist-x-{}-{}-idx{}-ubyte"]
)
def test_idx_folder(tmp_path: Path, form: str, packed: bool) -> None:
    for split, shift in (("train", 0), ("t10k", 1)):
        for role, array in (("images", IMAGES + shift), ("labels", LABELS + shift)):
            name = form.format(split, role, array.ndim) + (".gz" if packed else "")
            write(tmp_path, {name: gzip.compress(idx(array)) if packed else idx(array)})
    write(
        tmp_path,
        {"._train-images-idx3-ubyte": b"hidden", "readme.txt": b"", "train-images-idx3-ubyte.d/x": b""},
    )
    for split, shift in (("train", 0), ("test", 1)):
        data = read(tmp_path, split=split)
        assert data.samples.dtype == np.uint8
        assert np.array_equal(data.samples, IMAGES + shift)
        assert data.labels is not None
        assert np.array_equal(data.labels, LABELS + shift)
        assert data.units is None
        assert data.classes is None


@settings(max_examples=60, deadline=None)
@given(
    images=st.one_of(
        hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)),
        hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).map(lambda s: (*s, 3))),
    ),
    packed=st.booleans(),
    labelled=st.booleans(),
)
def test_idx_round_trip(images: np.ndarray, packed: bool, labelled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = gzip.compress(idx(images)) if packed else idx(images)
        path = write(Path(folder), {f"train-images-idx{images.ndim}-ubyte{'.gz' * packed}": content})
        labels = np.arange(len(images))
        if labelled:
            write(path, {"train-labels-idx1-ubyte": idx(labels)})
        data = read(path)
    assert np.array_equal(data.samples, images)
    assert (data.labels is not None) == labelled
    assert data.labels is None or np.array_equal(data.labels, labels)


BROKEN_IDX: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty file": (lambda b: b"", "not an IDX file"),
    "short magic": (lambda b: b[:3], "not an IDX file"),
    "magic": (lambda b: b"\1" + b[1:], "not an IDX file"),
    "type": (lambda b: b[:2] + b"\x0d" + b[3:], "unsigned bytes"),
    "one dimension": (lambda b: b[:3] + b"\1" + b[4:], "3 or 4 dimension(s)"),
    "255 dimensions": (lambda b: b[:3] + b"\xff" + b[4:], "3 or 4 dimension(s)"),
    "no sizes": (lambda b: b[:9], "shorter"),
    "one byte short": (lambda b: b[:-1], "shorter"),
    "one byte more": (lambda b: b + b"\0", "longer"),
    "no rows": (lambda b: b[:4] + bytes(4) + b[8:16], "empty"),
    "no rows, absurd sizes": (lambda b: b[:4] + bytes(4) + b"\xff" * 8, "empty"),
    "100 GB": (lambda b: b[:4] + struct.pack(">I", 5_000_000_000 // 2) + b[8:], "shorter"),
    "more than memory can address": (lambda b: b[:4] + b"\xff" * 12 + b[16:], "shorter"),
    "four dimensions, not of colour": (
        lambda b: b[:3] + b"\4" + b[4:16] + struct.pack(">I", 1) + b[16:],
        "(n, h, w, 3)",
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", BROKEN_IDX)
def test_broken_idx_is_refused(tmp_path: Path, case: str, packed: bool) -> None:
    surgery, part = BROKEN_IDX[case]
    name = "train-images-idx3-ubyte" + ".gz" * packed
    content = surgery(idx(IMAGES))
    write(tmp_path, {name: gzip.compress(content) if packed else content})
    refused(tmp_path, name, part)


@pytest.mark.parametrize(
    "surgery",
    [
        lambda b: b"",
        lambda b: b[:1],
        lambda b: b[:20],
        lambda b: b[:-1],
        lambda b: b[:-8] + bytes(4) + b[-4:],
        lambda b: b + b"junk",
        lambda b: b[:12] + b"\xff\xff" + b[14:],
        lambda b: idx(IMAGES),
    ],
    ids=["empty", "one byte", "half", "a byte short", "checksum", "junk behind", "deflate", "not packed"],
)
def test_broken_gzip_is_refused(tmp_path: Path, surgery: Callable[[bytes], bytes]) -> None:
    write(tmp_path, {"train-images-idx3-ubyte.gz": surgery(gzip.compress(idx(IMAGES)))})
    refused(tmp_path, "train-images-idx3-ubyte.gz")


def test_a_gzip_bomb_is_read_no_further_than_its_header_asks(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as file:
        file.write(idx(IMAGES))
        file.write(bytes(1 << 26))
    # Were it read to its end, the broken checksum there would be found in place of the length.
    write(tmp_path, {"train-images-idx3-ubyte.gz": bomb.getvalue()[:-8] + bytes(8)})
    refused(tmp_path, "longer")


def test_idx_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx1-ubyte": idx(LABELS[:2])})
    refused(tmp_path, "train-labels-idx1-ubyte", "train-images-idx3-ubyte", "number of rows")
    refused(tmp_path, "no unit 'user'", unit="user")
    write(tmp_path, {"train-labels-idx1-ubyte": idx(IMAGES)})
    refused(tmp_path, "train-labels-idx1-ubyte", "1 dimension(s)")
    write(tmp_path, {"train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES))})
    refused(tmp_path, "both train-images-idx3-ubyte and train-images-idx3-ubyte.gz", "keep one")


@settings(max_examples=200, deadline=None)
@given(damage(idx(IMAGES)))
def test_any_damage_to_idx_reads_or_is_refused(content: bytes) -> None:
    reads_or_refuses(content, "train-images-idx3-ubyte")


@settings(max_examples=200, deadline=None)
@given(damage(gzip.compress(idx(IMAGES), mtime=0)))
def test_any_damage_to_gzip_reads_or_is_refused(content: bytes) -> None:
    reads_or_refuses(content, "train-images-idx3-ubyte.gz")


# .npz


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3)])
def test_npz_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    users = np.array(["eve", "bob", "eve"])
    for form in (images, images / 255, (images / 255).astype(np.float16), np.asfortranarray(images)):
        write(tmp_path, {"data.npz": npz(images=form, labels=LABELS.astype(">i4"), user=users, name=users)})
        data = read(str(tmp_path / "data.npz"), unit="user")
        assert data.samples.dtype == np.uint8
        assert data.samples.flags.c_contiguous
        assert np.array_equal(data.samples, images)
        assert data.labels is not None
        assert data.labels.dtype == np.int32
        assert data.labels.dtype.isnative
        assert np.array_equal(data.labels, LABELS)
        assert data.units is not None
        assert np.array_equal(data.units, users)
        assert data.classes is None


def test_npz_float_images_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, {"data.npz": npz(images=np.array([[[0, 0.9 / 255, 1.4 / 255, 1.6 / 255, 1]]]))})
    assert read(tmp_path / "data.npz").samples.tolist() == [[[0, 1, 1, 2, 255]]]


def test_npz_samples_and_string_labels(tmp_path: Path) -> None:
    samples = np.linspace(-1e3, 1e3, 30).reshape(3, 2, 5)
    write(tmp_path, {"data.NPZ": npz(samples=samples.astype(">f8"), labels=np.array(["a", "bé", ""]))})
    data = read(tmp_path / "data.NPZ")
    assert data.samples.dtype == np.float32
    assert np.array_equal(data.samples, samples.astype(np.float32))
    assert data.labels is not None
    assert data.labels.tolist() == ["a", "bé", ""]
    assert data.units is None


ROWS = np.zeros((3, 2))
BROKEN_NPZ: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "no samples": ({"labels": LABELS}, ["'images'", "'samples'", "it has labels"]),
    "nothing": ({}, ["'images'", "'samples'", "it has nothing"]),
    "both": ({"images": IMAGES, "samples": ROWS}, ["either", "'images'", "'samples'"]),
    "objects": ({"images": np.array([[["x"]]], dtype=object)}, ["'images'", "objects"]),
    "object labels": (
        {"images": IMAGES, "labels": np.array([1, "a", 2], dtype=object)},
        ["'labels'", "objects"],
    ),
    "flat images": ({"images": ROWS}, ["'images'", "(n, h, w)"]),
    "two channels": ({"images": np.zeros((3, 4, 4, 2), np.uint8)}, ["'images'", "(n, h, w, 3)"]),
    "no images": ({"images": IMAGES[:0]}, ["'images'", "empty"]),
    "images without pixels": ({"images": IMAGES[:, :0]}, ["'images'", "empty"]),
    "integer images": ({"images": IMAGES.astype(np.int64)}, ["'images'", "uint8", "int64"]),
    "images above 1": ({"images": IMAGES / 10}, ["'images'", "[0, 1]"]),
    "images below 0": ({"images": -(IMAGES / 255)}, ["'images'", "[0, 1]"]),
    "NaN in images": ({"images": np.where(IMAGES == 3, np.nan, 0)}, ["'images'", "NaN"]),
    "infinite images": ({"images": np.where(IMAGES == 3, np.inf, 0)}, ["'images'", "[0, 1]"]),
    "integer samples": ({"samples": ROWS.astype(int)}, ["'samples'", "float"]),
    "one sample": ({"samples": ROWS[0]}, ["'samples'", "(n, ...)"]),
    "a number": ({"samples": np.array(1.0)}, ["'samples'", "(n, ...)"]),
    "no sample": ({"samples": ROWS[:0]}, ["'samples'", "empty"]),
    "NaN": ({"samples": ROWS * np.nan}, ["'samples'", "NaN"]),
    "infinite": ({"samples": ROWS + np.inf}, ["'samples'", "infinite"]),
    "infinite as float32": ({"samples": ROWS + 1e300}, ["'samples'", "infinite"]),
    "labels too few": ({"samples": ROWS, "labels": LABELS[:2]}, ["'labels'", "one entry a row"]),
    "labels of one-hot": ({"samples": ROWS, "labels": np.eye(3, dtype=int)}, ["'labels'", "(n,)"]),
    "float labels": ({"samples": ROWS, "labels": ROWS[:, 0]}, ["'labels'", "integers or strings"]),
    "units too few": ({"samples": ROWS, "user": LABELS[:2]}, ["'user'", "one entry a row"]),
    "float units": ({"samples": ROWS, "user": ROWS[:, 0]}, ["'user'", "integers or strings"]),
    "no units": ({"samples": ROWS, "labels": LABELS, "host": LABELS}, ["'user'", "it has labels, host"]),
    "no other array": ({"samples": ROWS}, ["'user'", "no other array"]),
}


@pytest.mark.parametrize("case", BROKEN_NPZ)
def test_broken_npz_is_refused(tmp_path: Path, case: str) -> None:
    arrays, parts = BROKEN_NPZ[case]
    write(tmp_path, {"data.npz": npz(**arrays)})
    refused(tmp_path / "data.npz", "data.npz", *parts, unit="user" if "'user'" in parts else None)


def huge(shape: str, kind: str = "|u1") -> bytes:
    """A .npy header that claims ``shape``, with nothing behind it."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy(IMAGES),
        npz(images=IMAGES)[:-10],
        npz(images=IMAGES)[10:],
        npz_of(images=b"plain text"),
        npz_of(images=b""),
        npz_of(images=npy(IMAGES)[:-1]),
        npz_of(images=huge("(100000000000, 1, 1)")),
        npz_of(images=huge("(9223372036854775807, 9223372036854775807, 16)")),
        npz_of(images=huge("(-1, 1, 1)")),
        npz_of(images=huge("(1, 1, 1)", "|O")),
        npz_of(images=huge("(1" + "0" * 30000 + ", 1, 1)")),
        npz_of(images=npy(IMAGES), labels=huge("(3,)", "<U1") + b"\xff" * 12),
    ],
    ids=[
        "empty",
        "a .npy",
        "no directory",
        "no beginning",
        "no array",
        "empty member",
        "short member",
        "100 GB",
        "overflow",
        "negative",
        "objects",
        "long header",
        "no characters",
    ],
)
def test_damaged_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"data.npz": content})
    refused(tmp_path / "data.npz", "data.npz")


def test_a_changed_byte_in_an_npz_is_found(tmp_path: Path) -> None:
    content = npz_of(images=npy(IMAGES))
    at = content.index(IMAGES.tobytes())
    write(tmp_path, {"data.npz": content[:at] + b"\xff" + content[at + 1 :]})
    refused(tmp_path / "data.npz", "data.npz", "damaged")


@settings(max_examples=200, deadline=None)
@given(damage(npz(images=IMAGES, labels=LABELS)))
def test_any_damage_to_npz_reads_or_is_refused(content: bytes) -> None:
    reads_or_refuses(content, "data.npz")


@settings(max_examples=300, deadline=None)
@given(damage(npy(IMAGES)), damage(npy(LABELS.astype("U3"))))
def test_any_damage_within_an_npz_reads_or_is_refused(images: bytes, labels: bytes) -> None:
    reads_or_refuses(npz_of(images=images, labels=labels), "data.npz")


# Folders of images

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def test_image_folder(tmp_path: Path) -> None:
    rows = {
        "b/2.png": GREY,
        "b/10.BMP": GREY + 1,
        "a/x.pgm": GREY + 2,
        "a/y.tif": GREY + 3,
        "c d/z.png": GREY + 4,
    }
    for name, image in rows.items():
        save(tmp_path, name, Image.fromarray(image))
    write(
        tmp_path,
        {"a/.hidden.png": b"", "a/notes.txt": b"", "labels.csv": b"a,b", "empty/.keep": b"", ".d/x.png": b""},
    )
    data = read(tmp_path)
    assert data.samples.dtype == np.uint8
    names = sorted(rows, key=lambda name: tmp_path / name)
    assert np.array_equal(data.samples, np.stack([rows[name] for name in names]))
    assert data.labels is not None
    assert data.labels.tolist() == ["a", "a", "b", "b", "c d"]
    assert data.classes is None
    refused(tmp_path, "no unit 'user'", unit="user")


def test_image_modes(tmp_path: Path) -> None:
    grey, colour = Image.fromarray(GREY), Image.fromarray(RGB)
    palette = Image.fromarray(GREY // 10, "L").convert("P")
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    of_palette = np.stack([GREY // 10, 255 - GREY // 10, np.full_like(GREY, 7)], axis=2)
    wide = np.linspace(0, 65535, 20).astype(np.uint16).reshape(4, 5)
    narrow = np.rint(wide / 257).astype(np.uint8)
    save(tmp_path, "grey/0.png", grey)
    save(tmp_path, "grey/1.bmp", grey)
    save(tmp_path, "grey/2.png", Image.merge("LA", (grey, grey)))
    save(tmp_path, "grey/3.png", Image.fromarray(GREY > 90))
    save(tmp_path, "grey/4.png", Image.fromarray(wide))
    save(tmp_path, "grey/5.tiff", Image.fromarray(wide))
    write(tmp_path, {"grey/6.pgm": b"P5 5 4 65535\n" + wide.astype(">u2").tobytes()})
    expected = [GREY, GREY, GREY, np.where(GREY > 90, 255, 0), narrow, narrow, narrow]
    assert np.array_equal(read(tmp_path).samples, np.stack(expected))
    in_colour = np.stack([np.stack([image] * 3, axis=2) for image in expected])
    assert np.array_equal(read(tmp_path, colour=True).samples, in_colour)

    save(tmp_path, "rgb/0.png", colour)
    save(tmp_path, "rgb/1.png", Image.merge("RGBA", (*colour.split(), grey)))
    save(tmp_path, "rgb/2.png", palette)
    palette.save(tmp_path / "rgb/3.png", transparency=bytes(range(20)))
    palette.save(tmp_path / "rgb/4.gif", save_all=True, append_images=[colour])
    expected = [np.stack([image] * 3, axis=2) for image in expected] + [RGB, RGB] + [of_palette] * 3
    assert np.array_equal(read(tmp_path, colour=True).samples, np.stack(expected))
    grey = read(tmp_path).samples
    assert grey.shape == (12, 4, 5)
    assert np.array_equal(grey[7], np.array(colour.convert("L")))  # one coloured image changes no other
    assert np.array_equal(grey[:7], in_colour[..., 0])


def test_lossy_images_keep_their_shape(tmp_path: Path) -> None:
    save(tmp_path, "a/0.jpg", Image.fromarray(GREY))
    assert read(tmp_path).samples.shape == (1, 4, 5)
    save(tmp_path, "a/1.jpeg", Image.fromarray(RGB).convert("CMYK"))
    save(tmp_path, "a/2.webp", Image.fromarray(RGB))
    assert read(tmp_path, colour=True).samples.shape == (3, 4, 5, 3)


def test_broken_image_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"size/a/0.png": png(GREY), "size/b/1.png": png(GREY[:3])})
    refused(tmp_path / "size", "a/0.png is 4 x 5", "b/1.png is 3 x 5")
    write(tmp_path, {"loose/0.png": png(GREY), "loose/a/0.png": png(GREY)})
    refused(tmp_path / "loose", "loose", "sub-folder")
    contents = {
        "cut.png": png(GREY)[:-20],
        "text.jpg": b"hello",
        "empty.gif": b"",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, content in contents.items():
        folder = write(tmp_path / name, {f"a/{name}": content})
        refused(folder, f"a/{name}", "damaged")
    save(tmp_path, "float/a/0.tif", Image.fromarray(GREY.astype(np.float32)))
    refused(tmp_path / "float", "a/0.tif", "32 bits")


@settings(max_examples=150, deadline=None)
@given(damage(png(GREY)))
def test_any_damage_to_an_image_reads_or_is_refused(content: bytes) -> None:
    reads_or_refuses(content, "a/0.png")


# Folders of series


def test_series_folder(tmp_path: Path) -> None:
    files = {
        "1.csv": b"1\n2.5\n-3e2\n",
        "2.csv": b'\xef\xbb\xbft,value\r\n0,4\r\n1, 5\r\n\r\n2,"6"\r\n',
        "x.txt": b"",
        ".3.csv": b"x",
    }
    data = read(write(tmp_path, files))
    assert data.samples.dtype == np.float32
    assert data.samples.tolist() == [[1, 2.5, -300], [4, 5, 6]]
    assert data.labels is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"value\n", "empty"),
        (b"1\nsecret\n3\n", "numbers"),
        (b"1,\n2,\n", "numbers"),
        (b"1\nnan\n3\n", "NaN"),
        (b"1\n1e300\n3\n", "infinite"),
        (b"1\n2\n", "1.csv differ in length"),
        (b"\xff\xfe1\n", "damaged"),
        (b'1\n2\n"' + b"3" * 200_000, "damaged"),
    ],
)
def test_broken_series_are_refused(tmp_path: Path, content: bytes, part: str) -> None:
    write(tmp_path, {"0.csv": b"1\n2\n3\n", "1.csv": content})
    refused(tmp_path, "1.csv", part)


@settings(max_examples=150, deadline=None)
@given(damage(b"t,x\n0,1.5\n1,-2e3\n"))
def test_any_damage_to_a_series_reads_or_is_refused(content: bytes) -> None:
    reads_or_refuses(content, "0.csv")


def test_no_message_holds_a_value(tmp_path: Path) -> None:
    secrets = {
        "a/0.csv": b"1\nTOPSECRET\n",
        "b/data.npz": npz(samples=ROWS, labels=np.array([["TOPSECRET"]])),
        "c/data.npz": npz(samples=ROWS, labels=np.array(["TOPSECRET"], dtype=object)),
        "d/train-images-idx3-ubyte": b"TOPSECRET",
        "e/a/0.png": b"TOPSECRET",
    }
    for name, content in secrets.items():
        path = write(tmp_path, {name: content}) / name
        with pytest.raises(InputError) as caught:
            read(path if name.endswith(".npz") else path.parents[1] / name.split("/")[0])
        assert "TOPSECRET" not in str(caught.value)


# Labels


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([7, 1, -1, 10, 7], dtype=np.int8), [1, 0, -1, -1, 1]),
        (np.array([7, 1, 2**64 - 1], dtype=np.uint64), [1, 0, -1]),
        (["7", "1", "cat", "07", ""], [1, 0, 2, -1, -1]),
        (np.array([b"7", b"cat", b"\xff"]), [1, 2, -1]),
        ([], []),
    ],
)
def test_labels_become_class_indices(labels: list[str] | np.ndarray, expected: list[int]) -> None:
    encoded = encode_labels(labels, ["1", "7", "cat"])
    assert encoded.dtype == np.int64
    assert encoded.tolist() == expected


@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=2), unique=True))
def test_a_row_is_encoded_by_its_own_label(labels: list[str], classes: list[str]) -> None:
    together = encode_labels(np.array(labels, dtype=str), classes)
    alone = [encode_labels(np.array([label]), classes)[0] for label in labels]
    assert together.tolist() == alone


def test_labels_that_cannot_be_encoded() -> None:
    with pytest.raises(InputError, match="twice"):
        encode_labels([1], ["a", "a"])
    for labels in (np.array([1.0]), np.array([[1]]), np.array([1, "a"], dtype=object), [True]):
        with pytest.raises(TypeError, match="integers or strings"):
            encode_labels(labels, ["1"])


# The real thing


@pytest.mark.data
def test_mnist() -> None:
    folder = Path(os.environ.get("SIMPE_DATA", ""), "mnist")
    if "SIMPE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set SIMPE_DATA to a folder that holds mnist/, the four IDX files of MNIST")
    train, test = read(folder), read(folder, split="test")
    assert train.samples.shape == (60_000, 28, 28)
    assert test.samples.shape == (10_000, 28, 28)
    assert hashlib.md5(idx(train.samples)).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    for data in (train, test):
        assert data.labels is not None
        assert set(encode_labels(data.labels, tuple("0123456789")).tolist()) == set(range(10))
