"""What people write for a source that is no plain path: a path in quotes or with ~, the index of a folder, a repository
with its revision, the address of a page of the hub or of a file there.

    owner/name                  owner/name@revision         owner/name/folder/file.safetensors@revision
    https://huggingface.co/owner/name/tree/revision/folder, .../blob/revision/file, .../resolve/revision/file?download=1
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from .disk.kinds import PICKLED, convert_command
from .disk.settings import read_json
from .errors import CheckpointError, shown
from .hub.wanted import inside

Wanted = Callable[[list[str]], list[str]]
HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
AROUND = " \t\r\n\"'`<>“”‘’"  # what is copied along with a name
NO_MODELS = ("datasets", "spaces", "collections", "papers", "blog", "docs", "buckets")
PAGES = ("tree", "blob", "resolve", "raw", "blame", "commit", "commits", "edit")  # a revision follows
OTHER_PAGES = ("discussions", "settings", "activity")
LONG_REVISION = re.compile(r"refs/\w+/[^/]+")  # the others have no slash in an address
SUFFIX = ".safetensors"


class Address(NamedTuple):
    """repo: owner/name. inside: a file or folder in it, or ""."""

    repo: str
    revision: str | None = None
    inside: str = ""


def find(source: str, wanted: Wanted, revision: str | None, offline: bool) -> tuple[Path, str]:
    """As weights.locate. A revision that is asked for comes before that of the source."""
    text = source.strip(AROUND)
    path = local_path(text)
    if os.path.lexists(path):
        return described_by(path), ""
    address = parse(text)
    if address is None:
        refuse(source)
    return fetch(source, address, wanted, revision, offline)


def as_written(source: str | os.PathLike[str]) -> Path:
    """A path as it stands if something lies there, else without quotes, and with ~ for the user's home."""
    path = Path(source)
    return path if os.path.lexists(path) else local_path(os.fspath(source).strip(AROUND))


def local_path(text: str) -> Path:
    if text.startswith("file:"):
        text = unquote(urlsplit(text).path)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise CheckpointError(
            f"{text}: there is no such user, or the user has no home folder: write the path out"
        ) from None


def described_by(path: Path) -> Path:
    """What a JSON file in a model's folder stands for: the index of shards for itself, the others for their folder."""
    if path.is_dir() or path.suffix != ".json":
        return path
    if path.name in ("model_index.json", "config.json"):
        return path.parent
    if "weight_map" not in read_json(path):
        raise CheckpointError(f"{path} is JSON text and no model: give the folder of a model, or a .safetensors file")
    return path


def parse(text: str) -> Address | None:
    """What a text names on the hub; None where it names nothing there. CheckpointError for an address elsewhere."""
    text = text.removeprefix("git clone ")
    bare = re.sub("^(https?|hf)://", "", text, flags=re.IGNORECASE)
    host, _, rest = bare.partition("/")
    is_web = text.lower().startswith(("http://", "https://")) or host.lower() in HUBS
    if is_web:
        if not is_hub(host):
            raise CheckpointError(
                f"{text} is an address, and only those of the hub are followed: download the file and give its path"
            )
        rest = unquote(urlsplit("//host/" + rest).path)
    elif bare.startswith(("/", ".", "~")) or "//" in bare:  # a path
        return None
    else:
        rest = bare
    words = [word for word in rest.split("/") if word]
    if words[:2] == ["api", "models"] or words[:1] == ["models"]:
        words = words[words.index("models") + 1 :]
    if is_web and words and words[0] in NO_MODELS:
        raise CheckpointError(f"{text} is a page of the hub's {words[0]}, where no models are")
    if len(words) < 2:
        if is_web:
            raise CheckpointError(f"{text} names no model: an address with owner/name is expected")
        return None
    address = within_repository(words)
    is_path = address.inside and not address.revision and not address.inside.endswith(SUFFIX)
    return None if is_path and not is_web else address


def is_hub(host: str) -> bool:
    from huggingface_hub import constants  # importing the hub's client takes long

    return host.lower() in (*HUBS, urlsplit(constants.ENDPOINT).netloc.lower())


def within_repository(words: list[str]) -> Address:
    """words: those between the slashes, from the owner on."""
    name, at, revision = words[1].partition("@")
    rest = "/".join(words[2:])
    if at and rest and not rest.endswith(SUFFIX):  # a revision with a slash in it
        return Address(f"{words[0]}/{name}", f"{revision}/{rest}")
    if not at and "@" in rest:
        rest, _, revision = rest.rpartition("@")
    if words[2:3] and words[2] in PAGES:
        rest = "/".join(words[3:])
        long = LONG_REVISION.match(rest)
        revision = long[0] if long else rest.partition("/")[0]
        rest = rest.removeprefix(revision).strip("/")
    elif words[2:3] and words[2] in OTHER_PAGES:
        rest = ""
    return Address(f"{words[0]}/{name.removesuffix('.git')}", revision or None, rest)


def fetch(source: str, address: Address, wanted: Wanted, revision: str | None, offline: bool) -> tuple[Path, str]:
    from .hub import download  # see is_hub

    folder = address.inside
    if folder.endswith(PICKLED):
        copy = Path(folder).name
        raise CheckpointError(
            f"{source} is pickled Python by its name, and never read here: download it, then {convert_command(copy)}"
        )
    if folder.endswith(".json"):
        folder = folder.rpartition("/")[0]
    name = f"{address.repo}/{folder}" if folder.endswith(SUFFIX) else address.repo
    if not download.is_repo(name):
        refuse(source)
    if folder and name == address.repo:
        found = download.fetch(name, below(folder, wanted), revision or address.revision, offline)
        return found.path / folder if found.path.is_dir() else found.path, found.commit
    found = download.fetch(name, wanted, revision or address.revision, offline)
    return found.path, found.commit


def below(folder: str, wanted: Wanted) -> Wanted:
    """The same choice in a folder of a repository; beside a UNet lies what says how it was trained."""

    def choose(names: list[str]) -> list[str]:
        here = inside(names, folder)
        if not here:
            raise CheckpointError(f"it has no folder {shown(folder)}")
        found = [f"{folder}/{name}" for name in wanted(here)]
        home, _, last = folder.rpartition("/")
        scheduler = f"{home}/scheduler/scheduler_config.json".lstrip("/")
        return [*found, scheduler] if last == "unet" and scheduler in names else found

    return choose


def refuse(source: str) -> NoReturn:
    raise CheckpointError(
        f"{source} does not exist: give a folder in diffusers' layout, a .safetensors file or "
        "the name of a repository, owner/name"
    )
