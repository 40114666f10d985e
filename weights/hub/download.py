"""Models from the hub: huggingface.co, or the server that HF_ENDPOINT names, by the public functions of its own client.

A revision is resolved to a commit once, and from then on only that commit is read: a branch that moves meanwhile never
mixes two versions of a model. The files lie in the cache that all of the hub's clients share:

    models--owner--name/refs/main               the commit that a branch or tag had when it was last fetched whole
                        snapshots/<commit>/...  links to
                        blobs/<hash>            and, while it arrives, <hash>.incomplete
                        listings/<commit>.json  ours: all that the commit holds; it tells a part from the whole offline

The client itself takes the name of a blob from the answer's ETag, which may be any path, and begins an interrupted
download again from the start. So files are fetched by `resume`, under the hash that the listing gives.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import constants

from ldm.scratch import place, scratch_folder
from ldm.terminal import printable, say

from ..errors import CheckpointError, listed, shown
from .connection import Refused, shortened
from .listing import COMMIT, File, Listing, check_names, keep, on_hub, read_listing
from .resume import fetch_blob, lock_of
from .wanted import one_file

NAME = r"\w(?:[\w.-]*\w)?"
REPO = re.compile(
    rf"(?!.*(?:--|\.\.))({NAME}/{NAME}(?<!\.safetensors)(?<!\.ckpt))(?:/((?:\w[\w .+-]*/)*"
    r"\w[\w .+-]*\.safetensors))?",
    re.ASCII,
)
REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)
PART = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})\.incomplete")


class Fetched(NamedTuple):
    """path: the one file that was wanted, or the folder of several. commit: 40 hexadecimal digits."""

    path: Path
    commit: str


def is_repo(source: str) -> bool:
    """Does it name a model on the hub, "owner/name", or a file in one, "owner/name/file.safetensors"? A path that
    exists is a path."""
    return bool(REPO.fullmatch(source)) and not Path(source).exists()


def print_to_stderr(line: str) -> None:
    say(printable(line), sys.stderr)


def fetch(
    source: str,
    wanted: Callable[[list[str]], list[str]],
    revision: str | None = None,
    offline: bool = False,
    tell: Callable[[str], None] = print_to_stderr,
) -> Fetched:
    """The files of "owner/name" that `wanted` chooses from the names of all, or the one that the source names, in the
    cache; what is there is not fetched again.

    revision: a branch, a tag or a commit, "main" by default. offline, or HF_HUB_OFFLINE=1: the cache only, and not one
    request. `tell` gets a line before the first download. Raises CheckpointError for whatever prevents it; after an
    interruption the next call goes on where this one stopped.
    """
    parts = REPO.fullmatch(source)
    if parts is None:
        raise CheckpointError(f"{source} is no name of a repository: owner/name is expected")
    repo, file = parts.groups()
    if file:
        wanted = partial(one_file, file=file)
    revision = revision or constants.DEFAULT_REVISION
    if not REVISION.fullmatch(revision):
        raise CheckpointError(f"{repo}: {shown(revision)} is no name of a revision")
    home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    offline = offline or constants.HF_HUB_OFFLINE
    is_there = partial(is_whole, home=home, wanted=wanted, repo=repo, commit=revision)
    with explained_errors(repo, revision, home):
        commit, listing = in_cache(repo, revision, home) if offline else on_hub(repo, revision, home, is_there)
        folder = home / "snapshots" / commit
        names = choose(wanted, listing, repo, commit)
        missing = {name: listing[name] for name in names if not is_complete(folder / name, listing[name])}
        if missing and offline:
            raise CheckpointError(
                f"{repo}: of {len(names)} files {len(missing)} are not whole in the cache, "
                f"{listed(list(missing))}: fetch it once without offline"
            )
        if missing:
            size = megabytes(sum(listing[name].size for name in names))
            what = f"{repo}, {revision} at {commit[:12]}: {len(names)} files of {size}"
            download(repo, commit, missing, home, what, tell)
            sweep_parts(home / "blobs", listing)
        if not offline and revision != commit:
            keep(home, home / "refs" / revision, commit)
    return Fetched(folder / names[0] if len(names) == 1 else folder, commit)


def choose(wanted: Callable[[list[str]], list[str]], listing: Listing, repo: str, commit: str) -> list[str]:
    try:
        names = wanted(sorted(listing))
        check_names(names)
        return names
    except CheckpointError as error:
        raise CheckpointError(f"{repo} at {commit[:12]}: {error}") from None


def is_whole(listing: Listing, home: Path, wanted: Callable[[list[str]], list[str]], repo: str, commit: str) -> bool:
    """Whether all files that are wanted of a commit lie in the cache."""
    try:
        names = choose(wanted, listing, repo, commit)
    except CheckpointError:
        return False
    return all(is_complete(home / "snapshots" / commit / name, listing[name]) for name in names)


def in_cache(repo: str, revision: str, home: Path) -> tuple[str, Listing]:
    """The same, without a request. What another program has fetched is taken as it lies there."""
    commit = commit_of(revision, home)
    if commit is None:
        known = [path.relative_to(home / "refs").as_posix() for path in (home / "refs").rglob("*") if path.is_file()]
        found = f"holds only the revision {listed(sorted(known))} of it" if known else "does not hold it"
        raise CheckpointError(
            f"{repo}, revision {shown(revision)}: there is no such folder here, and the cache "
            f"{home.parent} {found}: fetch it once without offline"
        )
    folder = home / "snapshots" / commit
    lying = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return commit, read_listing(home, commit) or {name: File(path.stat().st_size, None) for name, path in lying.items()}


def commit_of(revision: str, home: Path) -> str | None:
    """By the cache alone."""
    ref = home / "refs" / revision
    commit = ref.read_text(errors="replace").strip() if ref.is_file() else revision
    return commit if COMMIT.fullmatch(commit) and (home / "snapshots" / commit).is_dir() else None


def is_complete(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def download(repo: str, commit: str, files: Listing, home: Path, what: str, tell: Callable[[str], None]) -> None:
    """`what` begins the line for the user."""
    blobs = home / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    left = sum(file.size for file in files.values()) - count_arrived(files, blobs)
    free = shutil.disk_usage(blobs).free
    if left > free:
        raise CheckpointError(
            f"{what}, {megabytes(left)} to download, and only {megabytes(free)} are free for {blobs}: "
            "make room, or choose another place by HF_HOME"
        )
    tell(f"{what}, {megabytes(left)} of it to download into {home}")
    for name, file in files.items():
        assert file.blob is not None  # `on_hub` accepts no other
        blob = blobs / file.blob
        link = home / "snapshots" / commit / name
        for path in (link, blob):
            if not is_complete(path, file):
                path.unlink(missing_ok=True)
        fetch_blob(repo, name, commit, file, blob)
        put(blob, link)


def put(blob: Path, link: Path) -> None:
    """The name that readers open."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except FileExistsError:  # by another process
        return
    except OSError:  # a file system without links: then a copy
        with scratch_folder(blob.parents[1]) as scratch, suppress(FileExistsError):
            place(Path(shutil.copyfile(blob, scratch / "copy")), link)


