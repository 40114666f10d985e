"""Hubs that lie, and networks that answer in their place: each ends in one line, and the cache holds what it should.

Whatever is said, nothing is written but the cache, and in it nothing but files under the names that belong there.
"""

import gzip
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from support.hub_server import Hub, connect, git_hash, sha256
from weights import CheckpointError
from weights.hub import connection, resume
from weights.hub.download import fetch

REPO, FILE, SMALL = "owner/name", "model.safetensors", "config.json"
BIG = os.urandom(300_000)
FILES = {FILE: BIG, SMALL: b'{"a": 1}'}
LISTING, BLOB, TEXT = "/api/models/", f"/cdn/{REPO}", f"/resolve/{{}}/{SMALL}"
PAGE = b"<html>Sign in to this network</html>"
HEX = "[0-9a-f]"
BELONGS = re.compile(
    rf"hub(/\.locks(/models--owner--name(/{HEX}+\.lock)?)?|/models--owner--name(/refs(/main)?|/listings(/{HEX}{{40}}\.json)?"
    rf"|/blobs(/({HEX}{{40}}|{HEX}{{64}})(\.incomplete)?)?|/snapshots(/{HEX}{{40}}(/(config\.json|model\.safetensors|other\.safetensors))?)?)?)?"
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """In the middle of a tree that must stay as it is."""
    home = tmp_path / "a" / "b" / "home"
    home.mkdir(parents=True)
    (tmp_path / "a" / "mine").write_text("mine")
    monkeypatch.setattr(resume, "PAUSE", 0)
    monkeypatch.chdir(tmp_path / "a")
    with Hub() as hub:
        connect(monkeypatch, hub.url, home)
        yield hub
    assert sorted(os.listdir(tmp_path)) == ["a"] and sorted(os.listdir(tmp_path / "a")) == ["b", "mine"]
    assert (tmp_path / "a" / "mine").read_text() == "mine" and os.listdir(tmp_path / "a" / "b") == ["home"]
    strange = [path for path in home.rglob("*") if not BELONGS.fullmatch(path.relative_to(home).as_posix())]
    assert strange == []


def every(names: list[str]) -> list[str]:
    return names


def refused(source: str = REPO, wanted=every, **settings) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(source, wanted, **settings)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 700, line
    return line


def read(fetched) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in fetched.path.iterdir()}


