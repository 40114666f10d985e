"""What a pickle may name, and the plain data that stands for what calling it would have made."""

from math import prod
from typing import Any, NamedTuple

AXES = 64
STORAGES = {  # of torch -> as safetensors calls the numbers, and bytes of each
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "UntypedStorage": ("U8", 1),
}
STRANGE = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "ComplexFloatStorage", "ComplexDoubleStorage")
DTYPES = {  # of torch, where a storage has none of its own
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
}
ODD = {  # functions that make other tensors -> what those are
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
}
NAMED = {  # what checkpoints hold beside plain tensors; here they are words, and nothing is called
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter",
    "torch.nn.modules.container.ParameterDict",  # around the tensors of old embeddings
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # beside those of old checkpoints
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex", "dict")),
    *(f"torch.{name}" for name in (*DTYPES, "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8")),
    *(f"torch.{module}{name}" for module in ("", "storage.") for name in (*STORAGES, *STRANGE)),
    *(f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")),
    *(f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")),
    "torch._tensor._rebuild_from_type_v2",
    *ODD,
}


class Refused(ValueError):
    """One line about the file."""


def shown(text: str) -> str:
    """As an error quotes it."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:1000])
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


class Name(NamedTuple):
    """Of something that the pickle would import."""

    name: str


class Pairs(list):
    """Of a dict, in the order of the file: without hashes no key can be slow."""

    def get(self, key: str) -> Any:
        found = [value for other, value in self if isinstance(other, str) and other == key]
        return found[-1] if found else None


class Made:
    """What calling a name would have made; its state is what the file puts into it."""

    def __init__(self, name: str):
        self.name = name
        self.state: Any = None


class Storage(NamedTuple):
    """key: in the archive. dtype: of safetensors. count: of numbers, each of `width` bytes."""

    key: str
    dtype: str
    width: int
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset, size and stride count numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return prod(self.size)


def named(text: str) -> Name:
    """text: module and name, with a space between."""
    name = text.replace(" ", ".")
    if name not in NAMED:
        raise Refused(f"it asks for {shown(name)}, which is no tensor: it may do harm")
    return Name(name)


def make(function: Any, arguments: Any) -> Any:
    """In place of a call."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("it is damaged: it calls what is no function")
    match function.name.split(".")[-1]:
        case "_rebuild_tensor" | "_rebuild_tensor_v2":
            return make_tensor(*arguments[:4])
        case "_rebuild_tensor_v3":
            return make_tensor(*arguments[:4], dtype=arguments[6])
        case "_rebuild_parameter" | "_rebuild_parameter_with_state":
            return arguments[0]
        case "_rebuild_from_type_v2":  # a tensor with attributes
            return make(arguments[0], arguments[2])
        case "OrderedDict" | "dict" | "Counter":
            items = arguments[0] if arguments else ()
            return Pairs((key, value) for key, value in items)
        case "Size":
            return tuple(arguments[0])
    return Made(function.name)


def make_tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Tensor:
    if not isinstance(storage, Storage) or not is_counts([offset]) or not is_counts(size) or not is_counts(stride):
        raise Refused("it is damaged: it describes a tensor by what are no sizes")
    if len(size) != len(stride) or len(size) > AXES:
        raise Refused(f"it is damaged: it describes a tensor by {len(size)} sizes and {len(stride)} strides")
    if dtype is not None:
        storage = retyped(storage, dtype)
    count = prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count and (last >= storage.count or count > storage.count):
        shape = shown(" x ".join(map(str, size)))
        raise Refused(f"it describes a tensor of {shape} numbers in a storage of {storage.count}: it is damaged")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def retyped(storage: Storage, dtype: Any) -> Storage:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Name) else ""
    if name not in DTYPES or storage.width != 1:
        raise Refused(f"it has a tensor of type {shown(name)}, which is not read")
    kind, width = DTYPES[name]
    return Storage(storage.key, kind, width, storage.count // width)


def is_counts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(n) is int and 0 <= n < 2**62 for n in values)


def make_storage(reference: Any) -> Storage:
    """From what stands in a pickle for something outside of it."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise Refused("it is damaged: it refers to what is no storage")
    kind = reference[1]
    name = kind.name.split(".")[-1] if isinstance(kind, Name) else ""
    key, count = reference[2], reference[4]
    if not isinstance(key, str) or not is_counts([count]) or any(view is not None for view in reference[5:]):
        raise Refused("it is damaged: it describes a storage by what are no sizes")
    if name not in STORAGES:
        raise Refused(f"it has a storage of type {shown(name)}, which is not read")
    return Storage(key, *STORAGES[name], count)
