"""Where a file lies while it is written: in a scratch folder beside its place, from which it moves when it is complete.

    .part-0123456789abcdef/    16 random hexadecimal digits
        in-use.lock            locked (flock) as long as the program that made the folder runs
        ...                    what is not finished

A program that is killed leaves such a folder behind. The system has dropped its lock by then, and the next program
that writes there sweeps the folder away. What is locked, what has another name, what holds something but no such lock
file and what belongs to another user stays. Where the file system knows no locks, nothing is swept.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

NAME = re.compile(r"\.part-[0-9a-f]{16}")
LOCK = "in-use.lock"


@contextmanager
def scratch_folder(home: Path) -> Generator[Path]:
    """A new folder inside `home`, which is made if it is missing; at the end it vanishes with all that is left in it.
    Folders that killed programs left in `home` are swept first. Raises OSError if `home` cannot be written."""
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
        folder, lock = make_locked(home)
        try:
            yield folder
        finally:
            with suppress(OSError):
                remove(folder)
            if lock is not None:
                os.close(lock)
    finally:
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@contextmanager
def together(home: Path) -> Generator[Path]:
    """A scratch folder whose files take their places in `home` at the end of the block, whole; none does if the block
    fails. A link at such a place is replaced and not followed. Raises OSError, one line, if they cannot be written."""
    try:
        with scratch_folder(home) as scratch:
            yield scratch
            for part in sorted(scratch.iterdir()):
                if part.name != LOCK:
                    os.replace(part, home / part.name)
    except OSError as error:
        raise OSError(f"{home}: cannot be written: {error.strerror or error}") from error


def sweep(home: Path) -> None:
    """Remove the scratch folders in `home` whose programs are dead. What cannot be removed stays, without an error."""
    with suppress(OSError), os.scandir(home) as entries:
        found = [Path(entry.path) for entry in entries if NAME.fullmatch(entry.name)]
        for folder in found:
            with suppress(OSError):
                sweep_one(folder)


def sweep_one(folder: Path) -> None:
    """Raises OSError where there is nothing to do, or nothing can be done."""
    status = folder.lstat()
    if fcntl is None or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    if not os.listdir(folder):
        folder.rmdir()  # its program was killed before it could make the lock, or after it had removed it
        return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if stat.S_ISREG(os.fstat(lock).st_mode):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
    finally:
        os.close(lock)


def make_locked(home: Path) -> tuple[Path, int | None]:
    """A new folder and the descriptor that holds its lock; None where there are no locks."""
    while True:
        folder = home / f".part-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return folder, None
        # Another program may sweep the folder before it is locked. Then this one makes another.
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # this file system has none, and without the file nobody sweeps the folder
            os.close(lock)
            (folder / LOCK).unlink()
            return folder, None
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def remove(folder: Path) -> None:
    """The lock goes last: without it nobody would know what the rest is. Raises OSError for what cannot be removed."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


def place(part: Path, path: Path) -> None:
    """Move a complete file to its place in the same file system. Raises FileExistsError, and changes nothing, if the
    place is taken, even by another program at the same moment."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # this file system has no second names for a file
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists already") from None
        os.rename(part, path)
        return
    part.unlink()


def at_home(path: str | Path) -> Path:
    """A path with the user's home in place of ~ at its beginning, as a shell has it: it stands as it is where it names
    no user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
