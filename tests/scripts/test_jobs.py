"""Many pictures at once: which are drawn together, what is refused before, and what is shown meanwhile.
scripts/drawing/jobs.py, estimate.py, preview.py and report.py."""

import io
import json
import sys

import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

import weights
from drawing import estimate
from drawing.jobs import batches, draw_batches, in_turn, repeat
from drawing.preview import Preview, linear_decoder, make_decoder, published_colors
from drawing.report import reported
from ldm import tasks
from ldm.config import MODELS, TinyVAEConfig
from ldm.taesd import TinyVAE
from weights import save_part

PLAIN = {"negative": None, "sampler": "euler", "schedule": "karras", "guidance": 3.0, "options": {}, "height": 64,
         "width": 64, "steps": 2}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return weights.load(weights.MINIATURE)


def picture(**settings):
    return PLAIN | {"prompt": "a fox", "seed": 0} | settings


def test_pictures_of_equal_settings_are_drawn_together():
    jobs = [picture(steps=steps, seed=seed) for seed, steps in enumerate((2, 3, 2, 2, 3, 2))]
    assert batches(jobs, 8) == [[0, 2, 3, 5], [1, 4]]
    assert batches(jobs, 3) == [[0, 2, 3], [1, 4], [5]]
    for key, value in (("options", {"eta": 1}), ("width", 72), ("sampler", "ddim"), ("guidance", 3.5)):
        assert batches([picture(), picture(**{key: value}), picture(prompt="x", negative="y")], 8) == [[0, 2], [1]]


def test_each_row_gets_its_own_picture_and_its_turn(model):
    """Rows of mixed settings come out in their order, each as it is alone, to rounding."""
    rows = [picture(seed=1), picture(seed=2, steps=3), picture(prompt="an owl", negative="blue", seed=3)]
    drawn = list(in_turn(draw_batches(model, rows, 8)))
    assert [number for number, _, _ in drawn] == [0, 1, 2]
    assert all(seconds > 0 for _, _, seconds in drawn)
    for number, image, _ in drawn:
        ((_, alone, _),) = draw_batches(model, [rows[number]], 1)
        assert (image - alone).abs().max() < 1e-3  # a batch sums in another order; other pictures are 0.1 away
    assert (drawn[0][1] - drawn[2][1]).abs().max() > 0.1


def test_seeds_count_up_to_the_last():
    assert [job["seed"] for job in repeat(picture(seed=7), 3)] == [7, 8, 9]
    with pytest.raises(ValueError, match=f"seed {2**64}, of picture 2: must be between 0 and"):
        repeat(picture(seed=2**64 - 1), 2)


def test_what_is_too_much_is_said_before_it_begins(model, monkeypatch):
    job = picture(steps=20)
    estimate.check_count(10_000, job, force=False)
    estimate.check_count(1_000_000, job, force=True)
    work = "1,000,000 pictures of 64 x 64 pixels, 4 GB of files or more, in 20,000,000 steps"
    with pytest.raises(ValueError, match=f"^this asks for {work}: if you mean it, add --force$"):
        estimate.check_count(1_000_000, job, force=False)
    with pytest.raises(ValueError, match="000 pictures: at most 10,000,000 are drawn"):
        estimate.check_count(10**12, {"width": None, "height": 64, "steps": None}, force=True)
    with pytest.raises(ValueError, match="^width 100000: must be a positive multiple of 8, at most 32768$"):
        estimate.check_sizes([picture(width=100_000)], "cpu", force=True)
    monkeypatch.setattr(estimate, "memory", lambda device: 2 * 10**9)
    with pytest.raises(ValueError, match="a picture of 32000 x 32000 pixels needs at least 290 GB of memory, and 2 GB"):
        estimate.check_sizes([picture(width=32_000, height=32_000)], "cpu", force=False)
    small, large = [picture()] * 512, [picture(width=1024, height=1024)] * 512
    estimate.check_batches(model, small, [list(range(8))])
    with pytest.raises(
        ValueError, match=r"^512 pictures of 1024 x 1024 pixels at once need about .* choose --batch \d+$"
    ):
        estimate.check_batches(model, large, [list(range(512))])
    with pytest.raises(ValueError, match="64,000 x 128 pixels: at most"):
        monkeypatch.setattr(estimate, "GRID_SIDE", 60_000)
        estimate.check_grid(2000, 1000, 64, 64)
    estimate.check_grid(900, 30, 64, 64)
    with pytest.raises(ValueError, match="grid of 100 x 100 pictures has 51,200 x 51,200 pixels"):
        estimate.check_grid(10_000, 100, 512, 512)


