"""One large file from the hub, from where an earlier attempt stopped. The client has no public function for that, so
the ranges are asked for here, through its own session. The SHA-256 must be the one that the hub lists.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from huggingface_hub import constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, tqdm

from ..errors import CheckpointError

ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds between two attempts


def fetch_blob(repo: str, name: str, commit: str, size: int, blob: Path) -> None:
    """blob: where the file lies in the cache, named by its SHA-256; while it arrives, with .incomplete behind.

    Raises CheckpointError for a damaged file, OSError, or what the client's session raises. What arrived is kept.
    """
    lock = blob.parents[2] / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"  # the client's own
    lock.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(blob.name + ".incomplete")
    url = hf_hub_url(repo, name, revision=commit)
    with FileLock(lock):
        if blob.is_file() and blob.stat().st_size == size:  # by another process, while this one waited
            return
        with part.open("ab") as out, tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            if out.tell() > size:
                out.truncate(0)
            fetch_rest(url, size, out, bar)
        with part.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if found != blob.name:
            part.unlink()
            raise CheckpointError(f"{url} arrived damaged, with SHA-256 {found[:12]} for {blob.name[:12]}: run again")
        os.replace(part, blob)


def fetch_rest(url: str, size: int, out: BinaryIO, bar: tqdm) -> None:
    """Append what is missing of `size` bytes. A connection that ends early or falls silent is taken up again; one that
    was reset, or a refusal, is an error."""
    failures = 0
    while True:
        begin = os.fstat(out.fileno()).st_size
        bar.update(begin - bar.n)
        if begin == size:
            return
        try:
            fetch_range(url, begin, out, bar)
        except HfHubHTTPError:
            raise
        except OSError:  # of the disk
            raise
        except Exception as error:  # of the library that carries the requests, see download.explained_errors
            failures = 0 if os.fstat(out.fileno()).st_size > begin else failures + 1
            if failures == ATTEMPTS or was_reset(error):
                raise
            time.sleep(PAUSE)


def fetch_range(url: str, begin: int, out: BinaryIO, bar: tqdm) -> None:
    """All bytes from `begin`, as far as the connection brings them."""
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:
        headers["Authorization"] = f"Bearer {token}"  # the session drops it where another host sends the file
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if begin and response.status_code == 200:  # the server sends the whole file whatever was asked
            out.truncate(0)
            bar.update(-bar.n)
        try:
            for chunk in response.iter_bytes(constants.DOWNLOAD_CHUNK_SIZE):
                out.write(chunk)
                bar.update(len(chunk))
        finally:
            out.flush()


def was_reset(error: BaseException | None) -> bool:
    """Whether the other side broke the connection: the library's error has the socket's as its cause."""
    while error is not None:
        if isinstance(error, ConnectionResetError):
            return True
        error = error.__cause__ or error.__context__
    return False
