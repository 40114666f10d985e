"""What a pickle of tensors describes, as plain data, without running anything.

A pickle is a program for a small machine, which may import and call whatever it names. The machine here has no such
instruction: it knows the few names that checkpoints of PyTorch need, and turns a call of one into a description of what
it would have made. Python's own unpickler, and PyTorch's, are not asked.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NoReturn

from pickle_values import Made, Pairs, Refused, Storage, make, make_storage, named, shown

INSTRUCTIONS = 1_000_000  # of all pickles in a file; all of SDXL needs 150,000


class Machine:
    """Of one file, which may hold several pickles. storages: all that were named, by key."""

    def __init__(self):
        self.left = INSTRUCTIONS
        self.storages: dict[str, Storage] = {}

    def read(self, file: IO[bytes]) -> Any:
        """The value that the next pickle describes; the file stands behind it then. Raises Refused; of a damaged file
        any other error."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        for instruction, argument, _ in pickletools.genops(file):
            self.left -= 1
            name = instruction.name
            value: Any = argument
            if name == "STOP":
                return stack.pop()
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name]())
            elif name in VALUES:
                stack.append(value)
            elif name in FROM_MARK:
                items = take(stack, marks.pop())
                FROM_MARK[name](stack, items)
            elif name in FROM_STACK:
                count, function = FROM_STACK[name]
                value = function(*take(stack, len(stack) - count))
                stack.append(value)
                if name in COPIES and isinstance(value, list | tuple):
                    self.left -= len(value)
            elif name == "BINPERSID":
                stack.append(self.refer(stack.pop()))
            elif name == "GLOBAL":
                stack.append(named(value))
            elif name != "PROTO" or value > 3:
                self.refuse(name, value)
            if self.left < 0:
                raise Refused(f"it has more than {INSTRUCTIONS} instructions, and no checkpoint needs so many")
        raise Refused("it is cut off: download it again")

    def refuse(self, name: str, value: Any) -> NoReturn:
        if name == "PROTO":
            raise Refused(
                f"it is written in protocol {value} of pickle, and PyTorch's own, 2, is read here: where it was made, "
                "save it again with torch.save(..., pickle_protocol=2), or better as safetensors"
            )
        raise Refused(f"it has the instruction {name}, which no checkpoint of PyTorch's has")

    def refer(self, reference: Any) -> Storage:
        storage = make_storage(reference)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Refused(f"it is damaged: it describes the storage {shown(storage.key)} in two ways")
        return storage


def take(stack: list[Any], begin: int) -> list[Any]:
    """The values from there on, which leave the stack."""
    if begin < 0:
        raise Refused("it is damaged: an instruction finds too few values")
    items = stack[begin:]
    del stack[begin:]
    return items


def add_items(target: Any, items: list) -> None:
    if isinstance(target, Pairs) and len(items) % 2 == 0:
        target.extend(zip(items[::2], items[1::2]))
    elif not isinstance(target, Made):
        raise Refused("it is damaged: it puts items into what is no dict")


def append_items(target: Any, items: list) -> None:
    if type(target) is list:
        target.extend(items)
    elif not isinstance(target, Made):
        raise Refused("it is damaged: it appends to what is no list")


def add_item(target: Any, key: Any, value: Any) -> Any:
    add_items(target, [key, value])
    return target


def append_item(target: Any, value: Any) -> Any:
    append_items(target, [value])
    return target


def set_state(target: Any, state: Any) -> Any:
    if isinstance(target, Made):
        target.state = state
    return target


CONSTANTS: dict[str, Callable] = {
    "EMPTY_DICT": Pairs,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "BINBYTES SHORT_BINBYTES".split()
)
FROM_MARK: dict[str, Callable[[list, list], None]] = {
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "LIST": lambda stack, items: stack.append(items),
    "DICT": lambda stack, items: stack.append(add_item_pairs(items)),
    "SETITEMS": lambda stack, items: add_items(stack[-1], items),
    "APPENDS": lambda stack, items: append_items(stack[-1], items),
    "POP_MARK": lambda stack, items: None,
}


def add_item_pairs(items: list) -> Pairs:
    pairs = Pairs()
    add_items(pairs, items)
    return pairs


COPIES = ("REDUCE", "NEWOBJ")  # may copy a list that is in use elsewhere: it counts as so many instructions
FROM_STACK: dict[str, tuple[int, Callable]] = {
    "TUPLE1": (1, lambda *items: items),
    "TUPLE2": (2, lambda *items: items),
    "TUPLE3": (3, lambda *items: items),
    "REDUCE": (2, make),
    "NEWOBJ": (2, make),
    "BUILD": (2, set_state),
    "SETITEM": (3, add_item),
    "APPEND": (2, append_item),
}
