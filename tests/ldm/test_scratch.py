"""ldm.scratch: what a killed program leaves is swept, and nothing else."""

import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from ldm.scratch import LOCK, place, scratch_folder, sweep, together

NAME = ".part-0123456789abcdef"


def killed_in(home: Path) -> Path:
    """A scratch folder whose program was killed while it wrote."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with scratch_folder(home) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text("half")
            os.write(tell, os.fsencode(folder))
            signal.pause()
    folder = Path(os.fsdecode(os.read(ready, 1000)))
    os.close(ready)
    os.close(tell)
    sweep(home)
    assert (folder / "sub" / "file").exists()  # its program lives
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / "sub" / "file").exists()
    return folder


def test_what_a_killed_program_left_is_swept(tmp_path):
    killed_in(tmp_path)
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder] and folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_stays(tmp_path):
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        sweep(tmp_path)
        assert first.is_dir() and second.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [NAME, ".part-mine", ".part-0123456789abcde", NAME + ".bak", NAME.upper(), "x" + NAME])
def test_what_users_made_stays(name, tmp_path):
    """Of any name, with a file in it that is no lock of ours; and of another name, with one that is."""
    (tmp_path / name).mkdir()
    (tmp_path / name / ("mine" if name == NAME else LOCK)).touch()
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["file", "link", "link inside", "pipe inside", "folder inside"])
def test_what_only_looks_like_a_leftover_stays(kind, tmp_path):
    """Nothing is followed out of the folder, and nothing is waited for."""
    folder = tmp_path / "home" / NAME
    other = tmp_path / "other"
    other.mkdir()
    (other / LOCK).touch()
    (tmp_path / "home").mkdir()
    match kind:
        case "file":
            folder.touch()
        case "link":
            folder.symlink_to(other)
        case "link inside":
            folder.mkdir()
            (folder / LOCK).symlink_to(other / LOCK)
        case "pipe inside":
            folder.mkdir()
            os.mkfifo(folder / LOCK)
        case "folder inside":
            folder.mkdir()
            (folder / LOCK).mkdir()
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path / "home")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_leftover_are_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("whole")
    (tmp_path / "home").mkdir()
    folder = killed_in(tmp_path / "home")
    (folder / "link").symlink_to(tmp_path / "mine")
    (folder / "sub" / "link").symlink_to(tmp_path / "mine")
    sweep(tmp_path / "home")
    assert not folder.exists() and (tmp_path / "mine" / "file").read_text() == "whole"


def test_many_at_once(tmp_path):
    """Each makes, uses and removes its own, while all sweep: no one loses what it writes."""
    failures = []

    def work():
        try:
            for _ in range(50):
                with scratch_folder(tmp_path) as folder:
                    (folder / "file").write_text("x")
                    assert (folder / "file").read_text() == "x"
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == [] and list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_nothing_vanish(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with scratch_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").touch()
        place(folder / "x", tmp_path / "a" / "b" / "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "x"]


def test_files_take_their_places_together_or_not_at_all(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=f"^{tmp_path}: cannot be written: No space left on device$"):
        with together(tmp_path) as folder:
            (folder / "a").write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "b"))
    assert (tmp_path / "a").is_symlink() and len(list(tmp_path.iterdir())) == 2
    with together(tmp_path) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("newer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"victim": "mine", "a": "new", "b": "newer"}
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("taken", ["file", "link"])
def test_a_place_that_is_taken(taken, tmp_path):
    (tmp_path / "part").write_text("new")
    if taken == "file":
        (tmp_path / "place").write_text("old")
    else:
        (tmp_path / "place").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        place(tmp_path / "part", tmp_path / "place")
    assert (tmp_path / "part").read_text() == "new" and not (tmp_path / "nowhere").exists()
    (tmp_path / "place").unlink()
    place(tmp_path / "part", tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
