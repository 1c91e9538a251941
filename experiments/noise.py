"""How noisy are paired differences? Collects their spread from finished studies into the package's table.

    python experiments/noise.py                             # trains the quick shape's arms and a null pair, five seeds
    python experiments/noise.py --folders runs/a runs/b     # collects from studies that are done
    python experiments/noise.py --write eqx_slm/study/noise.json    # and puts the entries into the table

The null pair is the reference twice, with initial values of its own each time (`--pairing data-only`): what is left of
the noise where only the data are paired. Entries of the same arms, shape, tokens and recipe take the old ones' place.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from eqx_slm.commandline import complain, parse
from eqx_slm.configs import read_json
from eqx_slm.errors import UserError
from eqx_slm.files import write_text_atomic
from eqx_slm.study import preset
from eqx_slm.study.noise import measured, merged, noise_table, table_text
from eqx_slm.study.pair import run_pair


@dataclass(frozen=True)
class Options:
    """Measures the spread of paired differences."""

    folders: tuple[str, ...] = ()
    """Run folders of finished studies; without them two studies are trained."""
    preset: str = "quick"
    """The shape that is trained."""
    seeds: int = 5
    """Paired seeds of those studies."""
    steps: int | None = None
    """Training steps of every run; the preset's without it."""
    out: str = "runs/noise"
    """Where those studies go; called again, it goes on there."""
    write: str | None = None
    """The table to put the entries into; only printed without it."""


def main() -> int:
    """Prints the entries; returns the exit code."""
    options = parse(Options, None, "noise.py")
    try:
        folders = [Path(folder) for folder in options.folders or train(options)]
        found = [measured(read_json(path / "result.json"), f"experiments/noise.py, {path.name}") for path in folders]
        entries = [entry for each in found for entry in each]
        print(table_text(entries), end="")
        if options.write:
            write_text_atomic(options.write, table_text(merged(noise_table(), entries)))
    except UserError as error:
        complain(error)
        return 2
    return 0


def train(options: Options) -> list[Path]:
    """The folders of the pairs and of the null pair, trained where they are not there."""
    base = preset(options.preset)
    base = dataclasses.replace(base, seeds=options.seeds, steps=options.steps or base.steps, sample_tokens=0)
    pairs = dataclasses.replace(base, arms=("dense", "dense-tied-deep", "leviathan-deep"))
    null = dataclasses.replace(base, arms=("dense", "dense"), pairing="data-only")
    both = {"pairs": pairs, "null": null}
    return [run_pair(each, out=Path(options.out) / f"{name}-{each.steps}")[0] for name, each in both.items()]


if __name__ == "__main__":
    sys.exit(main())
