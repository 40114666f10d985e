"""Make the training pictures of the miniature: emoji in two styles, composed onto coloured backgrounds.

Fetches three packages with `npm pack` (Noto emoji, Apache-2.0; Fluent 3D emoji, MIT; emojibase captions, MIT), checks
their hashes, and writes to --out
    pictures.npy    (n size size 3) uint8
    pictures.json   one record a picture: label, tags, style, background, small
    sources.json    names, versions, licences and hashes of the packages

    python scripts/miniature/data.py --out build/miniature
"""

import argparse
import hashlib
import io
import json
import random
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
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


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name.removeprefix("package/"): tar.extractfile(m).read() for m in tar if m.isfile()}


def codepoints(text: str) -> str:
    """One spelling for all three packages: lower case, without the variation selector."""
    return text.lower().replace("-fe0f", "")


def chosen(data: dict[str, bytes]) -> list[dict]:
    """The emoji to train on: no flags, letters, clock faces, or variants of skin, gender and direction."""
    names = json.loads(data["meta/groups.json"])
    kept = []
    for emoji in json.loads(data["en/data.json"]):
        group = names["groups"].get(str(emoji.get("group")), "component")
        subgroup = names["subgroups"].get(str(emoji.get("subgroup")), "")
        variant = group == "people-body" and "200D" in emoji["hexcode"] or "facing right" in emoji["label"]
        clock = "o’clock" in emoji["label"] or "-thirty" in emoji["label"]
        if group not in LEFT_OUT_GROUPS and subgroup not in LEFT_OUT_SUBGROUPS and not variant and not clock:
            kept.append(emoji)
    return kept


def sprites(noto: dict[str, bytes], fluent: dict[str, bytes]):
    """Per style a function from code points to an RGBA picture, or to None where the set lacks it."""
    icons = json.loads(noto["icons.json"])["icons"]
    icon_names = {codepoints(k): v for k, v in json.loads(noto["chars.json"]).items()}
    files = {codepoints(Path(name).stem): name for name in fluent if name.endswith(".webp")}

    def flat(code: str) -> Image.Image | None:
        body = icons.get(icon_names.get(code, ""), {}).get("body")
        if body is None:
            return None
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="256" height="256">{body}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")

    def solid(code: str) -> Image.Image | None:
        return Image.open(io.BytesIO(fluent[files[code]])).convert("RGBA") if code in files else None

    return {"flat": flat, "3d": solid}


def compose(sprite: Image.Image, colour: tuple[int, int, int], small: bool, size: int) -> np.ndarray:
    """The sprite, trimmed to its pixels and centred, over one colour: (size size 3) uint8."""
    sprite = sprite.crop(sprite.getchannel("A").getbbox())
    side = round(size * (0.5 if small else 0.92))
    scale = side / max(sprite.size)
    sprite = sprite.resize([max(1, round(s * scale)) for s in sprite.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), (*colour, 255))
    canvas.alpha_composite(sprite, ((size - sprite.width) // 2, (size - sprite.height) // 2))
    return np.asarray(canvas.convert("RGB"))


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

    noto, fluent, captions = (members(fetch(package, args.out)) for package in PACKAGES)
    draw = sprites(noto, fluent)
    rng = random.Random(0)
    pictures, records = [], []
    for emoji in tqdm(chosen(captions), desc="compose", disable=None):
        drawn = {style: function(codepoints(emoji["hexcode"])) for style, function in draw.items()}
        if None in drawn.values():
            continue
        for style, sprite in drawn.items():
            small_on = ["white", *rng.sample(list(BACKGROUNDS)[1:], 2)]
            for background, small in [(b, False) for b in BACKGROUNDS] + [(b, True) for b in small_on]:
                pictures.append(compose(sprite, BACKGROUNDS[background], small, args.size))
                records.append(
                    dict(
                        label=emoji["label"],
                        tags=emoji.get("tags", []),
                        style=style,
                        background=background,
                        small=small,
                    )
                )

    np.save(args.out / "pictures.npy", np.stack(pictures))
    (args.out / "pictures.json").write_text(json.dumps(records, ensure_ascii=False))
    sources = [dict(package=p, version=v, licence=licence, sha256=SHA256[p]) for p, (v, licence) in PACKAGES.items()]
    (args.out / "sources.json").write_text(json.dumps(sources, indent=1))
    print(f"{len(records)} pictures of {len({r['label'] for r in records})} emoji in {args.out}")


if __name__ == "__main__":
    main()
