"""What a commit of a repository holds, names, sizes and hashes, as the hub lists it or as the cache remembers it."""

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from urllib.parse import quote

from huggingface_hub import constants

from ldm.scratch import scratch_folder

from ..disk.settings import parse_json, read_json
from ..errors import CheckpointError, shown
from .connection import ask, read_all

COMMIT = re.compile("[0-9a-f]{40}")
GIT_ID = COMMIT
SHA256 = re.compile("[0-9a-f]{64}")
LISTING_BYTES = 10_000_000
LARGEST = 2**63  # bytes of a file
NAME_BYTES = 255  # of a file or folder; file systems hold no more
PATH_BYTES = 1000


class File(NamedTuple):
    """What the hub says of a file. sha256: of large ones, and weights always are. git: of the others, SHA-1 of "blob",
    the size and the content, as git names them."""

    size: int
    sha256: str | None
    git: str | None = None

    @property
    def blob(self) -> str | None:
        """Its name in the cache, and what its content must hash to."""
        return self.sha256 or self.git


Listing = dict[str, File]  # by name


def on_hub(repo: str, revision: str, home: Path, is_there: Callable[[Listing], bool]) -> tuple[str, Listing]:
    """The commit and what it holds. A commit that was listed before, of which all that is wanted `is_there`, needs no
    request: it never changes. Else it is asked for again, since whoever listed it may have lied."""
    known = read_listing(home, revision) if COMMIT.fullmatch(revision) else None
    if known and all(map(is_sound, known.values())) and is_there(known):
        return revision, known
    url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    with ask(url, constants.HF_HUB_ETAG_TIMEOUT) as answer:
        raw = read_all(answer.pieces, LISTING_BYTES)
    commit, listing = parse_listing(raw or b"")
    moved = COMMIT.fullmatch(revision) and commit != revision
    if moved or not COMMIT.fullmatch(commit) or not all(map(is_sound, listing.values())):
        raise CheckpointError(f"{repo}: {constants.ENDPOINT} does not answer as the hub does")
    keep(home, home / "listings" / f"{commit}.json", json.dumps(listing))
    return commit, listing


def parse_listing(raw: bytes) -> tuple[str, Listing]:
    """The commit, "" where there is none: in a sign-in page of the local network, say."""
    try:
        info = parse_json(raw, "the listing")
        files = info["siblings"]
        if isinstance(files, list):
            return str(info["sha"]), {str(file["rfilename"]): describe_file(file) for file in files}
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return "", {}


def describe_file(file: dict) -> File:
    """One entry of the hub's answer."""
    lfs = file.get("lfs")
    return File(file["size"], lfs["sha256"] if lfs else None, file.get("blobId"))


def is_sound(file: File) -> bool:
    if type(file.size) is not int or not 0 <= file.size <= LARGEST:
        return False
    if file.sha256 is not None:
        return isinstance(file.sha256, str) and bool(SHA256.fullmatch(file.sha256))
    return isinstance(file.git, str) and bool(GIT_ID.fullmatch(file.git))


def check_names(names: Iterable[str]) -> None:
    """Refuse what does not name a file of its own inside of a folder, on any system."""
    seen: dict[str, str] = {}
    for name in names:
        if not is_name(name):
            raise CheckpointError(f"it lists {shown(name)}, and that is no name of a file in a repository")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise CheckpointError(f"it lists {shown(other)} and {shown(name)}: only one can lie in a folder")


def is_name(name: str) -> bool:
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or PureWindowsPath(name).drive:
        return False
    if any(part in ("", ".", "..") or len(part.encode()) > NAME_BYTES for part in parts):
        return False
    return len(name.encode()) <= PATH_BYTES


def read_listing(home: Path, commit: str) -> Listing | None:
    try:
        return {name: File(*entry) for name, entry in read_json(home / "listings" / f"{commit}.json").items()}
    except (CheckpointError, TypeError):  # never written, or damaged
        return None


def keep(home: Path, path: Path, text: str) -> None:
    """Write a small file in `home`, whole or not at all. A cache that others share may be read-only: then it is not
    kept."""
    with suppress(OSError), scratch_folder(home) as scratch:
        (scratch / "text").write_text(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / "text", path)
