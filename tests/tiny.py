"""Models and streams so small that a training run takes a moment; shared by several test files."""

import dataclasses
import functools

import jax
import numpy as np

from eqx_slm import AttentionConfig, LeviathanConfig, MLPConfig, ModelConfig, build
from eqx_slm.data import TokenStream

VOCAB, WIDTH, LENGTH, ROWS = 64, 16, 16, 4
GENERATOR = LeviathanConfig(seed_size=4, n_heads=2, knots=4, rank=2)


def tiny_config(**changes):
    """A one-layer model of 16 channels over 64 tokens; the keywords replace fields."""
    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        depth=1,
        context=LENGTH,
        mixer=AttentionConfig(n_heads=2),
        channel=MLPConfig(d_ff=32),
    )
    return dataclasses.replace(config, **changes)


@functools.cache
def tiny_model(config=None, seed=0):
    """The model of a config (`tiny_config()`). Not jitted: leaves of a known shape are then drawn by known programs."""
    return build(tiny_config() if config is None else config, key=jax.random.key(seed))


def tiny_tokens(count, *, seed=0, vocab_size=VOCAB):
    """Tokens that mostly follow a fixed rule, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros(count, np.int32)
    surprises = rng.integers(0, vocab_size, count)
    surprised = rng.random(count) < 0.2
    for i in range(1, count):
        tokens[i] = surprises[i] if surprised[i] else (3 * tokens[i - 1] + 1) % vocab_size
    return tokens


def tiny_stream(
    *,
    seed=0,
    lossless=True,
    vocab_size=VOCAB,
    sequence_length=LENGTH,
    batch_size=ROWS,
    eval_tokens=128,
    train_tokens=2000,
):
    """2,000 training and 600 validation tokens; token i stands for 1 + i % 3 bytes, or for none anyone knows."""
    return TokenStream.from_tokens(
        tiny_tokens(train_tokens, seed=seed, vocab_size=vocab_size),
        tiny_tokens(600, seed=seed + 1000, vocab_size=vocab_size),
        vocab_size=vocab_size,
        sequence_length=sequence_length,
        batch_size=batch_size,
        eval_tokens=eval_tokens,
        byte_lengths=(1 + np.arange(vocab_size) % 3).astype(np.int32) if lossless else None,
    )
