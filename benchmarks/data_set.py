"""A made Pile-like set for the benchmarks of data: pieces of the text at hand, of log-normal length, as JSON lines.

The text is this Python's sources, and with a data root the prose of wikitext-2; records have `text` and
`meta.pile_set_name`, in .jsonl.zst files of about 64 MB of text.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eqx_slm.data import load_corpus
from eqx_slm.errors import UserError

from .harness import need, parser

SHARD = 64 << 20  # bytes of text a file


def base_texts(data_root: str | None) -> dict[str, str]:
    """The text at hand, by set."""
    texts = {}
    wanted = [("stdlib", None), ("wikitext-2", data_root)]
    for name, root in wanted:
        with contextlib.suppress(UserError):
            texts[name] = "\n".join(load_corpus(name, data_root=root).train)
    return texts


def make_set(folder: Path, megabytes: int, data_root: str | None) -> int:
    """Writes the set; returns its bytes of text."""
    import zstandard  # of the extra `data`

    rng = np.random.default_rng(0)
    bases = base_texts(data_root)
    names, total, number = list(bases), 0, 0
    folder.mkdir(parents=True)
    while total < megabytes * 10**6:
        lines, size = [], 0
        while size < min(SHARD, megabytes * 10**6 - total):
            name = names[rng.integers(len(names))]
            length = int(np.clip(rng.lognormal(7.7, 1.3), 100, 400_000))  # mean about 5 kB, as the Pile's 5.9
            start = int(rng.integers(max(1, len(bases[name]) - length)))
            text = bases[name][start : start + length]
            if text.strip():
                lines.append(json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n")
                size += len(text.encode())
        packed = zstandard.ZstdCompressor(level=3).compress("".join(lines).encode())
        (folder / f"{number:05d}.jsonl.zst").write_bytes(packed)
        total, number = total + size, number + 1
    return total


def options(doc: str | None) -> argparse.Namespace:
    """The options of both benchmarks; `--small` is a set of 2 MB, once."""
    options = parser(doc)
    options.add_argument("--megabytes", type=int, default=64, help="of text in the made set")
    options.add_argument("--rounds", type=int, default=3, help="interleaved rounds; ratios are of medians")
    options.add_argument("--tokenizer", default="o200k_base", help="a tiktoken name")
    options.add_argument("--data-root", help="holds wikitext-2, for prose beside the code (default: EQX_SLM_DATA)")
    options.add_argument("--folder", help="where the set is made (a temporary folder by default)")
    chosen = options.parse_args()
    need("zstandard")
    chosen.data_root = chosen.data_root or os.environ.get("EQX_SLM_DATA")
    if chosen.small:
        chosen.megabytes, chosen.rounds = 2, 1
    return chosen


@contextlib.contextmanager
def made_set(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of the set, made where it is not there."""
    with contextlib.ExitStack() as stack:
        place = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(place, f"set-{options.megabytes}")
        if not folder.exists():
            make_set(folder, options.megabytes, options.data_root)
        yield folder
