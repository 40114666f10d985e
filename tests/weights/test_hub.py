"""weights.hub.download with the hub's real client, against a hub on this machine.

The client reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, and conftest.py has forbidden it the
network before that. So the fixture sets its constants as those variables would; one test, which needs a process to
kill anyway, goes through the variables themselves.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download

import weights
from support import tiny
from support.hub_server import Hub, connect, sha256
from weights import CheckpointError
from weights.hub import resume
from weights.hub.download import fetch, is_repo
from weights.hub.wanted import model_files, one_file, part_files

REPO, FILE = "owner/name", "model.safetensors"
BIG = os.urandom(3_000_000)
LISTED = ["GET /api/models/owner/name/revision/main"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        connect(monkeypatch, hub.url, tmp_path)
        yield hub
    shutil.rmtree(tmp_path)


def every(names: list[str]) -> list[str]:
    return names


def requests(hub: Hub) -> list[str]:
    return [f"{asked.method} {asked.path}" for asked in hub.taken()]


def small(file: str) -> list[str]:
    """What is asked for a file that the hub sends itself."""
    return [f"GET /owner/name/resolve/{{commit}}/{file}"]


def large(file: str) -> list[str]:
    """And for one that it sends from elsewhere."""
    return [f"GET /owner/name/resolve/{{commit}}/{file}", f"GET /cdn/{file}"]


def refused(source: str = REPO, wanted=every, **settings) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(source, wanted, **settings)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600
    return line


def read(fetched) -> dict[str, bytes]:
    return {
        path.relative_to(fetched.path).as_posix(): path.read_bytes()
        for path in fetched.path.rglob("*")
        if path.is_file()
    }


# which files, by their names


@pytest.mark.parametrize(
    "source, expected",
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", True),
        ("a/b", True),
        ("a/b/c.safetensors", True),
        ("a/b/split files/c-1.0+x.safetensors", True),
        ("name", False),
        ("a/b/c", False),
        ("a/b.safetensors", False),
        ("models/v1.ckpt", False),
        ("./a/b", False),
        ("../a/b", False),
        ("/a/b", False),
        ("~/a", False),
        ("a/..", False),
        ("a//b", False),
        ("a/b/", False),
        ("a--b/c", False),
        ("a/b/../c.safetensors", False),
        ("a/b\n", False),
        ("", False),
        ("http://a/b", False),
        ("a/é", False),
        ("weights/miniature", False),
    ],
)
def test_which_sources_name_a_repository(source, expected):
    """weights/miniature would, if it were not a folder here."""
    assert is_repo(source) is expected


def folders(*parts: str) -> list[str]:
    return [f"{part}/config.json" for part in parts]


def tokenizers(*names: str) -> list[str]:
    return [
        f"{name}/{file}"
        for name in names
        for file in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
    ]


SD15 = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "v1-5-pruned-emaonly.safetensors",
    "v1-inference.yaml",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    *folders("unet", "vae", "text_encoder", "safety_checker"),
    *tokenizers("tokenizer"),
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.non_ema.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    *(
        f"{part}{variant}.safetensors"
        for part in (
            "unet/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "text_encoder/model",
            "safety_checker/model",
        )
        for variant in ("", ".fp16")
    ),
]
XL = [
    "model_index.json",
    "sd_xl_base_1.0.safetensors",
    "scheduler/scheduler_config.json",
    *folders("unet", "vae", "vae_1_0", "text_encoder", "text_encoder_2"),
    *tokenizers("tokenizer", "tokenizer_2"),
    "vae_decoder/model.onnx",
    "text_encoder/model.onnx",
    "text_encoder_2/model.onnx_data",
    "unet/openvino_model.bin",
    *(
        f"{part}{variant}.safetensors"
        for part in (
            "unet/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "vae_1_0/diffusion_pytorch_model",
            "text_encoder/model",
            "text_encoder_2/model",
        )
        for variant in ("", ".fp16")
    ),
]
XL_WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    *folders("unet", "vae", "text_encoder", "text_encoder_2"),
    *(
        f"{name}/{file}.json"
        for name in ("tokenizer", "tokenizer_2")
        for file in ("special_tokens_map", "tokenizer_config")
    ),
}
FIX = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"]
SHARDS = [
    "config.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.bin.index.json",
]
for i in (1, 2):
    SHARDS += [
        f"diffusion_pytorch_model{name}.safetensors"
        for name in (f"-0000{i}-of-00002", f".fp16-0000{i}-of-00002", f"-0000{i}-of-00002.non_ema")
    ]


@pytest.mark.parametrize(
    "names, choose, wanted",
    [
        (
            SD15,
            model_files,
            {
                "model_index.json",
                "scheduler/scheduler_config.json",
                *folders("unet", "vae", "text_encoder"),
                "tokenizer/special_tokens_map.json",
                "tokenizer/tokenizer_config.json",
                "text_encoder/model.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
            },
        ),
        (
            XL,
            partial(model_files, variant="fp16"),
            XL_WANTED
            | {
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "text_encoder/model.fp16.safetensors",
                "text_encoder_2/model.fp16.safetensors",
            },
        ),
        (
            [name for name in XL if not name.startswith(("text_encoder/", "tokenizer/"))],
            model_files,  # as SDXL's refiner
            {name for name in XL_WANTED if not name.startswith(("text_encoder/", "tokenizer/"))}
            | {
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder_2/model.safetensors",
            },
        ),
        (
            SD15,
            partial(model_files, without=("unet", "vae")),
            {  # both swapped: their settings still describe the model
                "model_index.json",
                "scheduler/scheduler_config.json",
                *folders("unet", "vae", "text_encoder"),
                "tokenizer/special_tokens_map.json",
                "tokenizer/tokenizer_config.json",
                "text_encoder/model.safetensors",
            },
        ),
        (
            SD15,
            partial(part_files, part="unet", variant="non_ema"),
            {"scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.non_ema.safetensors"},
        ),
        (FIX, partial(part_files, part="vae"), {"config.json", "diffusion_pytorch_model.safetensors"}),
        (FIX, part_files, {"config.json", "diffusion_pytorch_model.safetensors"}),
        (["config.json", "model.safetensors", "pytorch_model.bin"], part_files, {"config.json", "model.safetensors"}),
        (
            SHARDS,
            partial(part_files, part="unet"),
            {
                "config.json",
                "diffusion_pytorch_model.safetensors.index.json",
                *(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)),
            },
        ),
        (
            [f"unet/{name}" for name in SHARDS],
            partial(part_files, part="unet", variant="fp16"),
            {
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
                *(f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)),
            },
        ),
        (
            [*SHARDS, "diffusion_pytorch_model.non_ema.safetensors.index.json"],
            partial(part_files, variant="non_ema"),
            {
                "config.json",
                "diffusion_pytorch_model.non_ema.safetensors.index.json",
                *(f"diffusion_pytorch_model-0000{i}-of-00002.non_ema.safetensors" for i in (1, 2)),
            },
        ),
        (
            ["README.md", "pytorch_lora_weights.safetensors", "demo/x.safetensors"],
            one_file,
            {"pytorch_lora_weights.safetensors"},
        ),
        (SD15, partial(one_file, file="v1-5-pruned.safetensors"), {"v1-5-pruned.safetensors"}),
    ],
)
def test_exactly_the_files_that_are_read(names, choose, wanted):
    chosen = choose(sorted(names))
    assert len(chosen) == len(set(chosen)) and set(chosen) == wanted


@pytest.mark.parametrize(
    "names, choose, words",
    [
        (
            ["a_lora.safetensors", "README.md"],
            model_files,
            ["no model_index.json", "as owner/name/FILE: 'a_lora.safetensors'"],
        ),
        (["README.md"], model_files, ["no model_index.json", "it has 'README.md'"]),
        (SD15, partial(model_files, variant="bf16"), ["unet has no variant 'bf16'", "'fp16', 'non_ema', 'plain'"]),
        (
            ["model_index.json", "unet/diffusion_pytorch_model.bin"],
            model_files,
            ["diffusion_pytorch_model.bin", "pickled"],
        ),
        (XL, part_files, ["it has no network", "sd_xl_base_1.0.safetensors"]),
        (["config.json", "diffusion_pytorch_model.safetensors", "model_index.json"], part_files, ["it has no network"]),
        (["vae/config.json"], partial(part_files, part="unet"), ["it has no unet", "vae/config.json"]),
        (
            ["config.json", "vae.safetensors"],
            partial(part_files, part="vae"),
            ["its root has no diffusion_pytorch_model.safetensors", "'vae.safetensors'"],
        ),
        (SD15, one_file, ["not one .safetensors file", "'v1-5-pruned.safetensors'"]),
        (SD15, partial(one_file, file="v1-6.safetensors"), ["no file 'v1-6.safetensors'", "'v1-5-pruned.safetensors'"]),
        ([], one_file, ["not one .safetensors file", "it has nothing"]),
    ],
)
def test_names_that_do_not_do(names, choose, words):
    with pytest.raises(CheckpointError) as caught:
        choose(sorted(names))
    assert all(word in str(caught.value) for word in words), caught.value


# what is asked, and what is kept


def test_a_model_from_end_to_end(hub, tmp_path, capfd):
    original = tiny.tiny_sd(tmp_path / "made", max_shard_size="2MB")
    tiny.save(original, tmp_path / "made", torch.float16, {"variant": "fp16"})
    (tmp_path / "made/unet/diffusion_pytorch_model.bin").write_bytes(b"pickled")
    commit = hub.push(REPO, tmp_path / "made")
    wanted = model_files(sorted(hub.repos[REPO].commits[commit]))
    assert {"-of-" in name for name in wanted if name.startswith("unet/diffusion")} == {False, True}
    assert not any("fp16" in name or name.endswith(".bin") for name in wanted)
    capfd.readouterr()

    fetched = fetch(REPO, model_files)
    assert requests(hub) == LISTED + sum(
        ((large if name.endswith(".safetensors") else small)(name) for name in wanted), []
    )
    assert fetched.commit == commit and sorted(read(fetched)) == sorted(wanted)
    megabytes = sum(len(hub.repos[REPO].commits[commit][name]) for name in wanted) / 1e6
    line = f"owner/name, main at {commit[:12]}: {len(wanted)} files of {megabytes:.1f} MB, {megabytes:.1f} MB of it to "
    line += f"download into {tmp_path}/hub/models--owner--name\n"
    assert capfd.readouterr().err == line  # no bar where there is no terminal

    half = fetch(REPO, partial(model_files, variant="fp16"))
    assert half.path == fetched.path and sum("fp16" in name for name in read(half)) == 3
    models = original, weights.load(fetched.path), weights.load(half.path, None, variant="fp16")
    for part in ("unet", "vae"):  # the original was made float16 by the second saving
        theirs, whole, halved = (getattr(model, part).state_dict() for model in models)
        assert theirs.keys() == whole.keys() == halved.keys()
        assert all(torch.equal(whole[key].half(), theirs[key]) and whole[key].dtype == torch.float32 for key in theirs)
        assert all(torch.equal(halved[key], theirs[key]) and halved[key].dtype == torch.float16 for key in theirs)

    hub.taken()
    assert fetch(REPO, model_files) == fetched and requests(hub) == LISTED
    assert fetch(REPO, model_files, revision=commit) == fetched and requests(hub) == []
    assert fetch(REPO, model_files, offline=True) == fetched and requests(hub) == []


def test_load_by_name(hub):
    """A model, and another repository's VAE in it; both commits are recorded."""
    commits = {REPO: hub.push(REPO, weights.MINIATURE), "other/vae": hub.push("other/vae", weights.MINIATURE / "vae")}
    model = weights.load(REPO, vae="other/vae")
    assert model.revisions == commits and {name.split("/")[0] for name in model.files} == {
        "other",
        "unet",
        "text_encoder",
    }
    lines = LISTED + small("config.json") + large("diffusion_pytorch_model.safetensors")
    assert requests(hub)[-len(lines) :] == [line.replace(REPO, "other/vae") for line in lines]
    local = weights.load(weights.MINIATURE)
    for part in ("unet", "vae"):
        ours, theirs = (getattr(other, part).state_dict() for other in (model, local))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    again = weights.load(REPO, vae="other/vae", offline=True)
    assert requests(hub) == [] and weights.file_hashes(again) == weights.file_hashes(model)


