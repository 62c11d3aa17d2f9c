"""How the parties write to one another: a header in JSON and plain arrays, and nothing that could be run.

A message is four bytes (the header's length, big-endian), the header and the arrays' bytes, one after the other,
little-endian. What does not fit to the last byte is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = {"f4": "<f4", "i4": "<i4", "i8": "<i8", "u1": "|u1", "u4": "<u4", "u8": "<u8"}
_LONGEST_HEADER = 2**24


class Refused(Exception):
    """A message that does not fit what was agreed. The text is public: it holds no private value, and no path."""


@dataclass(frozen=True)
class Message:
    """What is said: its ``kind``, ``fields`` that fit into JSON, and ``arrays`` of whole numbers or float32."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The message in bytes."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        kinds = {name: f"{a.dtype.kind}{a.dtype.itemsize}" for name, a in arrays.items()}
        shapes = [[name, kinds[name], list(a.shape)] for name, a in arrays.items()]
        header = json.dumps({"kind": self.kind, "fields": dict(self.fields), "arrays": shapes}).encode()
        parts = [a.astype(_KINDS[kinds[name]], copy=False).tobytes() for name, a in arrays.items()]
        return b"".join([len(header).to_bytes(4, "big"), header, *parts])

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        """The message that was packed.

        Raises Refused for anything else.
        """
        try:
            length = int.from_bytes(data[:4], "big")
            if length > _LONGEST_HEADER:
                raise ValueError
            header = json.loads(data[4 : 4 + length])
            kind, fields, arrays, start = header["kind"], header["fields"], {}, 4 + length
            if not isinstance(kind, str) or not isinstance(fields, dict):
                raise ValueError
            for name, letters, shape in header["arrays"]:
                if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8 or name in arrays:
                    raise ValueError
                dtype = np.dtype(_KINDS[letters])
                size = math.prod(shape) * dtype.itemsize
                if start + size > len(data):
                    raise ValueError
                part = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
                arrays[name], start = part.astype(dtype.newbyteorder("="), copy=True), start + size
            if start != len(data):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise Refused("a message is not of the agreed form") from None
        return cls(kind, fields, arrays)

    def array(self, name: str, kind: str, *shape: int | None) -> NDArray[Any]:
        """An array that has to be there, of this kind and shape (None: any length).

        Raises Refused where it is not, or holds a number that is none.
        """
        found = self.arrays.get(name)
        fits = found is not None and f"{found.dtype.kind}{found.dtype.itemsize}" == kind and found.ndim == len(shape)
        if found is None or not fits or any(n is not None and n != m for n, m in zip(shape, found.shape, strict=True)):
            raise Refused(f"a message lacks {name}, or it is of another kind or length")
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise Refused(f"{name} holds values that are not finite")
        return found

    def text(self, name: str, longest: int = 200) -> str:
        """A field that has to be a text. Raises Refused."""
        found = self.fields.get(name)
        if not isinstance(found, str) or len(found) > longest:
            raise Refused(f"a message lacks {name}")
        return found

    def number(self, name: str, low: float, high: float) -> float:
        """A field that has to be a number within bounds. Raises Refused."""
        found = self.fields.get(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or not low <= found <= high:
            raise Refused(f"a message lacks {name}, or it is out of bounds")
        return found
