"""One file from the hub, from where an earlier attempt stopped. It must have the size and the hash that the hub lists:
nothing that the answer itself says of the file, such as its ETag, is believed or used as a name.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import tqdm

from ..errors import CheckpointError, shown
from .connection import Answer, GivenUp, Refused, ask, shortened
from .listing import File

ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds between two attempts
PROGRESS = 2**14  # bytes that count as something new


def fetch_blob(repo: str, name: str, commit: str, file: File, blob: Path) -> None:
    """blob: where the file lies in the cache, named by its hash; while it arrives, with .incomplete behind.

    Raises CheckpointError for a file that is not the one that was listed, OSError, or what `ask` raises. What arrived
    is kept, unless it is wrong.
    """
    part = blob.with_name(blob.name + ".incomplete")
    url = hf_hub_url(repo, name, revision=commit)
    with FileLock(lock_of(blob)):
        if blob.is_file() and blob.stat().st_size == file.size:  # by another process, while this one waited
            part.unlink(missing_ok=True)
            return
        try:
            fetch_part(url, name, file, part, blob.name)
        finally:
            if part.is_file() and part.stat().st_size == 0 < file.size:
                part.unlink()
        found = hash_of(part, file)
        if found != blob.name:
            part.unlink()
            kind = "SHA-256" if file.sha256 else "git's hash"
            raise wrong(url, f"arrived damaged, with {kind} {found[:12]} for {blob.name[:12]}: run again")
        os.replace(part, blob)


def fetch_part(url: str, name: str, file: File, part: Path, wanted: str) -> None:
    """All of the file, after what lies there already. wanted: its hash."""
    if part.is_symlink() or part.exists() and not part.is_file():
        remove_strange(part)
    with (
        open(part, "ab", opener=open_no_link) as out,
        tqdm(total=file.size, desc=name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        if out.tell() > file.size:
            out.truncate(0)
        began = os.fstat(out.fileno()).st_size
        fetch_rest(url, file.size, out, bar)
        if began and hash_of(part, file) != wanted:  # what lay there may be wrong, and not what came now
            out.truncate(0)
            fetch_rest(url, file.size, out, bar)


def remove_strange(part: Path) -> None:
    """A link would have another file written, and nobody reads a pipe."""
    if part.is_dir() and not part.is_symlink():
        raise CheckpointError(f"{part} is a folder where a file is expected: remove it")
    part.unlink()


def open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def lock_of(blob: Path) -> Path:
    """The client's own."""
    lock = blob.parents[2] / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock


def hash_of(path: Path, file: File) -> str:
    """SHA-256 where the hub lists that, else as git names a file."""

    def begin():
        if file.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)

    with path.open("rb") as content:
        return hashlib.file_digest(content, begin).hexdigest()


def fetch_rest(url: str, size: int, out: BinaryIO, bar: tqdm) -> None:
    """Append what is missing of `size` bytes. A connection that ends early or falls silent is taken up again; one that
    was reset or is far too slow, or a refusal, is an error."""
    failures = 0
    solid = os.fstat(out.fileno()).st_size  # a few bytes after it, again and again, may be those of a page
    while True:
        begin = os.fstat(out.fileno()).st_size
        bar.update(begin - bar.n)
        if begin == size:
            return
        trouble = None
        try:
            fetch_range(url, begin, size, out, bar)
        except (CheckpointError, Refused, GivenUp):
            raise
        except OSError:  # of the disk
            raise
        except Exception as error:  # of the library that carries the requests, see download.explained_errors
            trouble = error
        reached = os.fstat(out.fileno()).st_size
        if reached == size:
            continue
        failures += 1
        if reached - begin > PROGRESS:
            failures = 0
            solid = reached
        if reached < solid:  # the server has begun anew
            solid = 0
        if trouble and (failures == ATTEMPTS or was_reset(trouble)):
            raise trouble
        if failures == ATTEMPTS:
            out.truncate(solid)
            raise wrong(url, f"ends after {reached} bytes of the {size} that are listed: run again later")
        time.sleep(PAUSE)


def fetch_range(url: str, begin: int, size: int, out: BinaryIO, bar: tqdm) -> None:
    """All bytes from `begin`, as far as the connection brings them."""
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    with ask(url, constants.HF_HUB_DOWNLOAD_TIMEOUT, headers) as answer:
        check_range(url, begin, size, answer)
        if begin and answer.status == 200:  # the server sends the whole file whatever was asked
            out.truncate(0)
            bar.update(-bar.n)
            begin = 0
        reached = begin
        try:
            for piece in answer.pieces:
                reached += len(piece)
                if reached > size:
                    out.truncate(begin)
                    raise another_file(url, f"more than {size}", size)
                out.write(piece)
                bar.update(len(piece))
        finally:
            out.flush()


def check_range(url: str, begin: int, size: int, answer: Answer) -> None:
    """Refuse another part than was asked for, and another file, before anything of it is read."""
    place = answer.headers.get("Content-Range", "")
    if answer.status not in (200, 206) or (answer.status == 206 and not place.startswith(f"bytes {begin}-")):
        raise wrong(url, f"answers {answer.status} {shown(place)} for the bytes from {begin}: run again later")
    if answer.status == 200:
        begin = 0
    length = answer.headers.get("Content-Length")
    if length is not None and length != str(size - begin):
        raise another_file(url, shown(length), size)


def another_file(url: str, found: str, size: int) -> CheckpointError:
    """Most often a page of the local network that asks to sign in."""
    return wrong(url, f"sends {found} bytes where {size} are listed: it is another file, run again later")


def wrong(url: str, what: str) -> CheckpointError:
    return CheckpointError(f"{shortened(url)} {what}")


def was_reset(error: BaseException | None) -> bool:
    """Whether the other side broke the connection: the library's error has the socket's as its cause."""
    while error is not None:
        if isinstance(error, ConnectionResetError):
            return True
        error = error.__cause__ or error.__context__
    return False
