"""`python -m eqx_slm`, and the script `eqx-slm`: one word for each thing that is done with small models."""

import importlib
import sys
from collections.abc import Sequence

from .commandline import complain, listing, patient_streams
from .version import __version__

# Name: where its main function stands, what it is given before the user's own words, and a line for the list.
COMMANDS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "budget": ("study.sizes", "budget_main", (), "what fits into a number of parameters: width, depth, shares"),
    "ledger": ("study.sizes", "ledger_main", (), "every parameter of a preset or a config, FLOPs and memory"),
    "pair": ("study.command", "main", (), "train a matched pair and get a verdict with an interval"),
    "report": ("study.finished", "main", ("report",), "write a finished study's report again"),
    "compare": ("study.finished", "main", ("compare",), "put finished studies side by side"),
    "generate": ("study.text_commands", "generate_main", (), "continue a prompt with a trained model"),
    "eval": ("study.text_commands", "evaluate_main", (), "the loss of a trained model on a text file"),
    "export": ("study.exchange", "export_main", (), "a trained model to Hugging Face's files"),
    "import": ("study.exchange", "import_main", (), "a Llama or GPT-2 of transformers to a folder of ours"),
    "data": ("data.command", "main", (), "describe text, prepare it into shards, export a tokenizer"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, or 2 for what the user can mend (one line on standard error)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        return _without(given[0] if given else "")
    file, function, front, _ = COMMANDS[given[0]]
    command = getattr(importlib.import_module(f"{__package__}.{file}"), function)
    if arguments is None and not front:  # as if it were a script of its own: what it says of itself is then right
        sys.argv = [f"eqx-slm {given[0]}", *given[1:]]
        return command()
    return command([*front, *given[1:]])


def _without(word: str) -> int:
    """The list of commands, the version, or one line about a word that is neither."""
    with patient_streams():
        if word in ("--version", "-V"):
            print(f"eqx_slm {__version__}")
        elif word in ("", "-h", "--help"):
            usage = "usage: eqx-slm COMMAND [OPTIONS], or python -m eqx_slm COMMAND [OPTIONS]"
            print(listing("eqx-slm", usage, {name: line for name, (*_, line) in COMMANDS.items()}))
        else:
            complain(f"no command {word!r}: it is one of {', '.join(COMMANDS)} (see eqx-slm --help)")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
