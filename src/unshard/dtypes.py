"""The one table of dtypes: torch's name, the safetensors tag, the storage class, the size.

Numpy is imported only when an array is really wanted, so that commands which read headers start fast.

Source:
    torch/storage.py (`_new_dtypes`, `_dtype_to_storage_type_map`); safetensors/src/tensor.rs (`Dtype`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float", "int", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """A number format.

    Attributes:
        name: torch's name, without `torch.`; it is the word used in every message and option.
        tag: What a safetensors header calls it, or None where safetensors cannot hold it.
        storage: torch's legacy storage class, or None where torch has none.
        itemsize: Bytes per element.
        kind: Which casts make sense.
    """

    name: str
    tag: str | None
    storage: str | None
    itemsize: int
    kind: Kind

    def __str__(self) -> str:
        return self.name

    @property
    def numpy(self) -> np.dtype:
        """The little-endian numpy dtype; formats that numpy lacks come from ml_dtypes."""
        return _numpy_dtype(self.name)


@cache
def _numpy_dtype(name: str) -> np.dtype:
    """Return numpy's dtype for one of ours; asked for every block that is cast, so it is remembered."""
    import ml_dtypes
    import numpy as np

    if name == "complex32":
        return np.dtype([("real", "<f2"), ("imag", "<f2")])
    if name in _FROM_ML_DTYPES:
        return np.dtype(cast("type", getattr(ml_dtypes, name)))
    return np.dtype(name).newbyteorder("<")


_FROM_ML_DTYPES = frozenset(
    ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
)

FLOAT32 = DType("float32", "F32", "FloatStorage", 4, "float")
FLOAT16 = DType("float16", "F16", "HalfStorage", 2, "float")
BFLOAT16 = DType("bfloat16", "BF16", "BFloat16Storage", 2, "float")

_TABLE = (
    DType("float64", "F64", "DoubleStorage", 8, "float"),
    FLOAT32,
    FLOAT16,
    BFLOAT16,
    DType("float8_e4m3fn", "F8_E4M3", None, 1, "float"),
    DType("float8_e5m2", "F8_E5M2", None, 1, "float"),
    DType("float8_e4m3fnuz", "F8_E4M3FNUZ", None, 1, "float"),
    DType("float8_e5m2fnuz", "F8_E5M2FNUZ", None, 1, "float"),
    DType("float8_e8m0fnu", "F8_E8M0", None, 1, "float"),
    DType("int64", "I64", "LongStorage", 8, "int"),
    DType("int32", "I32", "IntStorage", 4, "int"),
    DType("int16", "I16", "ShortStorage", 2, "int"),
    DType("int8", "I8", "CharStorage", 1, "int"),
    DType("uint64", "U64", None, 8, "int"),
    DType("uint32", "U32", None, 4, "int"),
    DType("uint16", "U16", None, 2, "int"),
    DType("uint8", "U8", "ByteStorage", 1, "int"),
    DType("bool", "BOOL", "BoolStorage", 1, "bool"),
    DType("complex32", None, None, 4, "complex"),
    DType("complex64", "C64", "ComplexFloatStorage", 8, "complex"),
    DType("complex128", None, "ComplexDoubleStorage", 16, "complex"),
)

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}
BY_TAG: dict[str, DType] = {dtype.tag: dtype for dtype in _TABLE if dtype.tag is not None}
BY_STORAGE: dict[str, DType] = {dtype.storage: dtype for dtype in _TABLE if dtype.storage is not None}

# torch keeps old names beside the new ones, and pickles may hold either.
DTYPES |= {
    alias: DTYPES[name]
    for alias, name in {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "long": "int64",
        "int": "int32",
        "short": "int16",
        "cfloat": "complex64",
        "cdouble": "complex128",
        "chalf": "complex32",
    }.items()
}