def test_memory_is_within_the_limits_of_the_process():
    import resource

    free = estimate.memory("cpu")
    assert free is not None and 10**7 < free < 10**14
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = 10**13  # more than this process maps, less than no limit
    resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    try:
        assert estimate.room_of_process() is not None and estimate.room_of_process() < room
        assert estimate.memory("cpu") == pytest.approx(free, rel=0.9)  # the smaller of the two; others use memory too
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_estimate_of_memory_is_of_the_right_size():
    """SD 1.5's decoder needs 0.8 GB and more for 512 x 512 pixels in float32, SDXL's in float16 about 2 GB for 1024."""
    with torch.device("meta"):
        from ldm.model import Model
        from ldm.unet import UNet
        from ldm.vae import VAE

        facts = MODELS["sd15"]
        large = Model(UNet(facts.unet), VAE(facts.vae), {}, None, facts)
    assert 0.6e9 < estimate.bytes_of_a_picture(large, 512, 512) < 3e9
    assert estimate.bytes_of_a_picture(large, 1024, 512) == 2 * estimate.bytes_of_a_picture(large, 512, 512)


def test_a_preview_shows_the_picture_and_changes_nothing(model, tmp_path):
    job = picture(prompt="a red apple", seed=4, steps=5)
    ((_, plain, _),) = draw_batches(model, [job], 1)
    path = tmp_path / "new" / "preview.png"
    look = Preview(path, make_decoder(model, "linear"), every=3)
    seen = []
    write = look.write

    def note(image):
        write(image)
        with Image.open(path) as written:
            written.load()
            seen.append(written.convert("RGB"))

    look.write = note
    ((_, watched, _),) = draw_batches(model, [job], 1, look)
    assert torch.equal(plain, watched)
    assert len(seen) == 3 and [file.name for file in path.parent.iterdir()] == [
        "preview.png"
    ]  # steps 0, 3 and the last
    small = torch.tensor(list(seen[-1].getdata())).reshape(64, 64, 3).permute(2, 0, 1) / 127.5 - 1
    apart = avg_pool2d(small, 8) - avg_pool2d(plain, 8)
    assert apart.square().mean().sqrt() < 0.4 < avg_pool2d(plain, 8).std()  # it explains most of what is there


def test_a_preview_is_of_the_clean_estimate(model, tmp_path):
    estimates, shown = [], []
    look = Preview(tmp_path / "preview.png", lambda x0: shown.append(x0.clone()) or torch.zeros(1, 3, 8, 8), 2, steps=4)

    def watch(step):
        estimates.append(step.x0.clone())
        look(step)

    tasks.text_to_image(model, "a fox", steps=4, watch=watch)
    assert len(shown) == 3 and all(torch.equal(shown[k], estimates[number]) for k, number in enumerate((0, 2, 3)))


def test_a_linear_preview_fits_the_decoder(model):
    """Of latents that were not fitted on: most of the variance of the colors."""
    torch.manual_seed(1)
    latents = torch.randn(4, 4, 4, 4)
    shown = avg_pool2d(linear_decoder(model)(latents), 8)
    true = avg_pool2d(model.to_image(latents), 8)
    assert (shown - true).square().mean() < 0.6 * true.var()
    assert published_colors(model) is None  # those of Stable Diffusion are for its own decoder


def test_taesd_decodes_previews(model, tmp_path):
    torch.manual_seed(0)
    tiny = TinyVAE(TinyVAEConfig(channels=8, blocks=(1, 1, 1, 1)))
    save_part(tiny, tmp_path / "taesd")
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(make_decoder(model, f"taesd={tmp_path / 'taesd'}")(latents), tiny.decode(latents))
    with pytest.raises(ValueError, match="is no TAESD"):
        make_decoder(model, f"taesd={weights.MINIATURE}")
    for wrong in ("taesd", "taesd=", "taehv=x"):
        with pytest.raises(ValueError, match="^--preview .*give --preview alone, or --preview taesd=SOURCE"):
            make_decoder(model, wrong)


@pytest.mark.parametrize(
    "end, status, code", [(None, "complete", 0), (SystemExit(2), "failed", 2), (KeyboardInterrupt(), "stopped", 130)]
)
def test_a_report_is_one_object_however_it_ends(monkeypatch, end, status, code):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        with reported(True) as report:
            print("a.png")
            print("50%\rwarning: mind", file=sys.stderr)
            report.add_picture("a.png", picture(seed=5), 0.5)
            if end:
                print("error: it broke\nldm draw: error: it broke", file=sys.stderr)
                raise end
    except (SystemExit, KeyboardInterrupt) as error:
        assert error is end
    found = json.loads(out.getvalue())
    assert (found["status"], found["exit"]) == (status, code)
    assert found["pictures"] == [{"path": "a.png", "seed": 5, "seconds": 0.5, "settings": picture(seed=5)}]
    assert found["warnings"] == ["mind"] and found["errors"] == (["it broke"] * 2 if end else [])
    assert err.getvalue().startswith("a.png\n")
