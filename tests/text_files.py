"""Files of documents for the data tests, in every format that is read."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard

import eqx_slm.data.documents as documents
from eqx_slm.data.documents import Document


def json_line(text, group=None):
    meta = {} if group is None else {"meta": {"pile_set_name": group}}
    return json.dumps({"text": text, **meta}).encode() + b"\n"


def write_texts(path, texts, groups=None):
    """Writes texts as the ending of the path says; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = groups or [None] * len(texts)
    lines = b"".join(json_line(text, group) for text, group in zip(texts, groups, strict=True))
    name = path.name
    if name.endswith(".jsonl"):
        path.write_bytes(lines)
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".jsonl.zst"):  # two frames, as parallel packers write
        half = len(lines) // 2
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(lines[:half]) + pack(lines[half:]))
    elif name.endswith(".parquet"):
        metas = [{"pile_set_name": group or ""} for group in groups]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "meta": metas}), path, row_group_size=3)
    else:
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")


def texts_of(source, start=documents.START):
    return [item.text for item in source.items(start) if isinstance(item, Document)]


def some_texts(count, seed=0, words=12):
    """Texts of a few words and a number; all different."""
    rng = np.random.default_rng(seed)
    stock = "the a of and model token naïve 日本 🙂 layer\n width\t budget, pair. 12 3.5".split(" ")
    return [f"{i} " + " ".join(rng.choice(stock, rng.integers(1, words))) for i in range(count)]