def sweep_parts(blobs: Path, listing: Listing) -> None:
    """Remove what killed processes left of files that the commit, which is fetched by now, does not hold."""
    known = {f"{file.blob}.incomplete" for file in listing.values()}
    for path in blobs.iterdir():
        if PART.fullmatch(path.name) and path.name not in known:
            with suppress(OSError, Timeout), FileLock(lock_of(path.with_suffix("")), timeout=0):
                path.unlink()


def count_arrived(files: Listing, blobs: Path) -> int:
    """Bytes that need no download, for they lie there whole or from an earlier attempt."""
    count = 0
    for file in files.values():
        for path in (blobs / f"{file.blob}.incomplete", blobs / f"{file.blob}"):
            if path.is_file():
                count += path.stat().st_size
    return count


def megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def explained_errors(repo: str, revision: str, home: Path) -> Generator[None]:
    """Turn whatever the client raises into a CheckpointError. The errors of a connection are those of the library that
    carries the client's requests, another with each of its major versions: no narrower type than Exception has them."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(explain(error, repo, revision, home)) from None


def explain(error: Exception, repo: str, revision: str, home: Path) -> str:
    """One line about what the client raised."""
    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case Refused(code="GatedRepo"):
            return f"{repo} is gated: accept its licence at {page}, then log in with `hf auth login`"
        case Refused(code="RepoNotFound"):
            return (
                f"{repo}: there is no such folder here, and no such model at {page}, or a private one: check the "
                "name, or log in with `hf auth login`"
            )
        case Refused(code="RevisionNotFound"):
            return f"{repo} has no revision {shown(revision)}: {page}/tree/main shows those it has"
        case Refused():
            advice = "log in with `hf auth login`" if error.status in (401, 403) else "try again later"
            return f"{repo}: {constants.ENDPOINT} answered {error.status}, {error.message or 'no reason'}: {advice}"
        case OSError(errno=errno.ENOSPC):
            return f"{repo}: the disk is full: make room for {home}, and run again to go on from here"
        case OSError(errno=int(), filename=str()):
            return f"{repo}: {error.filename} cannot be written: {error.strerror}"
    reason = shortened(str(error.__cause__ or error).partition("\n")[0]) or type(error).__name__
    held = commit_of(revision, home)
    instead = f", or take the cached commit {held[:12]} with offline" if held else ""
    return f"{repo}: the connection to {constants.ENDPOINT} failed, {reason}: run again to go on from here{instead}"
