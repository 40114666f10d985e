"""Make the training pictures of the miniature: emoji in two styles, composed onto coloured backgrounds.

Fetches three packages with `npm pack` (Noto emoji, Apache-2.0; Fluent 3D emoji, MIT; emojibase captions, MIT), checks
their hashes, and writes to --out
    pictures.npy    (n size size 3) uint8
    pictures.json   one record a picture: label, tags, style, background, small
    sources.json    names, versions, licences and hashes of the packages

    python scripts/miniature/data.py --out build/miniature
"""

if __name__ == "__main__":
    from ldm import stopping

    stopping.listen()

import argparse
import hashlib
import io
import json
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py  # ty: ignore[import-not-found]  # of the extra `train`
import torch
from PIL import Image
from tqdm import tqdm

PACKAGES = {
    "@iconify-json/noto": ("1.2.9", "Apache-2.0"),
    "@lobehub/fluent-emoji-3d": ("1.1.0", "MIT"),
    "emojibase-data": ("17.0.0", "MIT"),
}
SHA256 = {
    "@iconify-json/noto": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "@lobehub/fluent-emoji-3d": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "emojibase-data": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 215, 80),
    "green": (70, 170, 90),
    "blue": (65, 120, 220),
    "purple": (140, 80, 190),
    "pink": (250, 165, 195),
    "gray": (150, 150, 150),
    "black": (20, 20, 20),
}
LEFT_OUT_GROUPS = {"component", "flags"}
LEFT_OUT_SUBGROUPS = {"alphanum", "keycap", "av-symbol", "arrow", "transport-sign"}  # little but letters and signs

Render = Callable[[str], Image.Image | None]


def fetch(package: str, folder: Path) -> Path:
    """Download one npm package unless it is there; returns its archive."""
    version, _ = PACKAGES[package]
    archive = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256[package]:
        raise SystemExit(f"{archive}: sha256 {found}, expected {SHA256[package]}: delete the file and run again")
    return archive


def unpack(archive: Path) -> dict[str, bytes]:
    """The files of an npm package by their paths in it."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:  # None for a folder
                files[member.name.removeprefix("package/")] = file.read()
    return files


def normalize(code: str) -> str:
    """The code points of an emoji as all three packages have them: lower case, without the variation selector."""
    return code.lower().replace("-fe0f", "")


def choose_emoji(data: dict[str, bytes]) -> list[dict[str, Any]]:
    """The emoji to train on: no flags, letters, clock faces, or variants of skin, gender and direction."""
    names = json.loads(data["meta/groups.json"])
    kept = []
    for emoji in json.loads(data["en/data.json"]):
        label = emoji["label"]
        group = names["groups"].get(str(emoji.get("group")), "component")
        subgroup = names["subgroups"].get(str(emoji.get("subgroup")), "")
        left_out = group in LEFT_OUT_GROUPS or subgroup in LEFT_OUT_SUBGROUPS
        joined_person = group == "people-body" and "200D" in emoji["hexcode"]  # the zero-width joiner
        turned = "facing right" in label
        clock = "o’clock" in label or "-thirty" in label
        if not (left_out or joined_person or turned or clock):
            kept.append(emoji)
    return kept


def make_renderers(noto: dict[str, bytes], fluent: dict[str, bytes]) -> dict[str, Render]:
    """Per style a function from code points to an RGBA picture, or to None where the set lacks it."""
    icons = json.loads(noto["icons.json"])["icons"]
    icon_names = {normalize(code): name for code, name in json.loads(noto["chars.json"]).items()}
    files = {normalize(Path(name).stem): name for name in fluent if name.endswith(".webp")}

    def render_flat(code: str) -> Image.Image | None:
        body = icons.get(icon_names.get(code, ""), {}).get("body")
        if body is None:
            return None
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="256" height="256">{body}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")

    def render_3d(code: str) -> Image.Image | None:
        if code not in files:
            return None
        return Image.open(io.BytesIO(fluent[files[code]])).convert("RGBA")

    return {"flat": render_flat, "3d": render_3d}


def compose(sprite: Image.Image, colour: tuple[int, int, int], small: bool, size: int) -> np.ndarray:
    """The sprite, trimmed to its pixels and centred, over one colour: (size size 3) uint8."""
    sprite = sprite.crop(sprite.getchannel("A").getbbox())
    side = round(size * (0.5 if small else 0.92))
    scale = side / max(sprite.size)
    width = max(1, round(sprite.width * scale))
    height = max(1, round(sprite.height * scale))
    sprite = sprite.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), (*colour, 255))
    canvas.alpha_composite(sprite, ((size - sprite.width) // 2, (size - sprite.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def compose_all(
    emojis: list[dict[str, Any]], renderers: dict[str, Render], size: int
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Every emoji that both styles have, on every background, and small on three of them; a record for each picture."""
    rng = random.Random(0)
    pictures = []
    records = []
    for emoji in tqdm(emojis, desc="compose", disable=None):
        sprites = {}
        for style, render in renderers.items():
            sprite = render(normalize(emoji["hexcode"]))
            if sprite is not None:
                sprites[style] = sprite
        if len(sprites) < len(renderers):
            continue
        about = dict(label=emoji["label"], tags=emoji.get("tags", []))
        for style, sprite in sprites.items():
            small_on = ["white", *rng.sample(list(BACKGROUNDS)[1:], 2)]
            variants = [(background, False) for background in BACKGROUNDS]
            variants += [(background, True) for background in small_on]
            for background, small in variants:
                pictures.append(compose(sprite, BACKGROUNDS[background], small, size))
                records.append(about | dict(style=style, background=background, small=small))
    return pictures, records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/miniature"))
    parser.add_argument(
        "--size",
        type=int,
        default=128 if torch.cuda.is_available() else 64,
        help="height and width of a picture in pixels (default: 128 where there is a GPU, else 64)",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    noto, fluent, captions = (unpack(fetch(package, args.out)) for package in PACKAGES)
    pictures, records = compose_all(choose_emoji(captions), make_renderers(noto, fluent), args.size)

    np.save(args.out / "pictures.npy", np.stack(pictures))
    (args.out / "pictures.json").write_text(json.dumps(records, ensure_ascii=False))
    sources = [dict(package=p, version=v, licence=licence, sha256=SHA256[p]) for p, (v, licence) in PACKAGES.items()]
    (args.out / "sources.json").write_text(json.dumps(sources, indent=1))
    labels = {record["label"] for record in records}
    print(f"{len(records)} pictures of {len(labels)} emoji in {args.out}")


if __name__ == "__main__":
    stopping.run(main)
