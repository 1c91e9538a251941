"""Named starting points of a matched study: two for a CPU, one for minutes on an accelerator, and published shapes."""

import dataclasses
import re

from ..checks import meant
from ..errors import UserError
from ..model import ModelConfig
from ..nn.attention import AttentionConfig
from ..nn.bigrams import BigramConfig
from ..nn.composed import ComposedConfig
from ..nn.leviathan import LeviathanConfig
from ..nn.spelled import SpelledConfig
from ..nn.table import TableConfig
from ..train.optimizer import OptimizerConfig
from .arms import Tuned
from .config import PairConfig, StreamConfig

# Small shapes with small generators: at published sizes (1.2M parameters and 512 D) one would outweigh the table it
# replaces. This one is sized so that one more layer brings Leviathan, and two the tied table, within 0.2% of dense.
# Scales, learning rates and their multipliers are the best of coarse sweeps for each kind of arm (experiments/LOG.md):
# rows of one unit that move fast, a generator whose codebooks and W_in begin ten and seven times the published size.
TUNED = Tuned(
    generator=LeviathanConfig(
        coordinates=2, seed_size=47, n_heads=4, rank=16, output_std=0.15, codebook_std=0.2, input_std=0.14
    ),
    generator_lr="embedding=1, embedding.w_out=0.3",
    tied_scale=0.25,
    tied_std=0.3,
    tied_lr="embedding=18",
    compositional_std=1.0,
    low_rank_std=1.0,
    binary_std=1.0,
    spelled=SpelledConfig(code="fourier", size=128, longest=16, std=0.3),
    composed=ComposedConfig(pieces=512, longest=8, std=1.0),
    hybrid_rows=256,
    hybrid_std=1.0,
    bigrams=BigramConfig(rows=4096, rank=8),
)
QUICK = PairConfig(
    name="quick",
    model=ModelConfig(
        vocab_size=2048,
        d_model=64,
        mixer=AttentionConfig(n_heads=2),
        embedding=TableConfig(std=1.0),
        lr_multipliers="embedding=13, head=4",
    ),
    tuned=TUNED,
    stream=StreamConfig(tokenizer="bpe:2048", batch_size=2, eval_tokens=8192),
    optimizer=OptimizerConfig(floor=0.0),
    seeds=5,
    steps=1120,
    evaluations=10,
    frequency=10,
    learning_rates=(3.5e-3,),
)
CPU = dataclasses.replace(
    QUICK,
    name="cpu",
    steps=5888,
    stream=dataclasses.replace(QUICK.stream, batch_size=8, eval_tokens=32768),
    evaluations=20,
    learning_rates=(5e-3,),
)

# Twice the width and the vocabulary, and again one more layer for the generator's parameters, two for the tied table's.
# Table and tied table have scales and multipliers of their own here (the search in experiments/LOG.md).
SMALL = dataclasses.replace(
    QUICK,
    name="small",
    model=dataclasses.replace(QUICK.model, vocab_size=4096, d_model=128, lr_multipliers="embedding=26, head=4"),
    tuned=dataclasses.replace(
        QUICK.tuned,
        generator=dataclasses.replace(QUICK.tuned.generator, seed_size=96, rank=32, input_std=0.1),
        tied_scale=1.0,
        tied_std=0.1,
        tied_lr="embedding=12",
        spelled=dataclasses.replace(QUICK.tuned.spelled, size=256),
        composed=dataclasses.replace(QUICK.tuned.composed, pieces=1024),
        hybrid_rows=512,
        bigrams=BigramConfig(rows=8192, rank=16),
    ),
    stream=StreamConfig(tokenizer="bpe:4096", batch_size=16, eval_tokens=65536),
    steps=1200,
    evaluations=8,
    learning_rates=(2e-3, 4e-3),
)
PRESETS = {"quick": QUICK, "cpu": CPU, "small": SMALL}


def preset(name: str) -> PairConfig:
    """A named starting point: "quick", "cpu", "small" (1.6M parameters, 2.5M tokens: minutes on an accelerator), or a
    shape `d_model x depth` such as "256x6".

    A shape takes the published recipe: o200k_base, SwiGLU of 4 d_model, heads of 64, sequences of 512 tokens in
    batches of 512, bfloat16 compute, the published generator (arXiv 2601.22040). The learning rate was not published;
    1e-3 is a guess until it is swept.

    **Raises:** `UserError` for another name.
    """
    if name in PRESETS:
        return PRESETS[name]
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", name)
    if match is None:
        raise UserError(
            f"unknown preset {name!r}; allowed: {', '.join(PRESETS)}, or d_model x depth such as 256x6 or 768x12"
            f"{meant(name, PRESETS)}"
        )
    d_model, depth = int(match[1]), int(match[2])
    try:
        mixer = AttentionConfig(n_heads=max(1, d_model // 64))
        model = ModelConfig(d_model=d_model, depth=depth, context=512, mixer=mixer)
    except ValueError as error:
        raise UserError(f"preset {name}, heads of about 64: {error}") from None
    return PairConfig(
        name=name,
        model=model,
        stream=StreamConfig(
            tokenizer="o200k_base", vocab_size=200_019, sequence_length=512, batch_size=512, eval_tokens=512 * 512
        ),
        steps=4096,
        learning_rates=(1e-3,),
        compute_dtype="bfloat16",
        evaluations=20,
    )