def test_one_file_of_many(hub):
    hub.push(REPO, {"a.safetensors": b"a" * 10, "loras/b c.safetensors": b"b" * 20, "README.md": b""})
    fetched = fetch(f"{REPO}/loras/b c.safetensors", model_files)
    assert fetched.path.name == "b c.safetensors" and fetched.path.read_bytes() == b"b" * 20
    assert requests(hub) == LISTED + large("loras/b c.safetensors")
    assert fetch(REPO, one_file).path.read_bytes() == b"a" * 10
    assert "no file 'c.safetensors': name one of its files" in refused(f"{REPO}/c.safetensors")


def test_a_token_goes_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push(REPO, {FILE: BIG, "config.json": b"{}"})
    fetch(REPO, every)
    assert {(asked.path.startswith("/cdn"), asked.token) for asked in hub.taken()} == {
        (False, "Bearer hf_secret"),
        (True, None),
    }


def test_files_of_the_newer_storage_come_the_same_way(hub):
    """Xet fetches pieces by its own protocol; the plain way can be resumed and checked."""
    hub.push(REPO, {FILE: BIG})
    hub.xet = True
    assert fetch(REPO, every).path.read_bytes() == BIG
    assert requests(hub) == LISTED + large(FILE)


# a branch that moves


def test_branch_moves_between_two_calls(hub):
    texts = [{FILE: BIG[:k], "config.json": b"%d" % k} for k in (1000, 2000)]
    first = hub.push(REPO, texts[0])
    old = fetch(REPO, every)
    second = hub.push(REPO, texts[1])
    assert fetch(REPO, every, offline=True) == old
    new = fetch(REPO, every)
    assert [old.commit, new.commit] == [first, second]
    assert [read(old), read(new)] == texts
    assert fetch(REPO, every, offline=True) == new
    hub.taken()
    assert fetch(REPO, every, revision=first) == old and requests(hub) == []
    with pytest.raises(CheckpointError, match="no revision 'v2'"):
        fetch(REPO, every, revision="v2")
    hub.push(REPO, texts[0], branch="refs/pr/1")
    assert read(fetch(REPO, every, revision="refs/pr/1")) == texts[0]


