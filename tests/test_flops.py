"""FLOPs: the conventions by hand, XLA's count of loop-free programs that never run, and their matmuls to the digit."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from filled import filled, is_parameter
from hypothesis import given

from eqx_slm import (
    AttentionConfig,
    BinaryConfig,
    ComposedConfig,
    CompositionalConfig,
    ContinuumConfig,
    GatedAttentionConfig,
    HeadConfig,
    InContext,
    LeviathanConfig,
    LowRankConfig,
    MLPConfig,
    ModelConfig,
    SpelledConfig,
    TaperConfig,
    TitansConfig,
    TitansMACConfig,
    TitansMAGConfig,
    build,
    flops,
    match_flops,
    memory,
)
from eqx_slm.account.facts import facts
from eqx_slm.account.flops import CONVENTIONS, counted_flops
from eqx_slm.testing import model_configs

# Wide enough that the elementwise work, which XLA counts and the conventions do not, is below the tolerance; few layers
# and a small vocabulary, so that one matmul too many is above it.
WIDE = ModelConfig(
    vocab_size=1024,
    d_model=1024,
    depth=1,
    context=256,
    mixer=AttentionConfig(n_heads=8),
    channel=MLPConfig(d_ff=3072),
)
TOLERANCE = 0.02


def counted(function, *arguments):
    """XLA's FLOPs of the program before compilation."""
    cost = jax.jit(function).lower(*arguments).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def shapes(make):
    """(parameters as shapes, static rest)."""
    return eqx.partition(eqx.filter_eval_shape(make, jax.random.key(0)), is_parameter)


def forward(config, change=lambda model, x: x):
    """XLA's forward FLOPs a token; `change` may add to the features of the last layer."""
    params, static = shapes(lambda key: build(config, key=key))

    def logits(params, tokens):
        model = eqx.combine(params, static)
        return model.logits(change(model, model.features(model.embedding(tokens))))

    return counted(logits, params, jax.ShapeDtypeStruct((config.context,), jnp.int32)) / config.context


def expected_forward(config):
    """Ours, with what a mask throws away and XLA computes: half of the square, of a band what it sees of two blocks."""
    heads, _, d_head = config.mixer.head_sizes(config.d_model)
    t, window = config.context, config.mixer.window or config.context
    computed = 4 * heads * d_head * (2 * window if 2 * window < t else t)
    counted = 2 * heads * d_head * (2 * window * t - window**2) / t
    return flops(config).total / 3 + config.depth * (computed - counted)


