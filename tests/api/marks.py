"""Uploads that can be recognised wherever they end up: marked photos, a scanner that finds the marks, a list of written files."""

import base64
import io
import json
import mmap
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, PngImagePlugin

# Loaded by every Python process of the server: appends each file it opens for writing to a list.
LISTER = """
import os, sys
_list = os.open({list!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def _hook(event, args):
    if event != "open":
        return
    path, mode, flags = args
    writes = set(mode) & set("wax+") if isinstance(mode, str) else isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
    if writes and not isinstance(path, int):
        os.write(_list, os.fsencode(path) + b"\\n")

sys.addaudithook(_hook)
"""


@dataclass
class Marks:
    """Byte strings that must not be found, by what they mark."""

    known: dict[str, list[bytes]] = field(default_factory=dict)

    def word(self, name: str) -> str:
        """A new random word to hide somewhere."""
        word = f"mark{secrets.token_hex(8)}"
        self.add(name, word.encode())
        return word

    def add(self, name: str, content: bytes) -> None:
        """`content` in every form that a log, a URL, JSON or a dump may give it."""
        texts = [content, content.hex().encode(), repr(content)[2:-1].encode(), quote(content).encode()]
        for shift in range(3):  # base64 of the content in the middle of something else; its ends depend on the neighbours
            texts.append(base64.b64encode(bytes(shift) + content)[4:-4])
        self.known[name] = [text for text in dict.fromkeys(texts) if len(text) >= 12]

    def found_in(self, data: "bytes | mmap.mmap") -> set[str]:
        """Names of the marks in `data`."""
        pattern = re.compile(b"|".join(re.escape(form) for forms in self.known.values() for form in forms))
        hits = {match.group() for match in pattern.finditer(data)}
        return {name for name, forms in self.known.items() if hits & set(forms)}

    def scan(self, folders: Iterable[Path]) -> dict[Path, set[str]]:
        """Marks in the name or content of every file below `folders`."""
        found = {}
        for path in files_below(folders):
            hits = self.found_in(os.fsencode(path)) | (self._scan_file(path) if path.is_file() else set())
            if hits:
                found[path] = hits
        return found

    def _scan_file(self, path: Path) -> set[str]:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return set()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return self.found_in(data)


def files_below(folders: Iterable[Path]) -> Iterator[Path]:
    """Everything in `folders` but folders; links are not followed out of them."""
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                yield Path(parent, name)


def marked_photo(marks: Marks, kind: str, side_px: int) -> bytes:
    """A photo of noise, marked in its EXIF, its comment, the middle of its file, and a row of its pixels."""
    pixels = np.random.default_rng(secrets.randbits(64)).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x010E] = marks.word(f"{kind} EXIF")
    comment = marks.word(f"{kind} comment")
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", comment)
        image.save(buffer, kind, exif=exif, pnginfo=text)
    else:
        image.save(buffer, kind, exif=exif, comment=comment.encode(), quality=92)
    data = buffer.getvalue()
    marks.add(f"{kind} file bytes", data[len(data) // 2 :][:48])
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    marks.add(f"{kind} pixels", decoded[side_px // 2, side_px // 3 :][:16].tobytes())
    return data


def install_lister(folder: Path) -> tuple[Path, Path]:
    """A folder for PYTHONPATH that makes Python list the files it writes, and the list."""
    hook, listed = folder / "hook", folder / "written.txt"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(LISTER.format(list=str(listed)))
    return hook, listed


def gone_since(listed: Path, offset: int, cwd: Path) -> list[str]:
    """Files written after the list had `offset` bytes that can't be scanned any more; devices and compiled code apart."""
    names = [os.fsdecode(name) for name in listed.read_bytes()[offset:].splitlines()]
    ours = [name for name in names if not name.startswith(("/dev/", "/proc/")) and "/__pycache__/" not in name]
    return [name for name in ours if not (cwd / name).is_file()]


def as_json(**fields: object) -> bytes:
    """A JSON body."""
    return json.dumps(fields).encode()
