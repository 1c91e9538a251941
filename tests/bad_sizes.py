"""Prints, as JSON, what every case of `test_checks.py` says: a process of its own, without run-time type checks."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm import (
    MLP,
    Attention,
    AttentionConfig,
    CompositionalConfig,
    ContinuumConfig,
    ContinuumMemory,
    GatedAttention,
    Head,
    HeadConfig,
    InContext,
    LayerNorm,
    LearnedPositions,
    LeviathanConfig,
    MLPConfig,
    ModelConfig,
    TaperConfig,
    TitansConfig,
    TitansMAC,
    TitansMACConfig,
    TitansMAG,
    TitansMAGConfig,
    TitansMemory,
    build,
    cross_entropy,
    flops,
    generate,
    make_program,
    match_flops,
    memory,
    taper_widths,
)
from eqx_slm.nn import ReadOut, RMSNorm
from eqx_slm.nn.norm import make_norm
from eqx_slm.train import OptimizerConfig

KEY = jax.random.key(0)
CONFIG = ModelConfig(vocab_size=8, d_model=4, depth=1, context=8, mixer=AttentionConfig(n_heads=2))
ORDERED = ModelConfig(
    vocab_size=8, d_model=4, mixer=AttentionConfig(n_heads=2), embedding=CompositionalConfig(order="frequency")
)
SIZES = {"0": 0, "-1": -1, "1.5": 1.5, "64.0": 64.0, "True": True, "'4'": "4", "nan": math.nan, "[4]": [4]}
PLACES = {  # where one size goes wrong; every value of SIZES is tried in each
    "d_model of Attention": lambda n: Attention(n, key=KEY),
    "n_heads of Attention": lambda n: Attention(8, n_heads=n, key=KEY),
    "n_kv_heads": lambda n: AttentionConfig(n_kv_heads=n),
    "d_head": lambda n: AttentionConfig(d_head=n),
    "window": lambda n: GatedAttention(8, window=n, key=KEY),
    "d_model of MLP": lambda n: MLP(n, key=KEY),
    "d_ff of MLP": lambda n: MLP(8, n, key=KEY),
    "d_ff of MLPConfig": lambda n: MLPConfig(d_ff=n),
    "a period": lambda n: ContinuumConfig(periods=(1, n)),
    "a share": lambda n: ContinuumConfig(shares=(1, n)),
    "a level's width": lambda n: ContinuumMemory(8, (8, n), periods=(1, 2), key=KEY),
    "a level's period": lambda n: ContinuumMemory(8, (8, 8), periods=(1, n), key=KEY),
    "multiple of levels": lambda n: ContinuumConfig(multiple=n),
    "d_model of Titans": lambda n: TitansMemory(n, key=KEY),
    "n_heads of Titans": lambda n: TitansMemory(8, n_heads=n, key=KEY),
    "memory_depth": lambda n: TitansConfig(memory_depth=n),
    "expansion": lambda n: TitansConfig(expansion=n),
    "chunk": lambda n: TitansConfig(chunk=n),
    "chunk_train": lambda n: TitansConfig(chunk_train=n),
    "window of MAG": lambda n: TitansMAGConfig(window=n),
    "d_model of MAG": lambda n: TitansMAG(n, key=KEY),
    "d_model of MAC": lambda n: TitansMAC(n, key=KEY),
    "rank of a head": lambda n: HeadConfig("low-rank", rank=n),
    "vocabulary of a head": lambda n: Head(n, 4, key=KEY),
    "size of RMSNorm": lambda n: RMSNorm(n),
    "size of LayerNorm": lambda n: LayerNorm(n),
    "context of positions": lambda n: LearnedPositions(n, 4, key=KEY),
    "vocab_size": lambda n: ModelConfig(vocab_size=n),
    "depth": lambda n: ModelConfig(depth=n),
    "multiple of TaperConfig": lambda n: TaperConfig("cosine", multiple=n),
    "depth of a taper": lambda n: taper_widths(n, 64),
    "width of a taper": lambda n: taper_widths(4, n),
    "multiple of a taper": lambda n: taper_widths(4, 64, multiple=n),
    "chunk in context": lambda n: InContext(chunks=(4, n)),
    "context of flops": lambda n: flops(CONFIG, context=n),
    "batch of memory": lambda n: memory(CONFIG, batch_size=n),
    "context of match_flops": lambda n: match_flops(CONFIG, 1e6, context=n),
    "context of memory": lambda n: memory(CONFIG, batch_size=1, context=n),
    "bytes of memory": lambda n: memory(CONFIG, batch_size=1, activation_bytes=n),
    "chunk of the loss": lambda n: cross_entropy(jnp.ones((4, 4)), ReadOut(jnp.ones((8, 4))), jnp.arange(4), chunk=n),
    "context of generate": lambda n: generate(None, jnp.arange(2), tokens=1, context=n, key=KEY),
    "replicates": lambda n: make_program(None, OptimizerConfig(), replicates=n),
}
OTHERS = {
    "persistent=-1": lambda: TitansConfig(persistent=-1),
    "persistent=0.5": lambda: TitansConfig(persistent=0.5),
    "step_size=nan": lambda: TitansConfig(step_size=math.nan),
    "step_size=inf": lambda: TitansMemory(8, step_size=math.inf, key=KEY),
    "step_size='1'": lambda: TitansConfig(step_size="1"),
    "rotary_fraction=2": lambda: AttentionConfig(rotary_fraction=2),
    "rotary_fraction=nan": lambda: Attention(8, rotary_fraction=math.nan, key=KEY),
    "rotary_base=0": lambda: AttentionConfig(rotary_base=0),
    "rotary_base=-10.0": lambda: AttentionConfig(rotary_base=-10.0),
    "eps=-1e-06": lambda: RMSNorm(4, eps=-1e-6),
    "std=nan": lambda: Head(4, 4, std=math.nan, key=KEY),
    "qk_norm='layer'": lambda: Attention(8, qk_norm="layer", key=KEY),
    "bias=True": lambda: Attention(8, bias=True, key=KEY),
    "gate='head'": lambda: GatedAttention(8, gate="head", key=KEY),
    "activation='silu'": lambda: MLP(8, activation="silu", key=KEY),
    "form='tree'": lambda: ContinuumConfig(form="tree"),
    "norm='batch'": lambda: make_norm("batch", 4),
    "heads=2": lambda: Attention(8, heads=2, key=KEY),
    "dropout=0.1": lambda: TitansMemory(8, dropout=0.1, key=KEY),
    "width=8": lambda: MLP(8, width=8, key=KEY),
    "config=MLPConfig(": lambda: Attention(8, MLPConfig(), key=KEY),
    "config=TitansMACConfig(": lambda: TitansMAG(8, TitansMACConfig(), key=KEY),
    "periods=()": lambda: ContinuumConfig(periods=()),
    "periods=4": lambda: ContinuumConfig(periods=4),
    "2 widths and 1 periods": lambda: ContinuumMemory(8, (8, 8), periods=(1,), key=KEY),
    "rates[1]=nan": lambda: InContext(chunks=(4, 8), rates=(0.1, math.nan)),
    "2 chunks and 1 rates": lambda: InContext(chunks=(4, 8), rates=(0.1,)),
    "distinct_share=0": lambda: flops(CONFIG, distinct_share=0),
    "distinct_share=1.5": lambda: flops(CONFIG, distinct_share=1.5),
    "distinct_share=-1": lambda: match_flops(CONFIG, 1e6, distinct_share=-1),
    "0 tokens": lambda: InContext().features(None, jnp.zeros(0, jnp.int32)),
    "order is no permutation": lambda: build(ORDERED, order=np.zeros(8, np.int32), key=KEY),
    "order of shape (7,)": lambda: build(ORDERED, order=np.arange(7, dtype=np.int32), key=KEY),
    "head scale=0": lambda: HeadConfig(scale=0),
    "lr_multipliers='embedding'": lambda: ModelConfig(lr_multipliers="embedding"),
    "lr_multipliers='head=-1'": lambda: ModelConfig(lr_multipliers="head=-1"),
    "lr_multipliers='head.*x=1'": lambda: ModelConfig(lr_multipliers="head.*x=1"),
    "codebook_std=-1": lambda: LeviathanConfig(codebook_std=-1),
    "padding_ids=-1": lambda: ModelConfig(padding_ids=-1),
    "soft_cap=nan": lambda: cross_entropy(
        jnp.ones((4, 4)), ReadOut(jnp.ones((8, 4))), jnp.arange(4), soft_cap=math.nan
    ),
    "the prompt is empty": lambda: generate(None, [], tokens=1, context=4, key=KEY),  # a list is read
    "tokens=-1": lambda: generate(None, jnp.arange(2), tokens=-1, context=4, key=KEY),
    "temperature=nan": lambda: generate(None, jnp.arange(2), tokens=1, context=4, temperature=math.nan, key=KEY),
    "the prompt is float32": lambda: generate(None, jnp.ones(3), tokens=1, context=4, key=KEY),
    "the prompt is int32 of shape (1, 3)": lambda: generate(
        None, jnp.ones((1, 3), jnp.int32), tokens=1, context=4, key=KEY
    ),
    "compute_dtype='float16'": lambda: make_program(None, OptimizerConfig(), compute_dtype="float16"),
    # Even heads: every d_model that is named fits.
    "d_model=12": lambda: TitansMAG(12, key=KEY),
    "d_model=6": lambda: TitansMAC(6, key=KEY),
    "d_model=5": lambda: TitansMAGConfig(memory=TitansConfig(n_heads=5)).check(5),
    "d_model=9": lambda: ModelConfig(d_model=9, mixer=TitansMACConfig(memory=TitansConfig(n_heads=3))),
}
TAKEN = {  # what is meant is clear: it is taken, as Python's own numbers
    "numpy sizes": lambda: Attention(np.int64(8), n_heads=np.int32(2), key=KEY).config == AttentionConfig(n_heads=2),
    "a config": lambda: TitansMemory(8, TitansConfig(n_heads=2), key=KEY).config.n_heads == 2,
    "a config and a keyword": lambda: GatedAttention(8, key=KEY, window=3).config.window == 3,
    "keywords of MAG": lambda: TitansMAG(8, window=3, key=KEY).config.window == 3,
    "an MLP's config": lambda: MLP(8, MLPConfig(activation="relu"), key=KEY).d_ff == 32,
    "a list of periods": lambda: hash(ContinuumConfig(periods=[1, 4])) == hash(ContinuumConfig()),
    "numpy in JSON": lambda: json.dumps(ContinuumConfig(periods=np.array([1, 4])).periods) == "[1, 4]",
    "lists in context": lambda: InContext(chunks=[8, 32], rates=[1e-2, 1e-3]) == InContext(),
    "whole floats of a taper's shape": lambda: taper_widths(np.int64(3), np.int32(32)) == taper_widths(3, 32),
}


def said(case):
    """What a refusal says; None where nothing was refused; the kind of anything else that was raised."""
    try:
        case()
    except ValueError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__} instead: {error}"
    return None


if __name__ == "__main__":
    sizes = {
        f"{place}: {value}": said(lambda m=m, n=n: m(n)) for place, m in PLACES.items() for value, n in SIZES.items()
    }
    others = {named: said(case) for named, case in OTHERS.items()}
    print(json.dumps([sizes, others, {name: bool(case()) for name, case in TAKEN.items()}]))
