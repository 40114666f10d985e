"""One answer of the hub, piece by piece and within limits, whatever the other side sends.

Requests go through the session of the hub's own client, so its proxies and certificates apply. Its own functions would
read what a page, a redirection or an error holds whole, and unpack it too; here nothing is unpacked, redirections are
followed one by one, and the time is limited: a server that keeps a connection alive by a byte now and then is given up.
"""

import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

from huggingface_hub import get_session
from huggingface_hub.utils import build_hf_headers

SLOWEST = 1000  # bytes per second that a connection must bring
WINDOW = 30.0  # seconds over which that is measured, and within which an answer must begin
REDIRECTS = 8
QUEUED = 16  # pieces that have come and are not written yet
MESSAGE_BYTES = 10_000  # of an error's page are looked at


def shortened(text: str) -> str:
    """What the other side says, as an error quotes it."""
    return text if len(text) <= 200 else f"{text[:150]}...{text[-30:]}"


class Answer(NamedTuple):
    """status: of HTTP, 200 to 299. headers: case does not matter in their names. pieces: the bytes as they come."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Refused(Exception):
    """An answer without what was asked for. code: the hub's own word, such as GatedRepo, or "". message: one line."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(f"status {status}, {message}")
        self.status = status
        self.code = code
        self.message = message


class GivenUp(Exception):
    """The other side is too slow, or leads nowhere."""


@contextmanager
def ask(url: str, timeout: float, headers: Mapping[str, str] = {}) -> Generator[Answer]:
    """The answer to a GET. timeout: seconds of silence; see SLOWEST for a trickle.

    Raises Refused, GivenUp, or what the client's session raises where a connection fails.
    """
    inbox: Queue = Queue(QUEUED)
    left = Event()
    # Only another thread can be given up while it waits for a header that never ends.
    Thread(target=carry, args=(url, timeout, headers, inbox, left), daemon=True).start()
    try:
        pieces = receive(inbox)
        response = next(pieces)
        if not response.is_success:
            raise refusal(response, pieces)
        yield Answer(response.status_code, response.headers, pieces)
    finally:
        left.set()
        while not inbox.empty():  # the thread may wait for room
            inbox.get_nowait()


def carry(url: str, timeout: float, headers: Mapping[str, str], inbox: Queue, left: Event) -> None:
    """Put the response, its pieces and then None into the inbox, or the error in place of the rest."""
    try:
        session = get_session()
        every = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        response = follow(session, session.build_request("GET", url, headers=every, timeout=timeout))
        try:
            inbox.put(response)
            for piece in response.iter_raw():
                if left.is_set():
                    return
                inbox.put(piece)
        finally:
            response.close()
        inbox.put(None)
    except Exception as error:  # of the library that carries the requests, another with each version of the client
        inbox.put(error)


def follow(session: Any, request: Any) -> Any:
    """The first response that is no redirection. The session drops the token where another host is asked."""
    for _ in range(REDIRECTS):
        response = session.send(request, stream=True, follow_redirects=False)
        if response.next_request is None:
            return response
        response.close()
        scheme = response.next_request.url.scheme
        if scheme != "https" and scheme != request.url.scheme:
            raise GivenUp(f"{shortened(str(request.url))} leads to {shortened(str(response.next_request.url))}")
        request = response.next_request
    raise GivenUp(f"more than {REDIRECTS} redirections")


def receive(inbox: Queue) -> Iterator[Any]:
    """What the thread has put into the inbox, as long as it comes fast enough."""
    begin = time.monotonic()
    count = 0
    while True:
        try:
            piece = inbox.get(timeout=max(begin + WINDOW - time.monotonic(), 0))
        except Empty:
            if count < SLOWEST * WINDOW:
                raise GivenUp(f"timed out: fewer than {SLOWEST} bytes per second in {WINDOW:g} seconds") from None
            begin = time.monotonic()
            count = 0
            continue
        if piece is None:
            return
        if isinstance(piece, Exception):
            raise piece
        yield piece
        if isinstance(piece, bytes):
            count += len(piece)


def read_all(pieces: Iterator[bytes], most: int) -> bytes | None:
    """All bytes; None as soon as there are more than `most`."""
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) > most:
            return None
    return bytes(found)


def refusal(response: Any, pieces: Iterator[bytes]) -> Refused:
    """With the message from the header, or from what the hub sends in place of the file."""
    message = response.headers.get("X-Error-Message", "")
    if not message:
        message = message_in(read_all(pieces, MESSAGE_BYTES) or b"")
    return Refused(response.status_code, response.headers.get("X-Error-Code", ""), shortened(message))


def message_in(body: bytes) -> str:
    """A text, or what a JSON object calls its error; nothing of a page."""
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        try:
            return str(json.loads(text).get("error", ""))
        except (ValueError, RecursionError):
            return ""
    return "" if text.startswith("<") else text
