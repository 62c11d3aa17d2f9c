"""Reading a data set from disk: IDX files, .npz, folders of images or series; or scikit-learn's digits.

Every reader is strict: a file is read whole and right, or InputError names it. No message holds a pixel, a
label or a number of rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from simpe.errors import InputError

_IDX_NAME = re.compile(
    r"(?:^|[-_.])(train|test|t10k)[-_.](images|labels)[-_.](?:ubyte|idx\d?(?:[-_.]ubyte)?)(?:\.gz)?$", re.I
)
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm"}
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_KINDS = (
    "an .npz or .parquet file or a folder of them, a folder of IDX files, a folder of images or of one sub-folder of "
    "images a class, a folder of .csv series, or the word sklearn"
)
_SHARDS = {".npz", ".parquet"}
_CHUNK = 1 << 20


@dataclass(frozen=True, repr=False, eq=False)
class DataSet:
    """The rows of a data set as they are in the file.

    - ``samples``: (n, ...); images are uint8 (n, h, w) or (n, h, w, 3), anything else is floating.
    - ``labels``: (n,) integers or strings, or None.
    - ``units``: (n,) integers or strings, the privacy unit that owns each row, or None.
    - ``classes``: the names of all classes where they are public knowledge, else None: names that occur in
      private rows are private.
    - ``caveats``: what the unit does not protect, in words for the certificate; public.
    - ``names``: (n,) integers or strings, whose row each is, where a row is a whole unit without ``units``: no two rows
      may have one name, in whatever shard.

    The repr shows nothing, as the rows and their number are private.
    """

    samples: np.ndarray
    labels: np.ndarray | None
    units: np.ndarray | None
    classes: tuple[str, ...] | None
    caveats: tuple[str, ...] = ()
    names: np.ndarray | None = None

    def __repr__(self) -> str:
        return "DataSet(...)"


def has_array(path: str | Path, name: str | None) -> bool:
    """Whether a path is an ``.npz`` file with an array of that name."""
    try:
        with zipfile.ZipFile(path) as arrays:
            return f"{name}.npy" in arrays.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read(
    path: str | Path,
    unit: str | None = None,
    split: str = "train",
    colour: bool = False,
    label: str | None = None,
) -> DataSet:
    """Read a data set; ``path`` is one of

    - the word ``sklearn``: scikit-learn's 8 x 8 digits, scaled to 0..255;
    - a folder of IDX files named as MNIST's are, packed (``.gz``) or not: images, and labels if any;
    - an ``.npz`` file with ``images`` (uint8, or float in [0, 1], of shape (n, h, w) or (n, h, w, 3)) or
      ``samples`` (float, (n, ...)), and ``labels`` (n,) if any;
    - a folder of images, or of one sub-folder of images a class, whose name is the label. Rows stand in the order of
      their sorted paths. All become grey, or all RGB where ``colour`` (a public choice: if it followed the images,
      one could change all others); alpha is dropped, 16 bits become 8, an animation gives its first frame. Hidden
      files and files that are no images are skipped;
    - a ``.parquet`` file with a column ``images`` or ``samples`` of lists, all of one shape, and the columns that an
      ``.npz`` has arrays for;
    - an fsspec URL of an ``.npz`` or a ``.parquet`` file;
    - a folder of ``.csv`` files, each one series: its last column, with a header line or without.

    ``unit`` names the array of an ``.npz`` that holds each row's privacy unit, (n,) integers or strings; ``label`` the
    array that holds the labels, where that is not ``labels``.
    ``split`` is "train" or "test". Only a folder of IDX files can have a test split (``t10k`` or ``test`` files); what
    has none is read whole.

    Raises InputError, naming the file, where something is missing, damaged, ambiguous or empty.
    """
    if split not in ("train", "test"):
        raise InputError(f"split {split!r}: use 'train' or 'test'")
    source = Path(path)
    bundled = str(path) == "sklearn"
    with _reading(source):
        folder = not bundled and source.is_dir()
        shard = not bundled and source.suffix.lower() in _SHARDS and (is_url(path) or source.is_file())
        if not (bundled or folder or shard):
            reason = "is not a data set" if source.exists() else "no such file or folder"
            raise InputError(f"{source}: {reason}; give {_KINDS}")
        entries = _entries(source) if folder else []
        idx = [entry for entry in entries if _IDX_NAME.search(entry.name) and entry.is_file()]
    if unit is not None and not shard:
        raise InputError(f"{source}: has no unit {unit!r}, nor any other; only an .npz file can hold units")
    if label is not None and not shard:
        raise InputError(f"{source}: has no array {label!r}; only an .npz file has arrays to choose labels from")
    if bundled:
        return _read_sklearn()
    if shard:
        arrays = _npz_arrays if source.suffix.lower() == ".npz" else _parquet_arrays
        return _read_arrays(path, arrays, unit, label)
    if idx:
        return _read_idx_folder(source, idx, split)
    return _read_folder(source, entries, colour)


def concatenate(parts: Sequence[DataSet]) -> DataSet:
    """All rows of data sets of one schema, in order."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def joined(column: str) -> Any:
        found = [getattr(part, column) for part in parts]
        return None if found[0] is None else np.concatenate(found)

    columns = {name: joined(name) for name in ("samples", "labels", "units", "names")}
    return replace(first, **columns)