def test_branch_moves_during_the_download(hub):
    """Whatever main is by then, each file is that of the commit that main was at first."""
    files = {f"{k}.json": b"old %d" % k for k in range(5)} | {FILE: BIG[:1000]}
    commit = hub.push(REPO, files)
    paths = []

    def move(path):
        paths.append(path)
        if "resolve" in path:
            hub.push(REPO, {name: b"new %d" % len(paths) for name in files})

    hub.before = move
    fetched = fetch(REPO, every)
    assert fetched.commit == commit and read(fetched) == files
    assert len(hub.repos[REPO].commits) > 5
    assert all(commit in path for path in paths[1:] if "/cdn/" not in path) and "main" in paths[0]


def test_unfinished_update_leaves_the_old_model(hub):
    hub.push(REPO, {FILE: BIG, "config.json": b"old"})
    old = fetch(REPO, every)
    new = hub.push(REPO, {FILE: BIG[::-1], "config.json": b"new"})
    hub.cuts[FILE] = [-1_000_000]
    assert f"take the cached commit {old.commit[:12]} with offline" in refused()
    assert fetch(REPO, every, offline=True) == old
    assert f"1 are not whole in the cache, '{FILE}'" in refused(offline=True, revision=new)


# interruptions


def test_broken_connection_is_taken_up_at_once(hub):
    """The client waits a second between two attempts."""
    hub.push(REPO, {FILE: BIG})
    hub.cuts[FILE] = [1_000_000]
    assert fetch(REPO, every).path.read_bytes() == BIG
    parts = [(asked.start, asked.sent) for asked in hub.taken() if asked.path == f"/cdn/{FILE}"]
    assert len(parts) == 2 and parts[0] == (0, 1_000_000) and sum(parts[1]) == len(BIG)
    assert 1_000_000 - 2**16 < parts[1][0] <= 1_000_000  # all but the last piece, which the client had not written


