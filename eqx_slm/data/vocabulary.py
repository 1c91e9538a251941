"""Tokenizers by name, and as files: one JSON form (prepared folders and the cache), and Hugging Face's."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..configs import read_json
from ..errors import UserError
from ..files import json_hash, sealed, write_bytes_atomic
from .corpora import Corpus
from .documents import OnError, Problem, Skipped, Source, no_text
from .splits import SPLITS, SplitRule
from .tokenizer import ByteTokenizer, ListTokenizer, Tokenizer, check_lost

FORMAT = 1
SPECS = (
    "'bpe:N', 'char', 'byte', 'word:eos=newline', 'word:eos=none', a tiktoken name such as 'o200k_base', or a file: "
    "path/tokenizer.json, path/x.tiktoken, or vocabulary.json of a run"
)
LISTS = ("char", "word", "word:eos=newline", "word:eos=none")
TRAINING_BYTES = 64 << 20  # of text that merges are learned from; a corpus in memory is used whole
WHOLE_BYTES = 256 << 20  # of text that a vocabulary of characters or words may be read from


def make_tokenizer(spec: str, corpus: Corpus, *, cache_dir: str | Path | None = None) -> Tokenizer:
    """Make the tokenizer of a specification, trained on the corpus' training split where it is trained at all.

    **Arguments:**

    - `spec`: `bpe:N` (byte-level BPE with exactly N ids, one of them the end of a text), `char`, `byte`,
        `word:eos=newline` (`word` for short; each line ends with `<eos>`), `word:eos=none`, any tiktoken name, or a
        file: Hugging Face's tokenizer.json, a .tiktoken file, a folder with one, or a run's vocabulary.json.
    - `corpus`: what to train on; its other splits decide whether `char` needs an id for unknown characters.
    - `cache_dir`: where trained ranks are kept; by default `$EQX_SLM_CACHE`, or `~/.cache/eqx_slm`.

    Raises `UserError` for an unknown specification, for more ids than the text supports, or if a tiktoken file can be
    neither found nor downloaded.
    """
    if is_file_spec(spec):
        return tokenizer_file(spec)
    if spec == "byte":
        return ByteTokenizer()
    if spec in LISTS:
        name = "word:eos=newline" if spec == "word" else spec
        return ListTokenizer.of_text(name, corpus.train, (*corpus.valid, *corpus.test))
    import tiktoken

    from . import bpe

    if spec.startswith("bpe:"):
        return _trained(spec, corpus, cache_dir)
    if spec in tiktoken.list_encoding_names():
        return bpe.load_tiktoken(spec)
    if os.path.isdir(spec):
        raise UserError(f"unknown tokenizer {spec!r}: write ./{spec} for the one in the folder of that name")
    ends = "; a file of that name is there: a tokenizer's ends in .json, .tiktoken or .model"
    raise UserError(f"unknown tokenizer {spec!r}: give {SPECS}{ends if os.path.exists(spec) else ''}")


def tokenizer_file(spec: str) -> Tokenizer:
    """The tokenizer of a file: ours (`save_tokenizer`), Hugging Face's or tiktoken's (see `open_tokenizer_file`)."""
    path = Path(spec).expanduser()
    ours = path / "vocabulary.json" if path.is_dir() else path
    if ours.suffix == ".json" and ours.is_file():
        told = read_json(ours)
        if isinstance(told, dict) and "format" in told and "kind" in told:
            return load_tokenizer(ours)
    from .tokenizer_files import open_tokenizer_file

    return open_tokenizer_file(spec)


def is_file_spec(spec: str) -> bool:
    """Whether a tokenizer's specification is a file, or a folder (written with a slash), not a name."""
    return spec.endswith((".json", ".tiktoken", ".model")) or "/" in spec or os.sep in spec


def _trained(spec: str, corpus: Corpus, cache_dir: str | Path | None) -> Tokenizer:
    from . import bpe

    digits = spec.removeprefix("bpe:")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 9 and int(digits) >= 257):
        raise UserError(
            f"cannot make the tokenizer {spec!r}: N of 'bpe:N' is an integer of at least 257 (256 bytes, end of text)"
        )
    size = int(digits)
    folder = Path(cache_dir or os.environ.get("EQX_SLM_CACHE") or Path.home() / ".cache" / "eqx_slm")
    content = [FORMAT, size, corpus.hash, bpe.PATTERN, bpe.LONGEST_TOKEN, version("tokenizers"), version("tiktoken")]
    path = folder / f"bpe-{size}-{json_hash(content)[:32]}.json"
    with contextlib.suppress(UserError):  # none there, or damaged: it is made anew
        cached = load_tokenizer(path)
        if cached.name == f"bpe:{size}":
            return cached
    tokens = bpe.train_bpe(corpus.train, size - 1)
    if len(tokens) < size - 1:
        raise UserError(
            f"{spec} asks for {size} ids, but the training text of {corpus.name} supports {len(tokens) + 1}; "
            f"give 'bpe:{len(tokens) + 1}' or less, or more text"
        )
    tokenizer = bpe.of_ranks(tokens)
    with contextlib.suppress(OSError):  # a read-only home costs seconds at the next start, nothing else
        save_tokenizer(path, tokenizer)
    return tokenizer