@dataclass(frozen=True)
class File:
    """A data set as :func:`read` finds it under a path, or one shard of it: where rows are read, when they are."""

    name: str
    unit: str | None = None
    colour: bool = False
    label: str | None = None

    def read(self) -> DataSet:
        """The rows. Raises InputError."""
        return read(self.name, unit=self.unit, colour=self.colour, label=self.label)


def sources(path: str | Path, unit: str | None = None, colour: bool = False, label: str | None = None) -> list[File]:
    """The shards of a data set in order of their names, or the data set itself where it is none.

    Shards are the ``.npz`` and ``.parquet`` files of a folder, or of the folder that an fsspec URL names
    (``s3://bucket/rows``), each as :func:`read` takes it. Options are those of ``read``. No file is opened.

    Raises InputError where a URL cannot be reached, or shards are of both kinds.
    """
    if is_url(path):
        names = [name for name in list_url(str(path)) if Path(name).suffix.lower() in _SHARDS]
        if not names:
            raise InputError(f"{path}: holds no .npz or .parquet files; give a folder of shards")
    else:
        folder = Path(path)
        inside = _entries(folder) if str(path) != "sklearn" and folder.is_dir() else []
        names = [str(file) for file in inside if file.suffix.lower() in _SHARDS and file.is_file()]
    kinds = {Path(name).suffix.lower() for name in names}
    if len(kinds) > 1:
        raise InputError(f"{path}: holds both .npz and .parquet files; keep the shards of one kind")
    return [File(name, unit, colour, label) for name in names or [str(path)]]


def is_url(path: str | Path) -> bool:
    """Whether an input is a URL, for fsspec."""
    return isinstance(path, str) and "://" in path


def list_url(url: str) -> list[str]:
    """The URLs of the files in a folder that a URL names, in order of their names, or of the one file that it names.

    Raises InputError where it cannot be reached.
    """
    import fsspec

    with _reading_url(url):
        files, root = fsspec.core.url_to_fs(url)
        inside = [] if files.isfile(root) else files.ls(root, detail=True)
        names = sorted(one["name"] for one in inside if one["type"] == "file") or [root]
        return [files.unstrip_protocol(name) for name in names]


