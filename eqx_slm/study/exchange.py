"""`eqx-slm export` and `import`: a run's model to Hugging Face's files, and theirs to a folder of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import Positional

from ..commandline import command
from ..errors import UserError
from .text import VOCABULARY, open_run
from .text_commands import Which


@dataclass(frozen=True)
class Export(Which):
    """Write a trained model for other programs: Hugging Face's Llama, or plain safetensors with the config."""

    examples: ClassVar = (
        "eqx-slm export runs/quick-1 llama --arm dense            # transformers' from_pretrained reads it",
        "eqx-slm export runs/quick-1 plain --to safetensors       # the weights by their own names, and model.json",
    )

    out: Positional[Path] = Path("exported")
    """A new or empty folder."""
    to: Literal["hf", "safetensors"] = "hf"
    """hf: LlamaForCausalLM, a generator as its table. safetensors: model.safetensors, model.json, vocabulary.json."""


@dataclass(frozen=True)
class Import:
    """Read a Llama, a Mistral or a GPT-2 of transformers into a folder that the other commands read as a run."""

    examples: ClassVar = (
        "eqx-slm import ~/models/tiny-llama imported",
        'eqx-slm generate imported "Once upon a time"         # with the tokenizer.json of the folder',
    )

    folder: Positional[Path]
    """With config.json and .safetensors files, and tokenizer.json where text is wanted."""
    out: Positional[Path] = Path("imported")
    """A new or empty folder."""


def save_plain(folder: Path, model: Any, config: Any, tokenizer: Any = None) -> None:
    """Writes model.json, model.safetensors and, with a tokenizer, vocabulary.json, as a run folder has them."""
    from ..configs import to_dict
    from ..data.vocabulary import save_tokenizer
    from ..files import check_new, json_hash, json_ready, write_json_atomic
    from ..train.checkpoint import save_model

    check_new(folder)
    document = json_ready(to_dict(config))
    try:
        if tokenizer is not None:
            save_tokenizer(folder / VOCABULARY, tokenizer)
        write_json_atomic(folder / "model.json", document)
        save_model(folder / "model.safetensors", model, metadata={"config": json_hash(document)})
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None


def export_main(arguments: Sequence[str] | None = None) -> int:
    """`export`; returns the exit code."""

    def run(o: Export) -> None:
        from ..infer.hugging_face import export_llama

        found = open_run(o.run, arm=o.arm, seed=o.seed, rate=o.rate)
        save = export_llama if o.to == "hf" else save_plain
        save(o.out, found.model, found.config, found.tokenizer)
        print(o.out)

    return command(Export, arguments, "eqx-slm export", run)


def import_main(arguments: Sequence[str] | None = None) -> int:
    """`import`; returns the exit code."""

    def run(o: Import) -> None:
        from ..data.vocabulary import tokenizer_file
        from ..files import check_new
        from ..infer.hugging_face import import_hugging_face

        check_new(o.out)
        model, config = import_hugging_face(o.folder)
        tokenizer = tokenizer_file(f"{o.folder}/") if (o.folder / "tokenizer.json").is_file() else None
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{o.folder}: tokenizer.json has {tokenizer.vocab_size} ids and the model {config.vocab_size}: they do "
                "not belong together"
            )
        save_plain(o.out, model, config, tokenizer)
        print(o.out)

    return command(Import, arguments, "eqx-slm import", run)