def tokenizer_for(
    spec: str, source: Source, rule: SplitRule, *, on_error: OnError = "stop", cache_dir: str | Path | None = None
) -> Tokenizer:
    """The tokenizer of a specification (see `make_tokenizer`), trained on a source's training split.

    Merges (`bpe:N`) are learned from the first 64 MiB of training documents of files; `char` and `word` need all of
    the text, so they are for sources up to 256 MiB.

    **Raises:** `UserError` as `make_tokenizer` does, where the text is larger than that, and where a file has no ids
    for much of it (`check_lost`).
    """
    if is_file_spec(spec):
        made = tokenizer_file(spec)
        documents = (item.text for item in source.items() if not isinstance(item, Problem))
        check_lost(made, source.name, [itertools.chain.from_iterable(documents)])
        return made
    if isinstance(source, Corpus):
        return make_tokenizer(spec, source, cache_dir=cache_dir)
    merges = spec.startswith("bpe:")
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    size, skipped = 0, Skipped(on_error)
    for item in source.items() if merges or spec in LISTS else ():
        if isinstance(item, Problem):
            skipped.see(item)
            continue
        split = rule(item)
        if merges and split != "train":
            continue
        size += len(item.data)
        if not merges and size > WHOLE_BYTES:
            raise UserError(
                f"{source.name} has more than {WHOLE_BYTES >> 20} MiB of text, too much for the vocabulary of {spec}; "
                "give bpe:N, byte or a tiktoken name"
            )
        texts[split].append(item.text)
        if merges and size >= TRAINING_BYTES:
            break
    if not size and (merges or spec in LISTS):
        raise UserError(no_text(source, skipped))
    identity = {"source": source.spec, "rule": str(rule), "bytes": TRAINING_BYTES, "on_error": on_error}
    train, valid, test = (tuple(texts[split]) for split in SPLITS)
    corpus = Corpus(source.name, train, valid, test, split_rule=str(rule), hash=json_hash(identity))
    return make_tokenizer(spec, corpus, cache_dir=cache_dir)


def save_tokenizer(path: str | Path, tokenizer: Tokenizer) -> Path:
    """Writes everything that decides a tokenizer's ids; the file appears whole or not at all."""
    document = {"format": FORMAT, "name": tokenizer.name, "hash": tokenizer.hash, **tokenizer.content()}
    # `hash` is of the tokens alone, so that a pattern or a special id that was changed would not show in it.
    return write_bytes_atomic(path, json.dumps(sealed(document)).encode("ascii"))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads what `save_tokenizer` wrote; no other file and no network is needed.

    **Raises:** `UserError` where the file is missing or damaged.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        if data["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {data['format']}, this version reads {FORMAT}: prepare the data again"
            )
        digest = data.pop("sha256", None)  # earlier versions wrote none
        sound = digest in (None, json_hash(data))
        tokenizer = _of(data) if sound else None
        sound = tokenizer is not None and tokenizer.hash == data["hash"]
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tokenizer's description ({type(error).__name__}: {error})") from None
    if tokenizer is None or not sound:
        raise UserError(f"{path}: the description of the tokenizer {data['name']} is damaged: its hash is another")
    return tokenizer


def _of(data: dict[str, Any]) -> Tokenizer:
    if data["kind"] == "byte":
        return ByteTokenizer()
    if data["kind"] == "list":
        return ListTokenizer(data["name"], data["entries"])
    if data["kind"] == "hub":
        from .tokenizer_files import HubTokenizer

        return HubTokenizer(data["name"], data["json"], data["separator"])
    if data["kind"] != "tiktoken":
        raise ValueError(f"a tokenizer of kind {data['kind']!r}; allowed is byte, list, hub or tiktoken")
    from .bpe import make

    ranks = dict(zip(map(base64.b64decode, data["tokens"]), data["ids"], strict=True))
    return make(data["name"], ranks, **{key: data[key] for key in ("label", "pattern", "special", "size")})


def export_tokenizer(path: str | Path, tokenizer: Tokenizer) -> Path:
    """Writes a BPE tokenizer as Hugging Face's tokenizer.json, which gives the same ids.

    tiktoken merges whatever pair makes a token of the lowest rank; the Hub's format lists pairs. Every way of cutting
    a token into two tokens is listed under the token's rank, so that both do the same.
    """
    data = tokenizer.content()
    if Path(path).suffix != ".json":
        raise UserError(f"{path}: end the name in .json (Hugging Face's tokenizer.json)")
    if data["kind"] == "hub":
        return write_bytes_atomic(path, data["json"].encode("utf-8"))
    if data["kind"] != "tiktoken":
        raise UserError(f"the tokenizer {tokenizer.name} has no merges to write; give bpe:N or a tiktoken name")
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Exported

    from .bpe import bytes_of_characters, pieces

    character = {byte: text for text, byte in bytes_of_characters().items()}
    tokens = [base64.b64decode(token) for token in data["tokens"]]
    written = {token: "".join(character[byte] for byte in token) for token in tokens}
    ways = ((token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token)))
    merges = [(written[left], written[right]) for left, right in ways if left in written and right in written]
    special = sorted(data["special"].items(), key=lambda item: item[1])
    vocab = {written[token]: rank for token, rank in zip(tokens, data["ids"], strict=True)} | dict(special)
    exported: Any = Exported(models.BPE(vocab, merges))
    exported.pre_tokenizer, exported.decoder = pieces(data["pattern"]), decoders.ByteLevel()
    exported.add_special_tokens([AddedToken(text, normalized=False, special=True) for text, _ in special])
    return write_bytes_atomic(path, exported.to_str().encode("utf-8"))