@contextmanager
def _reading_url(url: str) -> Iterator[None]:
    """Turn whatever a file system of fsspec raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"{url}: cannot be read ({type(error).__name__}: {said})") from None


@contextmanager
def opened(source: str | Path) -> Iterator[io.BufferedReader]:
    """A file, or what a URL names, to be read.

    Raises OSError for a file and InputError for a URL that cannot be opened.
    """
    if not is_url(source):
        with Path(source).open("rb") as file:
            yield file
        return
    import fsspec

    with _reading_url(str(source)):
        there = fsspec.open(str(source), "rb").open()
    with there if hasattr(there, "read1") else io.BufferedReader(there) as file:
        yield file


def encode_labels(labels: np.ndarray | Sequence[Any], classes: Sequence[str]) -> np.ndarray:
    """Each row's index in ``classes``, or -1 where its label is none of them; int64 (n,).

    ``labels`` (n,) are integers, strings or bytes; the integer 7 and the bytes b"7" match the class "7". A
    row's index depends on its own label and the declared classes only. Raises InputError where a class is
    declared twice, TypeError where labels are neither integers nor strings.
    """
    index = {name: i for i, name in enumerate(classes)}
    if len(index) < len(classes):
        raise InputError("classes: a name is given twice; give each class once")
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iuUS"):
        raise TypeError("labels must be a one-dimensional array of integers or strings")
    values, inverse = np.unique(labels, return_inverse=True)
    lookup = np.array([index.get(label_text(value), -1) for value in values.tolist()], dtype=np.int64)
    return lookup[inverse]


def label_text(label: int | str | bytes) -> str:
    """What a label is called."""
    # surrogateescape: bytes that are no UTF-8 must match no class, and must not fail for the other rows.
    return label.decode("utf-8", "surrogateescape") if isinstance(label, bytes) else str(label)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while reading ``path`` into an InputError that quotes none of its content."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory, or is damaged") from None
    # A damaged file can fail in any way inside zipfile, zlib, NumPy and Pillow.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or "it is damaged, or not what its name says; copy it again"
        raise InputError(f"{path}: cannot be read: {reason}") from None


def _entries(folder: Path) -> list[Path]:
    with _reading(folder):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read_sklearn() -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return DataSet(images, digits.target.astype(np.int64), None, tuple("0123456789"))


def _read_idx_folder(folder: Path, files: list[Path], split: str) -> DataSet:
    roles: dict[str, Path] = {}
    matches = {file: match for file in files if (match := _IDX_NAME.search(file.name))}
    if all(match[1].lower() == "train" for match in matches.values()):
        split = "train"
    for file, match in matches.items():
        if (match[1].lower() == "train") != (split == "train"):
            continue
        role = match[2].lower()
        if role in roles:
            raise InputError(f"{folder}: both {roles[role].name} and {file.name} hold the {role}; keep one")
        roles[role] = file
    if "images" not in roles:
        prefix = "train" if split == "train" else "t10k"
        raise InputError(f"{folder}: has no {split} images; add {prefix}-images-idx3-ubyte or its .gz")
    images = _read_idx(roles["images"], dims=(3, 4))
    if images.ndim == 4 and images.shape[3] != 3:
        raise InputError(f"{roles['images']}: images of four dimensions must have the shape (n, h, w, 3)")
    if "labels" not in roles:
        return DataSet(images, None, None, None)
    labels = _read_idx(roles["labels"], dims=(1,))
    if len(labels) != len(images):
        raise InputError(f"{roles['labels']}: has another number of rows than {roles['images'].name}")
    return DataSet(images, labels.astype(np.int64), None, None)


def _read_idx(path: Path, dims: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of unsigned bytes: 0, 0, type, number of dimensions, sizes (big-endian), values."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with _reading(path), opener(path, "rb") as file:
        magic = _take(file, 4)
        if len(magic) < 4 or magic[:2] != b"\0\0":
            raise InputError(f"{path}: is not an IDX file; copy it again")
        if magic[2] != 8 or magic[3] not in dims:
            expected = " or ".join(map(str, dims))
            raise InputError(f"{path}: must hold unsigned bytes in {expected} dimension(s), by its header")
        header = _take(file, 4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise InputError(f"{path}: is shorter than its header says; copy it again")
        shape = tuple(np.frombuffer(header, ">u4").tolist())
        if 0 in shape:
            raise InputError(f"{path}: is empty; give at least one row")
        size = math.prod(shape)
        values = _take(file, size + 1)  # the one byte more finds what follows, and makes gzip check its sum
        if len(values) != size:
            word = "longer" if len(values) > size else "shorter"
            raise InputError(f"{path}: is {word} than its header says; copy it again")
        return np.frombuffer(values, np.uint8).reshape(shape)


def _take(file: IO[bytes], size: int) -> bytearray:
    """Read ``size`` bytes, or all there are: memory follows the file, not what a header claims."""
    taken = bytearray()
    while chunk := file.read(min(_CHUNK, size - len(taken))):
        taken += chunk
    return taken


def _read_arrays(
    path: str | Path, arrays: Callable[..., AbstractContextManager[Any]], unit: str | None, label: str | None
) -> DataSet:
    # The name of a URL stands as it was given.
    source: Any = path if is_url(path) else Path(path)
    with _reading(source), arrays(source) as held:
        keys = list(held)
        kinds = [key for key in ("images", "samples") if key in keys]
        if len(kinds) != 1:
            has = ", ".join(keys) or "nothing"
            raise InputError(f"{source}: needs either an array 'images' or an array 'samples'; it has {has}")
        for what, wanted in (("unit", unit), ("label", label)):
            if wanted is not None and wanted not in keys:
                others = ", ".join(key for key in keys if key not in kinds) or "no other array"
                raise InputError(f"{source}: has no {what} {wanted!r}; it has {others}")
        samples = _load(source, held, kinds[0])
        name = label or "labels"
        labels = _load(source, held, name) if name in keys else None
        units = _load(source, held, unit) if unit is not None else None
    samples = _as_images(source, samples) if kinds == ["images"] else _as_samples(source, samples)
    for key, column in ((name, labels), (unit, units)):
        if column is not None:
            _check_column(source, key, column, len(samples))
    return DataSet(samples, labels, units, None)


@contextmanager
def _npz_arrays(path: str | Path) -> Iterator[Any]:
    # Given a path, np.load leaves a damaged file open.
    with opened(path) as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


@contextmanager
def _parquet_arrays(path: str | Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'simpe[network]'") from None
    with opened(path) as file:
        yield _Columns(parquet.read_table(file))


class _Columns(Mapping[str, np.ndarray]):
    """The columns of a Parquet table as arrays; lists of one length become further dimensions."""

    def __init__(self, table: Any):
        self._table = table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)

    def __getitem__(self, name: str) -> np.ndarray:
        import pyarrow

        values, shape = self._table.column(name).combine_chunks(), [self._table.num_rows]
        if values.null_count:
            raise ValueError("nulls")
        while pyarrow.types.is_list(values.type) or pyarrow.types.is_fixed_size_list(values.type):
            inner = values.flatten()
            if len(values) == 0 or inner.null_count or len(set(np.unique(_lengths(values)))) != 1:
                raise ValueError("lists of several lengths")
            shape.append(len(inner) // len(values))
            values = inner
        array: np.ndarray = values.to_numpy(zero_copy_only=False)
        if array.dtype == object:  # text
            array = array.astype(np.str_)
        return array.reshape(shape)


def _lengths(lists: Any) -> np.ndarray:
    from pyarrow import compute

    found: np.ndarray = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    return found


def _load(path: Path, arrays: Any, key: str) -> np.ndarray:
    try:
        array = arrays[key]
    except ValueError:
        raise InputError(f"{path}: {key!r} is damaged or holds objects; save numbers or strings") from None
    if not isinstance(array, np.ndarray):  # a member that is no array comes as bytes
        raise InputError(f"{path}: {key!r} is not an array; save it with np.savez")
    if array.dtype.kind == "U":
        array.tolist()  # finds characters outside Unicode, which NumPy itself would show only later
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def _as_images(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[3] == 4:
        raise InputError(f"{path}: 'images' have an alpha channel; keep red, green and blue: (n, h, w, 3)")
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] == 3):
        raise InputError(f"{path}: 'images' must have the shape (n, h, w) or (n, h, w, 3)")
    if images.size == 0:
        raise InputError(f"{path}: 'images' is empty; give at least one row")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise InputError(f"{path}: 'images' must be uint8 or float, not {images.dtype}")
    if not (images.min() >= 0 and images.max() <= 1):  # NaN fails too
        raise InputError(f"{path}: 'images' as float must lie in [0, 1], without NaN; scale them")
    scaled: np.ndarray = np.rint(images * 255)
    return scaled.astype(np.uint8)


def _as_samples(path: Path, samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind != "f":
        raise InputError(f"{path}: 'samples' must be float, not {samples.dtype}; convert them")
    if samples.ndim < 2:
        raise InputError(f"{path}: 'samples' must have the shape (n, ...), one row a sample")
    if samples.size == 0:
        raise InputError(f"{path}: 'samples' is empty; give at least one row")
    return _as_float32(f"{path}: 'samples'", samples)


def _as_float32(name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        raise InputError(f"{name} holds NaN, or values that are infinite as float32; remove them")
    return result


def _check_column(path: Path, key: str | None, column: np.ndarray, rows: int) -> None:
    if column.ndim != 1 or len(column) != rows:
        raise InputError(f"{path}: {key!r} must have the shape (n,), one entry a row")
    if column.dtype.kind not in "iuUS":
        raise InputError(f"{path}: {key!r} must hold integers or strings, not {column.dtype}")


def _read_folder(folder: Path, entries: list[Path], colour: bool) -> DataSet:
    with _reading(folder):
        loose = any(_is_image(entry) for entry in entries)
        images = [file for entry in entries if entry.is_dir() for file in _entries(entry) if _is_image(file)]
        series = [entry for entry in entries if entry.suffix.lower() == ".csv" and entry.is_file()]
    if loose and images:
        raise InputError(f"{folder}: has images outside a class; move them into one sub-folder a class")
    if images or loose:
        return _read_images(
            folder, images or [entry for entry in entries if _is_image(entry)], colour, labelled=not loose
        )
    if series:
        return _read_series(folder, series)
    raise InputError(f"{folder}: has no data; give {_KINDS}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file()


def _read_images(folder: Path, files: list[Path], colour: bool, labelled: bool) -> DataSet:
    images: list[np.ndarray] = []
    for file in files:
        images.append(_read_image(file, colour))
        (h, w), (h2, w2) = images[0].shape[:2], images[-1].shape[:2]
        if (h, w) != (h2, w2):
            one, other = files[0].relative_to(folder), file.relative_to(folder)
            raise InputError(f"{folder}: {one} is {h} x {w}, {other} is {h2} x {w2}; bring all to one size")
    labels = np.array([file.parent.name for file in files]) if labelled else None
    return DataSet(np.stack(images), labels, None, None)


def _read_image(path: Path, colour: bool) -> np.ndarray:
    """Read one image: uint8 (h, w), or (h, w, 3) with ``colour``."""
    from PIL import Image

    with _reading(path), path.open("rb") as file, Image.open(file, formats=_IMAGE_FORMATS) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
            return np.stack([grey] * 3, axis=2) if colour else grey
        if image.mode in ("I", "F"):
            raise InputError(f"{path}: holds 32 bits a pixel; save it with 8 or 16")
        # Pillow warns where it takes a transparent palette to RGB in one step.
        plain = image.convert("RGBA") if image.mode == "P" else image
        return np.array(plain.convert("RGB" if colour else "L"))


def _read_series(folder: Path, files: list[Path]) -> DataSet:
    series: list[np.ndarray] = []
    for file in files:
        series.append(_read_one_series(file))
        if len(series[-1]) != len(series[0]):
            raise InputError(f"{folder}: {files[0].name} and {file.name} differ in length; cut or resample")
    return DataSet(np.stack(series), None, None, None)


def _read_one_series(path: Path) -> np.ndarray:
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        cells = [row[-1] for row in csv.reader(file) if row]
        if cells and not _is_number(cells[0]):
            del cells[0]
        if not cells:
            raise InputError(f"{path}: is empty; give at least one number")
        if not all(map(_is_number, cells)):
            raise InputError(f"{path}: its last column holds something other than numbers; mend it")
        return _as_float32(f"{path}:", np.array([float(cell) for cell in cells]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