CASES = {
    "SwiGLU, untied": {},
    "grouped heads, GELU": dict(mixer=AttentionConfig(n_heads=8, n_kv_heads=2), channel=MLPConfig(activation="gelu")),
    "own head width, biases": dict(mixer=AttentionConfig(n_heads=4, d_head=128, bias="all", qk_norm="rms")),
    "tied": dict(head=HeadConfig("tied")),
    "tied low-rank": dict(embedding=LowRankConfig(rank=512), head=HeadConfig("tied")),
    "low-rank head": dict(head=HeadConfig("low-rank", rank=512)),
    "compositional": dict(embedding=CompositionalConfig(), positions="learned"),
    "window": dict(mixer=AttentionConfig(n_heads=8, window=16), context=64),
    "gated": dict(mixer=GatedAttentionConfig(n_heads=8, qk_norm="zero-centred")),
    "gated headwise": dict(mixer=GatedAttentionConfig(n_heads=8, gate="headwise")),
    "continuum": dict(channel=ContinuumConfig(periods=(1, 4, 16))),
    "independent continuum": dict(channel=ContinuumConfig(form="independent")),
    "tapered": dict(depth=3, taper=TaperConfig("linear", 1.5, 0.5, 512)),
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_forward_equals_xlas_count(changes):
    config = dataclasses.replace(WIDE, **changes)
    assert forward(config) == pytest.approx(expected_forward(config), rel=TOLERANCE)


# A context of one chunk, which is free of loops. XLA counts what a mask throws away, but not the last write to a memory
# that nothing reads; MAC's one segment is a loop of length one, in which it stays.
ONE_CHUNK = TitansConfig(n_heads=4, chunk=WIDE.context)
MEMORIES = {
    "titans": (ONE_CHUNK, 0, True),
    "titans, linear, exclusive": (dataclasses.replace(ONE_CHUNK, memory_depth=1, read="exclusive"), 0, True),
    "mag": (TitansMAGConfig(memory=ONE_CHUNK, window=WIDE.context), 1, True),
    "mac": (TitansMACConfig(memory=ONE_CHUNK), 2, False),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_forward_of_memories_equals_xlas_count_of_one_chunk(name):
    mixer, squares, last_write = MEMORIES[name]
    config = dataclasses.replace(WIDE, mixer=mixer, channel=ContinuumConfig(d_ff=1024))
    masked = squares * 2 * config.context * config.d_model
    unused = 4 * ONE_CHUNK.n_heads * sum(a * b for a, b in getattr(mixer, "memory", mixer).layers(config.d_model))
    expected = flops(config).total / 3 + masked - last_write * unused
    assert forward(config) == pytest.approx(expected, rel=TOLERANCE)

    def projection_more(model, x):
        return x @ getattr(model.blocks[0].mixer, "memory", model.blocks[0].mixer).w_o

    assert forward(config, projection_more) > (1 + TOLERANCE) * expected
    if name != "mag":  # whose window is cut off at the sequence's start: more chunks are the same again
        assert flops(config, context=8 * config.context) == flops(config)


def test_one_extra_matmul_would_be_seen():
    def change(model, x):
        return x @ model.blocks[0].mixer.w_o

    assert forward(WIDE, change) > (1 + 2 * TOLERANCE) * expected_forward(WIDE)


def test_the_masked_half_of_attention_is_in_xlas_count_and_not_in_ours():
    """At a context where the square matters: counting all of it, or a quarter, would fail."""
    config = dataclasses.replace(WIDE, context=2048)
    square = 4 * config.context * config.d_model  # scores and values, no mask
    assert forward(config) - flops(config).total / 3 == pytest.approx(square / 2, rel=0.1)
    assert square / 2 > 5 * TOLERANCE * expected_forward(config)


def matmuls(function, *arguments):
    """FLOPs of the matmuls that a function asks for, exactly: 2 a multiply-add, elementwise work left out."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
                total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
            for value in equation.params.values():  # calls: jit, custom derivatives
                inner = getattr(value, "jaxpr", value)
                total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_matmuls_forward_and_backward_to_the_digit(changes):
    """Forward is the convention and the masked half; a step is three times that."""
    config = dataclasses.replace(WIDE, **changes)
    params, static = shapes(lambda key: build(config, key=key))
    tokens = jax.ShapeDtypeStruct((config.context,), jnp.int32)

    def loss(params, tokens):
        return jax.nn.logsumexp(eqx.combine(params, static)(tokens))

    ours = config.context * expected_forward(config)
    assert matmuls(loss, params, tokens) == ours
    assert matmuls(jax.grad(loss), params, tokens) == 3 * ours


@pytest.mark.parametrize("skip", ["none", "linear"])
def test_matmuls_of_a_generator_to_the_digit(skip):
    """The convention has three active knots, whatever the kernel does: this one multiplies all of them."""
    sizes = LeviathanConfig(seed_size=9, n_heads=4, knots=7, rank=5, skip=skip)
    params, static = shapes(lambda key: sizes.build(1000, 11, key=key))
    ids = jax.ShapeDtypeStruct((6,), jnp.int32)

    def total(params, ids):
        return eqx.combine(params, static)(ids).sum()

    idle = 2 * sizes.n_heads * sizes.seed_size * (sizes.knots - 3) * sizes.rank
    ours = 6 * (sizes.flops(1000, 11) + idle)
    assert matmuls(total, params, ids) == ours
    assert matmuls(jax.grad(total), params, ids) == 3 * ours


CODES = [
    LowRankConfig(rank=5),
    BinaryConfig(),
    BinaryConfig(map="none"),
    SpelledConfig(longest=3, spelling="ids"),
    SpelledConfig(code="fourier", size=6, longest=3, spelling="ids"),
    ComposedConfig(pieces=50, longest=3, spelling="ids"),
]


@pytest.mark.parametrize("config", CODES, ids=lambda config: f"{config.kind} {getattr(config, 'code', '')}")
def test_matmuls_of_a_code_to_the_digit(config):
    e = filled(lambda key: config.build(1000, 11, key=key))
    ids = jax.ShapeDtypeStruct((7,), jnp.int32)
    assert matmuls(e, ids) == 7 * config.flops(1000, 11)
    if config.tieable:
        model = dataclasses.replace(WIDE, vocab_size=1000, d_model=16, embedding=config, head=HeadConfig("tied"))
        tied = filled(lambda key: config.build(1000, 16, key=key))
        x = jax.ShapeDtypeStruct((7, 16), jnp.float32)
        assert matmuls(lambda x: tied.read_out().logits(x), x) == 7 * flops(model).head / 3


def test_learning_in_context_costs_between_one_forward_pass_and_a_training_step():
    """To the digit: a chunk is differentiated by its levels alone, the first of which needs no gradient of its input.

    The last token is in no complete chunk: it is read, and no loss is taken.
    """
    chunk, config = 16, dataclasses.replace(WIDE, vocab_size=64, d_model=64, context=17, channel=ContinuumConfig())
    params, static = shapes(lambda key: build(config, key=key))
    tokens = jax.ShapeDtypeStruct((config.context,), jnp.int32)

    def total(change):
        def features(params, tokens):
            return change(eqx.combine(params, static), tokens)

        return matmuls(features, params, tokens)

    learning = InContext(chunks=(chunk, chunk), rates=(0.1, 0.1))
    read = total(lambda model, tokens: learning.features(model, tokens))
    static_pass = total(lambda model, tokens: model.prefill(tokens, model.start(config.context)).y)
    mixer, (channel,) = config.mixer.parameters(64), config.channels()
    head, levels = 64 * 64, channel.parameters(64)
    first = 2 * 64 * channel.level_widths(64)[0]  # nothing below the first level learns
    attention = 4 * 64 * (chunk * (config.context + chunk) + config.context + 1)  # each with the cache, masked rows too
    by_hand = 2 * chunk * (3 * (levels - 64) - first + 2 * head + mixer) + 2 * (levels - 64 + mixer) + attention
    assert read == by_hand
    assert static_pass < read < flops(config).total * config.context


def test_conventions_by_hand():
    config = ModelConfig(
        vocab_size=1000,
        d_model=24,
        depth=3,
        context=10,
        embedding=LeviathanConfig(seed_size=5, n_heads=2, knots=7, rank=3, skip="linear"),
        mixer=AttentionConfig(n_heads=6, n_kv_heads=2),
        channel=MLPConfig(d_ff=32, activation="swiglu"),
        taper=TaperConfig("linear", 1.5, 0.5, 16),
    )
    # Heads of 4: queries and output 24 x 24, keys and values 24 x 8; scores and values over 10 tokens, at half.
    attention = 2 * (24 * 24 + 24 * 8 + 24 * 8 + 24 * 24) + (2 * 10 * 24 + 2 * 10 * 24) / 2
    mlps = [2 * 3 * 24 * width for width in (48, 32, 16)]
    generator = 2 * (2 * 5 * 5 + 2 * 5 * 3 * 3 + 2 * 3 * 24) + 2 * 5 * 24
    result = flops(config, distinct_share=0.25)
    assert result.blocks == tuple(3 * (attention + mlp) for mlp in mlps)
    assert result.head == 3 * 2 * 24 * 1000
    assert result.embedding == 3 * generator
    assert result.embedding_distinct == 3 * generator / 4
    assert result.total == 3 * (3 * attention + sum(mlps) + generator + 2 * 24 * 1000)
    assert result.total_distinct == result.total - 0.75 * 3 * generator
    assert flops(config).total_distinct is None
    longer = flops(config, context=20)
    assert longer.total - result.total == 3 * 3 * 2 * 10 * 24
    for words in (
        "backward = 2 x forward",
        "causal attention counted at half",
        "table lookup not",
        "three active knots",
    ):
        assert words in CONVENTIONS


@given(model_configs(max_depth=8))
def test_what_flops_depend_on(config):
    result = flops(config, distinct_share=0.5)
    assert len(result.blocks) == config.depth and all(block > 0 for block in result.blocks)
    assert result.total == pytest.approx(result.embedding + sum(result.blocks) + result.head)
    of_bigrams = 3 * config.bigrams.flops(config.d_model)  # every occurrence has its own
    assert result.total_distinct == pytest.approx(result.total - (result.embedding - of_bigrams) / 2)
    code, rows = (getattr(config.embedding, name, None) for name in ("code", "rows"))
    looked_up = config.embedding.kind in ("table", "compositional", "composed") or rows == config.vocab_size
    looked_up = looked_up or code == "kronecker" or getattr(config.embedding, "map", "") == "none"
    assert (result.embedding == of_bigrams) == looked_up
    # A layer more of the mean width costs a mean layer more; the rest does not know the depth.
    flat = dataclasses.replace(config, taper=TaperConfig())
    deeper = dataclasses.replace(flat, depth=config.depth + 1)
    layer = flops(deeper).total - flops(flat).total
    assert layer == pytest.approx(sum(result.blocks) / config.depth, rel=1e-6)


def test_counted_flops_of_a_model_without_a_config():
    config = dataclasses.replace(WIDE, vocab_size=64, d_model=128, context=16, channel=MLPConfig(d_ff=256))
    model = filled(lambda key: build(config, key=key))
    assert counted_flops(model, context=16) == pytest.approx(3 * expected_forward(config), rel=0.1)


def test_a_generated_head_makes_its_whole_table_once_a_step():
    """Spread over the step's tokens; a step of one sequence is what is counted where nobody says."""
    untied = dataclasses.replace(WIDE, embedding=LeviathanConfig(seed_size=16, n_heads=2, rank=8))
    config = dataclasses.replace(untied, head=HeadConfig("generated"))
    rows = 3 * config.vocab_size * config.embedding.flops(config.vocab_size, config.d_model)
    for tokens in (1, 256, 8 * 256):
        counted = flops(config, batch_tokens=tokens)
        assert counted.head == pytest.approx(flops(untied, batch_tokens=tokens).head + rows / tokens, rel=1e-12)
        assert counted.blocks == flops(untied).blocks and counted.embedding == flops(untied).embedding
    assert flops(config).head == flops(config, batch_tokens=config.context).head
    known = facts(config, batch_size=8, context=256).flops_per_token
    assert known["head"] == flops(config, batch_tokens=8 * 256).head
    matched = match_flops(config, flops(untied, batch_tokens=2048).total, "d_ff", batch_tokens=2048)
    assert matched.value < 3072 and abs(matched.residual) < 1e-3
    table, batch = 4 * config.vocab_size * config.d_model, dict(batch_size=2)
    assert memory(config, **batch).activations - memory(untied, **batch).activations == table
