"""The options of the commands of studies; the string below a field is its help."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ..train.choices import ComputeDtype, Loop, Remat


@dataclass(frozen=True)
class StudyOptions:
    """Run a study; what is left out is as its script says."""

    groups: ClassVar = {
        "study": ("preset", "arms", "arm", "set", "seeds", "until_resolved", "max_seeds", "margin", "lr", "pairing")
        + ("config",),
        "data": ("data", "data_root", "text_field", "tokenizer", "sequence_length", "batch_size", "vocab_size")
        + ("pad_vocab_to",),
        "training": ("steps", "tokens", "schedule", "optimizer", "accumulate", "mesh", "processes", "loop", "remat")
        + ("compute_dtype", "seeds_at_once"),
        "run": ("out", "name", "dry_run", "stop_after", "keep_checkpoints", "go_on_from", "init_from")
        + ("other_cores", "track", "frequency"),
    }

    out: str | None = None
    """The run folder: new, empty, or one of the same study, which then goes on (more seeds, arms, rates)."""
    seeds: int | None = None
    """How many paired seeds."""
    until_resolved: Annotated[bool, "flag"] = field(default=False)
    """Add seeds until every comparison is resolved, by intervals that hold whenever one stops; see --max-seeds."""
    max_seeds: int | None = None
    """The most seeds that --until-resolved goes to; 20 without it."""
    steps: int | None = None
    """Training steps of every run."""
    lr: tuple[float, ...] | None = None
    """Peak learning rate; several are swept for every arm."""
    data: str | None = None
    """stdlib, tiny_shakespeare, ptb, wikitext-2, a text file, a folder of text files, a folder that
    `python -m eqx_slm.data prepare` wrote, stream:FILES to tokenize on the fly, mix:0.7=A,0.3=B of prepared folders."""
    data_root: str | None = None
    """The folder that holds the named corpora."""
    text_field: str | None = None
    """The field of a record that holds its text, where files hold records (JSON lines, Parquet)."""
    tokenizer: str | None = None
    """bpe:N, char, byte, word (word:eos=none), o200k_base, r50k_base; or a file: tokenizer.json, x.tiktoken."""
    sequence_length: int | None = None
    """Tokens a sequence."""
    batch_size: int | None = None
    """Sequences a batch."""
    compute_dtype: ComputeDtype | None = None
    """What parameters are cast to inside the step; masters, moments and sums stay float32."""
    accumulate: int | None = None
    """In how many parts a step takes its batch, for less memory; the same mean gradient."""
    mesh: str | None = None
    """How many devices along each axis, such as data=4,model=2: data and fsdp split a batch's rows, fsdp parameters and
    moments too, model the vocabulary."""
    processes: str | None = None
    """Run as one of several JAX processes over a --mesh of all their devices: auto where the cluster says which (Slurm,
    Cloud TPU), or HOST:PORT,COUNT,INDEX; the same command in each, the first one writes."""
    loop: Loop | None = None
    """unrolled, or runs: scan runs of equal layers (deep models compile faster), the same for all arms."""
    remat: Remat | None = None
    """What the backward pass keeps of a layer: none (everything), dots (results of matmuls), full (its input)."""
    seeds_at_once: int | None = None
    """How many seeds of an arm one program trains; one without it."""
    dry_run: Annotated[bool, "flag"] = field(default=False)
    """Print ledger, FLOPs, memory and a rough time per arm; train nothing."""
    stop_after: float | None = None
    """Save the run on its way after so many seconds and exit with code 75; the same command with --out goes on."""
    keep_checkpoints: Annotated[bool, "flag"] = field(default=False)
    """Keeps of every run the last checkpoint before its rate falls (schedule wsd or constant), for --go-on-from."""
    go_on_from: str | None = None
    """A finished run folder of fewer --steps with --keep-checkpoints: its runs go on from there, in a new folder."""
    init_from: str | None = None
    """A finished run folder of the same models: each run begins with the weights of its arm and seed there."""
    other_cores: Annotated[bool, "flag"] = field(default=False)
    """Go on with runs that were begun on another number of CPU cores, though sums then come in another order."""
    track: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Tells a tracker too what metrics.jsonl has (pip install 'eqx_slm[track]'); on this machine alone, unless the
    tracker's own variables say otherwise."""


@dataclass(frozen=True)
class Options(StudyOptions):
    """Train a matched pair on real text and get a verdict with an interval.

    What is left out comes from the preset; --config replays a run's config.json.
    """

    examples: ClassVar = (
        "pair.py                                                     # dense against Leviathan and the control",
        "pair.py --arms dense tapered rising --seeds 8               # where should MLP width go?",
        "pair.py --arms dense binary hybrid --data book.txt --tokens 2M",
        "pair.py --dry-run --preset 768x12                           # what it would cost",
        "pair.py --set leviathan-deep.embedding.rank=32 --lr 2e-3 5e-3",
        "pair.py --arm learned=dense,positions=learned none=dense,positions=none",
        "pair.py --arm rank=leviathan-deep,embedding.rank=8/32       # a grid: rank-8 and rank-32",
    )
    preset: str = "quick"
    """quick (five minutes on two cores), cpu, or d_model x depth such as 256x6 or 768x12 (bfloat16, for a GPU)."""
    arms: tuple[str, ...] | None = None
    """Named arms; the first is the reference: dense, dense-tied, dense-tied-deep, low-rank, low-rank-deep,
    compositional, leviathan, leviathan-deep, leviathan-flop, binary, binary-deep, binary-free, binary-free-deep,
    spelled, spelled-deep, composed, composed-deep, hybrid, hybrid-deep, bigrams, bigrams-wide, tapered, rising, gated,
    gated-wide, hope, titans, titans-wide."""
    arm: tuple[str, ...] = ()
    """Arms of your own, NAME=ARM,FIELD=VALUE,..., beside those of --arms, or beside the reference alone:
    learned=dense,positions=learned. Slashes make an arm of each value: rank=leviathan,embedding.rank=8/16."""
    set: tuple[str, ...] = ()
    """Fields of arms, ARM.FIELD=VALUE, such as leviathan-deep.embedding.rank=32; all.FIELD changes the
    base model that every arm is made from."""
    vocab_size: int | None = None
    """The model's vocabulary, at least the tokenizer's."""
    pad_vocab_to: int | None = None
    """Pads the vocabulary to a multiple; the ledger shows what that costs."""
    tokens: int | None = None
    """Training tokens of every run, rounded up to whole steps; instead of --steps."""
    margin: float | None = None
    """Nats a token below which a difference does not matter."""
    pairing: Literal["full", "data-only"] | None = None
    """full: equal leaves start equal; data-only: every arm has initial values of its own."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] | None = None
    """Learning-rate schedule after warm-up."""
    optimizer: Literal["adamw", "muon"] | None = None
    """adamw, or muon: hidden matrices by Muon, everything else by AdamW."""
    frequency: int | None = None
    """Classes of training frequency that the report's final losses are split by: 10 for deciles."""
    name: str | None = None
    """Name of the run folder."""
    config: str | None = None
    """Replay a config.json; other options change it."""