@contextmanager
def limited(more: int = 10**9):
    """No more than so many bytes of memory beyond what this process has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# names


@pytest.mark.parametrize("value", ["../../../../x", "{tmp}/x", "a/b", "", ".", "..", "x" * 300, "a\\b", '"'])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
def test_a_header_names_no_file(header, value, hub, tmp_path):
    hub.push(REPO, FILES)
    hub.headers = {header: value.format(tmp=tmp_path)}
    assert read(fetch(REPO, every)) == FILES


def test_headers_without_end(hub):
    hub.push(REPO, FILES)
    hub.headers = {"ETag": "x" * 10**6}
    assert "the connection to" in refused()


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../../../../x", "/x", "{tmp}/x", "..", ".", "", "a//b", "a/", "a/./b", "..\\x", "C:x", "C:/x"),
        *("a\nb", "a\0b", "a\x1b[2Jb", "a\x7f", "a\u202eb", "x" * 300, "é" * 150, "a/" * 600 + "x"),
    ],
)
def test_names_that_lead_elsewhere(name, hub, tmp_path):
    name = name.format(tmp=tmp_path)
    hub.push(REPO, FILES | {name: b"x"})
    assert "that is no name of a file in a repository" in refused()
    assert read(fetch(REPO, lambda names: [FILE, SMALL])) == FILES  # what is not wanted does no harm


def test_names_that_are_one_on_some_systems(hub):
    hub.push(REPO, FILES | {"Config.json": b"{}"})
    assert "'Config.json' and 'config.json': only one" in refused()


# the listing


@pytest.mark.parametrize(
    "file, entry",
    [
        *((FILE, {"lfs": {"sha256": value}}) for value in ("../../x", "A" * 64, "a" * 63, "a" * 64 + "\n", 5)),
        *((SMALL, {"blobId": value}) for value in ("../../x", "/x", "a" * 39, "", 5, None)),
        *((SMALL, {"size": value}) for value in (-1, 1.5, True, "8", None, [], 10**30, 10**4000)),
        (FILE, {"lfs": [1]}),
        (SMALL, {"rfilename": None, "size": "x"}),
    ],
)
def test_entries_that_are_none(file, entry, hub):
    hub.push(REPO, FILES)
    hub.entries[file] = entry
    assert "does not answer as the hub does" in refused()


@pytest.mark.parametrize(
    "body",
    [
        b'{"siblings": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"sha": 1' + b"0" * 10_000 + b"}",
        b'{"sha": "../../x", "siblings": []}',
        b'{"sha": "%s", "siblings": {}}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [5]}' % (b"0" * 40),
        b'{"sha": "%s", "siblings": [{"rfilename": "a", "size": 1e999, "blobId": "%s"}]}' % (b"0" * 40, b"0" * 40),
        gzip.compress(b'{"sha": "' + b"0" * 10**7),
        b"\xff" * 100,
        PAGE,
        b"",
    ],
    ids=range(10),
)
def test_listings_that_are_none(body, hub):
    hub.push(REPO, FILES)
    headers = {"Content-Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
    hub.lies[LISTING] = lambda handler: handler.answer(200, headers, body)
    assert "does not answer as the hub does" in refused()
    hub.lies.clear()
    assert read(fetch(REPO, every)) == FILES


def test_another_commit_than_the_one_that_was_asked_for(hub):
    first, second = hub.push(REPO, FILES), hub.push(REPO, FILES | {SMALL: b"{}"})
    hub.repos[REPO].commits[first], hub.repos[REPO].branches[first] = FILES, second
    assert "does not answer as the hub does" in refused(revision=first)


def test_a_listing_that_lied_does_not_poison_the_next_run(hub):
    """Of a commit, too, which is asked for by its name and was listed before."""
    commit = hub.push(REPO, FILES)
    hub.entries[FILE] = {"size": 5}
    assert "where 5 are listed" in refused(revision=commit)
    hub.entries[FILE] = {"rfilename": "../x"}
    assert "no name of a file" in refused(revision=commit)
    hub.entries.clear()
    assert read(fetch(REPO, every, revision=commit)) == FILES
    hub.taken()
    assert read(fetch(REPO, every, revision=commit)) == FILES and hub.taken() == []


# more and less than was listed


@pytest.mark.parametrize("piece", [b" " * 2**16, gzip.compress(b" " * 10**8)], ids=["plain", "packed"])
@pytest.mark.parametrize("place", [LISTING, BLOB, TEXT])
def test_answers_without_end(place, piece, hub):
    """A few MB lie in the buffers of the system; more is never taken, nor kept, nor unpacked."""
    commit = hub.push(REPO, FILES)
    encoding = {"Content-Encoding": "gzip"} if piece[0] == 0x1F else {}
    hub.lies[place.format(commit)] = lambda handler: handler.pour(piece, encoding)
    with limited():
        line = refused()
    assert "does not answer as" in line if place == LISTING else "it is another file, run again later" in line
    hub.lies.clear()
    assert read(fetch(REPO, every)) == FILES
    assert hub.poured[0] < 60_000_000


@pytest.mark.parametrize("file", [FILE, SMALL])
def test_longer_than_listed(file, hub):
    hub.push(REPO, FILES)
    hub.spoiled[file] = FILES[file] + b"x"
    assert f"sends '{len(FILES[file]) + 1}' bytes where {len(FILES[file])} are listed" in refused()
    hub.spoiled.clear()
    assert read(fetch(REPO, every)) == FILES


@pytest.mark.parametrize("file", [FILE, SMALL])
def test_shorter_than_listed(file, hub):
    """Without a length it may be cut off by the network: it is taken up again, a few times."""
    hub.push(REPO, FILES)
    place = BLOB if file == FILE else f"/{file}"

    def short(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(FILES[file][:7])

    hub.lies[place] = short
    assert f"ends after 7 bytes of the {len(FILES[file])} that are listed" in refused()
    assert sum(place in asked.path for asked in hub.taken()) == resume.ATTEMPTS
    hub.lies.clear()
    assert read(fetch(REPO, every)) == FILES


@pytest.mark.parametrize("file", [FILE, SMALL])
def test_other_bytes_than_listed(file, hub, tmp_path):
    hub.push(REPO, FILES)
    hub.spoiled[file] = FILES[file][:-1] + b"\0"
    assert "arrived damaged" in refused()
    assert not list(tmp_path.rglob(file)) and not list(tmp_path.rglob("*.incomplete"))
    hub.spoiled.clear()
    assert read(fetch(REPO, every)) == FILES


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("file", [FILE, SMALL])
def test_a_page_in_place_of_a_file(file, length, hub):
    """A network that asks to sign in answers so to everything. The next run finds nothing of it."""
    hub.push(REPO, FILES)

    def page(handler):
        if length:
            return handler.answer(200, {"Content-Type": "text/html"}, PAGE)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(PAGE)

    hub.lies[BLOB if file == FILE else f"/{file}"] = page
    refused()
    cache = Path(resume.constants.HF_HUB_CACHE)
    assert not any(PAGE[:6] in path.read_bytes() for path in cache.rglob("*") if path.is_file())
    hub.lies.clear()
    assert read(fetch(REPO, every)) == FILES


def test_a_page_does_not_cost_what_had_arrived(hub):
    hub.push(REPO, FILES)
    hub.cuts[FILE] = [-200_000]
    refused()
    hub.lies[BLOB] = lambda handler: handler.answer(200, {}, PAGE)
    assert f"sends '{len(PAGE)}' bytes where" in refused()
    hub.lies.clear()
    hub.taken()
    assert read(fetch(REPO, every)) == FILES
    assert next(asked.start for asked in hub.taken() if asked.path.startswith("/cdn")) > 100_000


def test_a_spoiled_part_is_fetched_anew(hub, tmp_path):
    hub.push(REPO, FILES)
    blobs = Path(resume.constants.HF_HUB_CACHE) / "models--owner--name/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(BIG)}.incomplete").write_bytes(PAGE)
    (blobs / f"{git_hash(FILES[SMALL])}.incomplete").write_bytes(b"<html>")
    assert read(fetch(REPO, every)) == FILES


@pytest.mark.parametrize("place", ["bytes 0-99/300000", "bytes 7-", "", "x" * 300])
def test_another_range_than_was_asked_for(place, hub):
    hub.push(REPO, FILES)
    hub.cuts[FILE] = [-200_000]
    refused()
    hub.headers = {"Content-Range": place}
    assert "for the bytes from " in refused()
    hub.headers = {}
    assert read(fetch(REPO, every)) == FILES


# refusals, redirections, trickles


@pytest.mark.parametrize(
    "headers, body, words",
    [
        ({}, b"x" * 5000, "xxx...xxx"),
        ({}, b"one\ntwo", "one"),
        ({}, b"\x1b[2J\x07gone", "gone"),
        ({"X-Error-Message": "\x1b[2J" + "y" * 3000}, b"", "yyy...yyy"),
        ({"X-Error-Message": "said", "X-HF-Warning": "a; \x1b[2J"}, PAGE, "said"),
        ({"Content-Type": "text/html"}, PAGE, "no reason"),
        ({}, b'{"error": "Restricted"}', "Restricted"),
        ({}, b'{"error": "' + b"x" * 5000 + b'"}', "xxx...xxx"),
        ({}, b'{"error": ' + b"[" * 9000 + b"]" * 900, "no reason"),
    ],
    ids=range(9),
)
def test_what_a_refusal_says_is_shortened(headers, body, words, hub, capfd):
    commit = hub.push(REPO, FILES)
    for place in (LISTING, TEXT.format(commit)):
        hub.lies = {place: lambda handler: handler.answer(500, headers, body)}
        line = refused()
        assert "answered 500, " in line and words in line
    assert "\x1b" not in capfd.readouterr().err


def test_refusals_without_end(hub):
    hub.push(REPO, FILES)
    hub.lies[LISTING] = lambda handler: handler.pour(b"x" * 2**16, status=500)
    with limited():
        assert "answered 500, no reason" in refused()


@pytest.mark.parametrize(
    "target, words",
    [
        ("{url}/api/models/loop", "more than 8 redirections"),
        ("file:///etc/passwd", "leads to file:"),
        ("ftp://a/b", "leads to ftp"),
        ("http://[", ""),
        ("x" * 5000, ""),
        ("http://127.0.0.1:1/", "Connection refused"),
    ],
)
@pytest.mark.parametrize("place", [LISTING, BLOB])
def test_redirections_that_lead_nowhere(place, target, words, hub):
    hub.push(REPO, FILES)
    target = target.format(url=hub.url)
    if "loop" in target and place == BLOB:
        target = f"{hub.url}{BLOB}/loop"
    hub.lies[place] = lambda handler: handler.answer(302, {"Location": target})
    assert words in refused()


def test_redirections_are_not_read(hub):
    hub.push(REPO, FILES)

    def redirect(handler):
        hub.lies.clear()
        handler.pour(b"x" * 2**16, {"Location": handler.path}, status=302)

    hub.lies[LISTING] = redirect
    with limited():
        assert read(fetch(REPO, every)) == FILES


@pytest.mark.parametrize("where", ["status", "header", "body", "error", "informational"])
@pytest.mark.parametrize("place", [LISTING, BLOB])
def test_trickles_are_given_up(place, where, hub, monkeypatch):
    """A byte now and then keeps every single wait short."""
    monkeypatch.setattr(connection, "WINDOW", 0.2)
    hub.push(REPO, FILES)

    def trickle(handler):
        start = {
            "status": b"HTTP/1.1 ",
            "header": b"HTTP/1.1 200 OK\r\nX-Long: ",
            "body": b"HTTP/1.1 200 OK\r\n\r\n",
            "error": b"HTTP/1.1 500 No\r\n\r\n",
            "informational": b"",
        }[where]
        piece = b"HTTP/1.1 102 Processing\r\n\r\n" if where == "informational" else b"0"
        try:
            handler.connection.sendall(start)
            while not hub.closed.wait(0.02):
                handler.connection.sendall(piece)
        except OSError:
            pass

    hub.lies[place] = trickle
    line = refused()
    assert "timed out: fewer than 1000 bytes per second" in line


# what killed processes left, and what others put there


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_a_part_that_is_no_file_is_not_written_to(kind, hub, tmp_path):
    """In a cache that several people share, one may have put it there."""
    hub.push(REPO, FILES)
    blobs = Path(resume.constants.HF_HUB_CACHE) / "models--owner--name/blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{sha256(BIG)}.incomplete"
    if kind == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to(tmp_path / "a" / {"link": "mine"}.get(kind, "nothing"))
    assert read(fetch(REPO, every)) == FILES


def test_parts_of_other_commits_are_swept(hub):
    """Unless a process that lives holds their lock, or the commit holds them too, or another program made them."""
    hub.push(REPO, FILES | {"other.safetensors": BIG[:9]})
    blobs = Path(resume.constants.HF_HUB_CACHE) / "models--owner--name/blobs"
    blobs.mkdir(parents=True)
    dead, alive, wanted = "a" * 64, "b" * 64, sha256(BIG[:9])
    stay = [f"{alive}.incomplete", f"{wanted}.incomplete"]
    for name in (f"{dead}.incomplete", *stay):
        (blobs / name).write_bytes(BIG[:5])
    with FileLock(resume.lock_of(blobs / alive)):
        fetch(REPO, lambda names: [FILE, SMALL])
        assert sorted(path.name for path in blobs.glob("*.incomplete")) == sorted(stay)
    fetch(REPO, lambda names: ["other.safetensors"])
    assert not list(blobs.glob("*.incomplete"))