def test_run_again_goes_on(hub, tmp_path):
    hub.push(REPO, {FILE: BIG, "other.safetensors": BIG[:5]})
    hub.cuts[FILE] = [-1_000_000, -500_000]
    for start in (0, 1_000_000, 1_500_000):
        lines = []
        if start < 1_500_000:
            assert "run again to go on from here" in refused(tell=lines.append)
            assert not (tmp_path / "hub/models--owner--name/refs/main").exists()
        else:
            assert read(fetch(REPO, every, tell=lines.append)) == {FILE: BIG, "other.safetensors": BIG[:5]}
        arrived = next(asked.start for asked in hub.taken() if asked.path == f"/cdn/{FILE}")
        assert start - 2**17 < arrived <= start and f"{(3_000_005 - arrived) / 1e6:.1f} MB of it" in lines[0]


def test_killed_process_loses_nothing(hub, tmp_path, monkeypatch):
    """The settings go through the environment here, as users give them."""
    hub.push(REPO, {FILE: BIG})
    hub.stalls[FILE] = 2_000_000
    code = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 2**16; "
        "from weights.hub.download import fetch; fetch('owner/name', lambda names: names)"
    )
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        assert hub.stalled.wait(60)
        part = tmp_path / "hub/models--owner--name/blobs"
        while not any(path.stat().st_size > 1_900_000 for path in part.glob("*.incomplete")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    hub.taken()
    assert fetch(REPO, every).path.read_bytes() == BIG
    start = next(asked.start for asked in hub.taken() if asked.path == f"/cdn/{FILE}")
    assert 1_900_000 < start <= 2_000_000


def test_silence_is_taken_for_an_interruption(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.push(REPO, {FILE: BIG})
    hub.stalls[FILE] = 2_000_000
    assert fetch(REPO, every).path.read_bytes() == BIG
    assert sum(asked.sent for asked in hub.taken()) < len(BIG) + 2**16


def test_server_that_knows_no_ranges(hub):
    hub.push(REPO, {FILE: BIG})
    hub.cuts[FILE], hub.ignore_ranges = [-1_000_000], True
    refused()
    assert fetch(REPO, every).path.read_bytes() == BIG


def test_leftover_longer_than_the_file(hub, tmp_path):
    hub.push(REPO, {FILE: BIG})
    part = tmp_path / f"hub/models--owner--name/blobs/{sha256(BIG)}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG + b"x")
    assert fetch(REPO, every).path.read_bytes() == BIG and not part.exists()


def test_two_at_once_fetch_once(hub):
    hub.push(REPO, {FILE: BIG})
    hub.before = lambda path: time.sleep(0.5) if path.startswith("/cdn") else None  # for the other to come
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: fetch(REPO, every), range(2))
    assert a == b and a.path.read_bytes() == BIG
    assert requests(hub).count(f"GET /cdn/{FILE}") == 1


def test_damaged_transfer_is_not_kept(hub):
    hub.push(REPO, {FILE: BIG})
    hub.spoiled[FILE] = BIG[:-1] + bytes([BIG[-1] ^ 1])
    assert "arrived damaged" in refused()
    hub.spoiled.clear()
    assert fetch(REPO, every).path.read_bytes() == BIG


@pytest.mark.parametrize("file", [FILE, "config.json"])
def test_damaged_cache_is_mended(hub, file):
    hub.push(REPO, {FILE: BIG, "config.json": b'{"a": 1}'})
    fetched = fetch(REPO, every)
    os.truncate(fetched.path / file, 5)
    assert f"of 2 files 1 are not whole in the cache, '{file}'" in refused(offline=True)
    assert fetch(REPO, every) == fetched and read(fetched) == {FILE: BIG, "config.json": b'{"a": 1}'}


# without the hub


def test_offline_without_a_cache(hub, monkeypatch):
    assert "'main': there is no such folder here" in (line := refused(offline=True))
    assert f"and the cache {constants.HF_HUB_CACHE} does not hold it: fetch it once" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "does not hold it" in refused(revision="0" * 40)
    assert hub.log == []


def test_offline_with_another_revision(hub):
    hub.push(REPO, {FILE: BIG[:10]})
    fetch(REPO, every)
    assert "holds only the revision 'main' of it" in refused(offline=True, revision="v2")


def test_cache_that_another_program_filled(hub):
    commit = hub.push(REPO, {FILE: BIG, "config.json": b"{}"})
    hf_hub_download(REPO, FILE)
    hub.taken()
    fetched = fetch(REPO, one_file, offline=True)
    assert fetched.commit == commit and fetched.path.read_bytes() == BIG
    assert "at " + commit[:12] + ": it has no file 'x.safetensors'" in refused(f"{REPO}/x.safetensors", offline=True)
    assert hub.log == []
    assert fetch(REPO, every).path == fetched.path.parent
    assert requests(hub) == LISTED + small("config.json")


def test_cache_that_takes_no_notes(hub, tmp_path):
    """As a read-only one that others share: a complete model in it is good enough."""
    commit = hub.push(REPO, {FILE: BIG, "config.json": b"{}"})
    fetched = fetch(REPO, every)
    home = tmp_path / "hub/models--owner--name"
    for folder in ("listings", "refs"):
        shutil.rmtree(home / folder)
        (home / folder).touch()
    assert fetch(REPO, every) == fetched == fetch(REPO, every, offline=True, revision=commit)


def test_file_system_without_links(hub, tmp_path, monkeypatch):
    """None is at hand here, so its error is: copies lie in the place of links."""

    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    hub.push(REPO, {FILE: BIG[:10], "a/config.json": b"{}"})
    fetched = fetch(REPO, every)
    assert read(fetched) == {FILE: BIG[:10], "a/config.json": b"{}"} and not (fetched.path / FILE).is_symlink()
    assert fetch(REPO, every) == fetched and not list(tmp_path.rglob(".part-*"))


# whatever prevents it


@pytest.mark.parametrize(
    "error, words",
    [
        ("GatedRepo", ["owner/name is gated", "licence at http://127.0.0.1", "/owner/name", "hf auth login"]),
        ("RepoNotFound", ["no such folder here", "no such model", "private", "hf auth login"]),
        ("BadToken", ["answered 401", "Invalid credentials", "hf auth login"]),
        ("Busy", ["answered 503", "Service unavailable", "try again later"]),
    ],
)
def test_refusals(hub, error, words):
    hub.push(REPO, {FILE: BIG})
    hub.repos[REPO].error = error
    assert all(word in refused() for word in words), refused()


def test_model_and_revision_that_are_not_there(hub):
    assert "no such model at" in refused("someone/else")
    hub.push(REPO, {FILE: BIG})
    assert f"no revision 'v2': {hub.url}/owner/name/tree/main shows those it has" in refused(revision="v2")
    assert "no revision '" + "0" * 40 in refused(revision="0" * 40)
    for revision in ("../../x", "a/../b", "a b", "/etc/passwd"):
        assert "is no name of a revision" in refused(revision=revision)


def test_variant_that_is_not_there(hub):
    commit = hub.push(REPO, dict.fromkeys(SD15, b""))
    line = refused(wanted=partial(model_files, variant="bf16"))
    assert line == (f"owner/name at {commit[:12]}: unet has no variant 'bf16': it offers 'fp16', 'non_ema', 'plain'")
    assert requests(hub) == LISTED


def test_no_server(monkeypatch, tmp_path):
    with Hub() as hub:
        pass
    connect(monkeypatch, hub.url, tmp_path)
    assert f"the connection to {hub.url} failed, [Errno 111] Connection refused: run again" in refused()


def test_server_that_does_not_answer(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    hub.before = lambda path: hub.closed.wait(60)
    assert "timed out" in refused()


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>Sign in to this network</html>",
        b"[]",
        b"{}",
        b'{"id": "a", "sha": "main"}',
        b'{"id": "a", "sha": "%s"}' % (b"0" * 40),
    ],
)
def test_server_that_is_no_hub(hub, monkeypatch, reply):
    monkeypatch.setattr("support.hub_server.Handler.info", lambda self, *args: self.answer(200, {}, reply))
    assert "does not answer as the hub does" in refused()


class Huge(bytes):
    def __len__(self):
        return 10**18


def test_no_room(hub):
    hub.push(REPO, {FILE: Huge(b"x")})
    assert "1000000000.00 GB to download, and only" in (line := refused()) and "make room" in line
    assert requests(hub) == LISTED


def test_disk_that_is_full(hub, monkeypatch):
    hub.push(REPO, {FILE: BIG})
    monkeypatch.setattr(resume, "open_no_link", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    assert "the disk is full: make room" in refused()


def test_cache_that_cannot_be_written(hub, tmp_path):
    hub.push(REPO, {FILE: BIG})
    (tmp_path / "hub").write_text("")
    assert "/hub" in (line := refused()) and "cannot be written" in line
