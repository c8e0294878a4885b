"""Public-domain novels out of two Debian packages: six by Jane Austen, and Moby Dick.

`r-cran-janeaustenr` and `r-cran-tokenizers` carry the texts as R lazy-load databases. They are
needed for training only; nothing of them is kept in this repository.
"""

from __future__ import annotations

import re
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"r-cran-janeaustenr": "janeaustenr", "r-cran-tokenizers": "tokenizers"}
HELD_OUT_BOOK, HELD_OUT_CHAPTERS = "persuasion", 4


@dataclass(frozen=True)
class Books:
    """Training paragraphs by book, and those of the chapters that training never sees."""

    train: dict[str, list[str]]
    held_out: list[str]


def fetch(directory: Path) -> None:
    """Download and unpack the two packages with `apt-get download` and `dpkg-deb`, if not there."""
    directory.mkdir(parents=True, exist_ok=True)
    for package, folder in PACKAGES.items():
        if (directory / "usr/lib/R/site-library" / folder).is_dir():
            continue
        subprocess.run(["apt-get", "download", package], cwd=directory, check=True)
        archive = next(directory.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(directory)], check=True)


def _lazy_load(base: Path) -> dict[str, list[str]]:
    """The character vectors of one R lazy-load database (`.rdx` index, `.rdb` zlib blobs)."""
    import rdata

    index = rdata.read_rds(base.with_suffix(".rdx"))
    blobs = base.with_suffix(".rdb").read_bytes()
    found = {}
    for name, (offset, length) in index["variables"].items():
        stream = zlib.decompress(blobs[offset + 4 : offset + length])
        value = rdata.conversion.convert(rdata.parser.parse_data(stream))
        found[str(name)] = [str(line) for line in value]
    return found


def paragraphs(lines: list[str]) -> list[str]:
    """Undo the hard line breaks: blank lines part paragraphs, other breaks become spaces."""
    text = "\n".join(line.strip() for line in "\n".join(lines).splitlines())
    blocks = (re.sub(r"\s+", " ", b).strip() for b in re.split(r"\n\s*\n", text))
    return [b.replace("_", "") for b in blocks if b]


def _chapter_starts(blocks: list[str]) -> list[int]:
    return [
        i
        for i, b in enumerate(blocks)
        if re.fullmatch(r"chapter \w+\.?.*", b, re.I) and len(b) < 80
    ]


def load(directory: Path) -> Books:
    """Read both packages from where `fetch` put them.

    Errors: FileNotFoundError if they are not there; ValueError if a book has no chapters to hold out.
    """
    texts: dict[str, list[str]] = {}
    for folder in PACKAGES.values():
        base = directory / "usr/lib/R/site-library" / folder / "data" / "Rdata"
        texts |= {name: paragraphs(lines) for name, lines in _lazy_load(base).items()}
    moby = texts["mobydick"]
    begin = next((i for i, b in enumerate(moby) if b.startswith("Call me Ishmael")), 0)
    end = next(
        (i for i, b in enumerate(moby) if re.search(r"End of (the )?Project Gutenberg", b, re.I)),
        len(moby),
    )
    texts["mobydick"] = moby[begin:end]
    starts = _chapter_starts(texts[HELD_OUT_BOOK])
    if len(starts) <= HELD_OUT_CHAPTERS:
        raise ValueError(
            f"{HELD_OUT_BOOK}: expected more than {HELD_OUT_CHAPTERS} chapters, got {len(starts)}"
        )
    cut = starts[-HELD_OUT_CHAPTERS]
    held_out = texts[HELD_OUT_BOOK][cut:]
    texts[HELD_OUT_BOOK] = texts[HELD_OUT_BOOK][:cut]
    return Books(texts, held_out)
