"""Binary, spelled, composed and hybrid embeddings: against what they stand for, written out, and their claims."""

import dataclasses
import functools
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiktoken
from filled import filled
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import GENERATOR, VOCAB, WIDTH, tiny_config, tiny_stream

from eqx_slm import (
    BinaryConfig,
    ComposedConfig,
    HeadConfig,
    HybridConfig,
    ModelConfig,
    OptimizerConfig,
    SpelledConfig,
    UserError,
    build,
    count_parameters,
    embed_batch,
    flops,
    frequency_order,
    make_program,
    parameter_ledger,
    side_for,
)
from eqx_slm.configs import set_field
from eqx_slm.data import Corpus, TokenStream, make_tokenizer
from eqx_slm.model import side_like
from eqx_slm.nn.spelled import frequencies
from eqx_slm.nn.spelling import padded_spelling
from eqx_slm.study.presets import preset
from eqx_slm.train import load_model, save_model

CORPUS = Corpus("x", ("the cat sat on the mat, the naïve 日本 cat " * 40,), ("v",), (), split_rule="", hash="codes")


@functools.cache
def tokenizer(spec):
    return make_tokenizer(spec, CORPUS)


def make(config, vocab_size=VOCAB, width=WIDTH, **side):
    return filled(lambda key: config.build(vocab_size, width, key=key, **side))


def rows(e):
    return np.asarray(eqx.filter_jit(lambda e: e(jnp.arange(e.vocab_size)))(e))


# ---------------------------------------------------------------------------------------------------------------------
# Binary


@given(st.integers(1, 300), st.integers(9, 20))
def test_bits_are_those_of_the_id_and_tell_all_apart(vocab_size, width):
    free = BinaryConfig(map="none", std=0.5).build(vocab_size, width, key=jax.random.key(0))
    table = np.asarray(free.materialize())
    bits = max(1, len(f"{vocab_size - 1:b}"))
    for i in range(vocab_size):
        signs = [1 if bit == "1" else -1 for bit in f"{i:0{bits}b}"[::-1]]
        assert table[i].tolist() == [0.5 * signs[place % bits] for place in range(width)]
    assert len(np.unique(table, axis=0)) == vocab_size


def test_without_a_map_there_is_no_parameter():
    config = BinaryConfig(map="none")
    e = config.build(VOCAB, WIDTH, key=jax.random.key(0))
    assert jax.tree.leaves(eqx.filter(e, eqx.is_array)) == []
    assert count_parameters(e) == config.parameters(VOCAB, WIDTH) == config.buffer_bytes(VOCAB) == 0
    model = tiny_config(embedding=config, head=HeadConfig("tied"))
    assert parameter_ledger(model)["embedding"] == parameter_ledger(model)["head"] == 0
    assert parameter_ledger(model).embedding_tax == 0 and flops(model).embedding == 0
    assert BinaryConfig().parameters(VOCAB, WIDTH) == 6 * WIDTH


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_without_input_parameters_trains_in_the_type_that_it_computes_in(dtype):
    """Types are strict here: an input in another one than the blocks' would be refused."""
    model = build(tiny_config(embedding=BinaryConfig(map="none", std=0.3)), key=jax.random.key(0))
    program = make_program(model, OptimizerConfig(), compute_dtype=dtype)
    state, metrics = program.step(program.start(model), tiny_stream().batch(0, 0), jnp.float32(1e-2))
    assert np.isfinite(metrics.loss)
    assert np.array_equal(rows(program.model(state.params).embedding), rows(model.embedding))


def test_the_map_is_linear_and_a_tied_read_out_keeps_its_factors():
    e = make(BinaryConfig())
    signs = np.array([[1 if i >> bit & 1 else -1 for bit in range(6)] for i in range(VOCAB)])
    expected = signs @ np.asarray(e.weight, np.float64) / np.sqrt(6)
    np.testing.assert_allclose(rows(e), expected, rtol=1e-5, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    read_out = e.read_out()
    assert read_out.weight.shape == (VOCAB, 6) and read_out.projection.shape == (WIDTH, 6)
    np.testing.assert_allclose(read_out.logits(jnp.asarray(x)), x @ expected.T, rtol=1e-4, atol=1e-4)
    tied = tiny_config(embedding=BinaryConfig(), head=HeadConfig("tied"))
    assert flops(tied).head == 3 * 2 * (VOCAB + WIDTH) * 6


# ---------------------------------------------------------------------------------------------------------------------
# Spelled and composed


SPELLED = [[104, 105], [105, 104], [255], [], [104, 105, 33], [0]]


@pytest.mark.parametrize("code", ["kronecker", "fourier"])
def test_a_spelled_token_is_the_sum_of_its_bytes_codes(code):
    config = SpelledConfig(code=code, size=6, longest=3)
    spelling = jnp.asarray(padded_spelling(SPELLED, 7, 3))
    e = eqx.tree_at(lambda e: e.spelling, make(config, 7), spelling)
    weight = np.asarray(e.weight, np.float64)
    expected = np.zeros((7, WIDTH))
    for i, token in enumerate(SPELLED):
        for place, byte in enumerate(token):
            if code == "kronecker":
                vector = weight[256 * place + byte]
            else:
                turns = [(int(f) * byte + int(g) * place) % 2**32 / 2**32 for f, g in zip(*frequencies(3), strict=True)]
                waves = [wave(2 * np.pi * turn) for wave in (np.cos, np.sin) for turn in turns]
                vector = np.array(waves) / np.sqrt(3) @ weight
            expected[i] += vector / np.sqrt(len(token))
    np.testing.assert_allclose(rows(e), expected, rtol=1e-4, atol=1e-5)
    assert (expected[3] == 0).all() and (expected[6] == 0).all()  # without bytes


def test_waves_tell_bytes_and_places_apart():
    """The codes of all pairs of a byte and one of 16 places have length one, and no two are close."""
    by_byte, by_place = (f.astype(np.uint64) for f in frequencies(64))
    turns = (
        np.arange(256, dtype=np.uint64)[:, None, None] * by_byte + np.arange(16, dtype=np.uint64)[:, None] * by_place
    )
    angles = (turns % 2**32).reshape(-1, 64) * (2 * np.pi / 2**32)
    codes = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) / 8
    products = codes @ codes.T - np.eye(len(codes), dtype=np.float32)
    assert np.abs(products).max() < 0.65 and products.std() < 0.1


def test_a_composed_token_is_the_mean_of_its_pieces():
    e = make(ComposedConfig(pieces=5, longest=3), 4)
    e = eqx.tree_at(lambda e: e.spelling, e, jnp.asarray(padded_spelling([[3, 4, 4], [0], []], 4, 3)))
    table = np.asarray(e.rows, np.float64)
    expected = [(table[3] + 2 * table[4]) / 3, table[0], 0 * table[0], 0 * table[0]]
    np.testing.assert_allclose(rows(e), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pieces", [256, 257, 270])
def test_pieces_are_what_the_first_merges_make_of_a_token(pieces):
    """tiktoken, given the bytes and those merges alone, encodes every token's bytes the same."""
    large = tokenizer("bpe:280")
    tokens = large.token_bytes()
    ranks = {bytes([byte]): byte for byte in range(256)} | {tokens[i]: i for i in range(256, pieces)}
    small = tiktoken.Encoding("small", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    spelled = large.spell(pieces)
    assert len(spelled) == large.vocab_size
    for token, found in zip(tokens, spelled, strict=True):
        assert found == small._encode_single_piece(token)  # pyright: ignore[reportPrivateUsage]
        assert b"".join(small.decode_single_token_bytes(piece) for piece in found) == token


def test_every_tokenizer_says_its_bytes():
    for spec in ("bpe:280", "byte", "char"):
        known, text = tokenizer(spec), "the naïve 日本 cat"
        assert b"".join(known.token_bytes()[i] for i in known.encode(text)).decode() == text
    words = tokenizer("word")
    assert words.token_bytes()[words.encode("naïve")[0]] == "naïve".encode()
    for spec, told in (("word", "has no merges"), ("bpe:280", "take 256 to")):
        with refuses(f"pieces=9999: .*{told}"):
            tokenizer(spec).spell(9999)


def test_tokens_that_share_text_come_from_a_streams_tokenizer():
    known = tokenizer("bpe:280")
    ids = known.encode(CORPUS.train[0])
    sizes = {"sequence_length": 8, "batch_size": 1, "eval_tokens": 8}
    stream = TokenStream.from_tokens(ids, ids, vocab_size=known.vocab_size, tokenizer=known, **sizes)
    config = ModelConfig(vocab_size=310, d_model=WIDTH, embedding=SpelledConfig(longest=4))
    side = side_for(config, stream)["spelling"]
    for i, token in enumerate(known.token_bytes()):
        assert bytes(side[i][side[i] >= 0].tolist()) == token[:4]
    assert (side[280:] == -1).all()  # padding is spelled by nothing
    with pytest.raises(UserError, match="needs a tokenizer"):
        side_for(tiny_config(embedding=SpelledConfig()), tiny_stream())
    with pytest.raises(ValueError, match=r'embedding.spelling="text".*spelling='):
        build(config, key=jax.random.key(0))


@pytest.mark.parametrize("vocab_size", [1, 2, 25, 26, 600])
def test_without_a_text_the_ids_digits_are_spelled(vocab_size):
    e = ComposedConfig(pieces=5, longest=6).build(vocab_size, WIDTH, key=jax.random.key(0))
    spelled = np.asarray(e.spelling)
    assert len(np.unique(spelled, axis=0)) == vocab_size
    for i in (0, vocab_size // 2, vocab_size - 1):
        digits = spelled[i][spelled[i] >= 0].tolist()
        assert functools.reduce(lambda n, digit: 5 * n + digit, digits, 0) == i


# ---------------------------------------------------------------------------------------------------------------------
# Hybrid


def hybrid(rows, **changes):
    return HybridConfig(rows=rows, generator=GENERATOR, **changes)


def test_no_rows_are_the_generator_and_all_rows_a_table():
    key = jax.random.key(0)
    none, generator = hybrid(0).build(VOCAB, WIDTH, key=key), GENERATOR.build(VOCAB, WIDTH, key=key)
    np.testing.assert_array_equal(rows(none), rows(generator))
    assert hybrid(0).parameters(VOCAB, WIDTH) == GENERATOR.parameters(VOCAB, WIDTH)
    order = jnp.arange(VOCAB, dtype=jnp.int32)[::-1]
    every = hybrid(VOCAB).build(VOCAB, WIDTH, ranking=order, key=key)
    np.testing.assert_array_equal(rows(every), np.asarray(every.rows)[::-1])
    assert (
        every.generator is None and count_parameters(every) == hybrid(VOCAB).parameters(VOCAB, WIDTH) == VOCAB * WIDTH
    )
    assert hybrid(VOCAB).flops(VOCAB, WIDTH) == 0


class Told(eqx.Module):
    """A generator of ones that tells for how many it was asked."""

    counts: list = eqx.field(static=True)

    def first_rows(self, ids, count):
        jax.debug.callback(lambda n: self.counts.append(int(n)), count)
        return jnp.ones((ids.shape[0], WIDTH))


def test_rows_are_the_most_frequent_tokens_and_the_generator_makes_the_tail_alone():
    stream = tiny_stream()
    config = tiny_config(embedding=hybrid(10))
    side = side_for(config, stream)
    np.testing.assert_array_equal(side["ranking"], frequency_order(stream.token_counts()))
    e = build(config, key=jax.random.key(0), **side).embedding
    often = np.argsort(-stream.token_counts(), kind="stable")[:10]
    np.testing.assert_array_equal(rows(e)[often], e.rows)
    counts = []
    told = eqx.tree_at(lambda e: e.generator, e, Told(counts), is_leaf=lambda x: x is e.generator)
    tokens = jnp.asarray([*often[:3], *often[:3], 63, 62, 63, 62])
    made = eqx.filter_jit(lambda e: embed_batch(e, tokens))(told)
    jax.effects_barrier()
    tail = {63, 62} - set(often.tolist())
    assert counts == [len(tail)] and tail
    np.testing.assert_array_equal(np.asarray(made)[:3], np.asarray(e.rows)[:3])


@pytest.mark.parametrize("wrong", [65, 10**6])
def test_more_rows_than_tokens_are_refused_in_one_line(wrong):
    config = hybrid(wrong)
    for case in (lambda: tiny_config(embedding=config), lambda: config.build(VOCAB, WIDTH, key=jax.random.key(0))):
        with refuses(f"rows={wrong}: there are only 64 tokens; take at most 64"):
            case()
    quick = dataclasses.replace(preset("quick"), arms=("dense", "hybrid"), settings=("hybrid.embedding.rows=2049",))
    with pytest.raises(UserError, match="rows=2049: there are only 2048 tokens"):
        quick.resolve(2048)


# ---------------------------------------------------------------------------------------------------------------------
# All of them


CODES = {
    "binary": BinaryConfig(),
    "free": BinaryConfig(map="none"),
    "spelled": SpelledConfig(code="fourier", size=4, longest=5),
    "composed": ComposedConfig(pieces=20, longest=5),
    "hybrid": hybrid(9),
    "hybrid, ordered": HybridConfig(rows=9, generator=dataclasses.replace(GENERATOR, order="frequency")),
}


@pytest.mark.parametrize("config", CODES.values(), ids=CODES)
def test_a_model_comes_back_from_its_file_with_what_it_knew_of_the_stream(config, tmp_path):
    config = tiny_config(embedding=config)
    model = filled(lambda key: build(config, key=key, **side_like(config)))
    save_model(tmp_path / "model", model)
    like = eqx.filter_eval_shape(lambda key: build(config, key=key, **side_like(config)), jax.random.key(0))
    assert eqx.tree_equal(load_model(tmp_path / "model", like), model)
    assert parameter_ledger(config).buffer_bytes == parameter_ledger(model).buffer_bytes


KEY = jax.random.key(0)
PIECES = tiny_config(embedding=ComposedConfig(pieces=8))
WRONG = {
    "a width without room": (lambda: tiny_config(vocab_size=2**17, embedding=BinaryConfig(map="none")), "17 bits"),
    "odd waves": (lambda: SpelledConfig(code="fourier", size=7), "size=7: waves come in pairs"),
    "one piece": (lambda: ComposedConfig(pieces=1), "pieces=1"),
    "negative rows": (lambda: HybridConfig(rows=-1), "rows=-1"),
    "few digits": (lambda: ComposedConfig(pieces=2, longest=5).build(64, 4, key=KEY), "longest=5.*6 digits"),
    "a tied generator": (lambda: tiny_config(embedding=hybrid(3), head=HeadConfig("tied")), 'say "generated"'),
    "another shape": (lambda: build(PIECES, spelling=np.zeros((64, 3), np.int32), key=KEY), r"\(64, 3\).*\(64, 16\)"),
    "out of range": (lambda: build(PIECES, spelling=np.full((64, 16), 8, np.int32), key=KEY), "from 8 to 8: -1 to 7"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line(case):
    wrong, told = WRONG[case]
    with refuses(told, ValueError):
        wrong()


def test_every_study_of_the_script_resolves():
    """Each arm at the quick shape's sizes, against the one that its study names."""
    script = Path(__file__).resolve().parents[1] / "experiments" / "embedding.py"
    studies = runpy.run_path(str(script))["STUDIES"]
    assert script.read_text("utf-8").count("\n") <= 70 and len(studies) == 14
    for name, study in studies.items():
        arms, levels = study.resolve(2048, 128)
        assert study.name == f"embedding-{name}" and len(set(arms.values())) == len(arms) > 1
        pairs = study.analyses[0].pairs(levels)
        assert [reference for _, reference in pairs] == [next(iter(arms))] * (len(arms) - 1)


def test_fields_are_set_as_typed():
    base = ModelConfig()
    for kind in ("binary", "spelled", "composed", "hybrid"):
        assert set_field(base, "embedding.kind", kind).embedding.kind == kind
    deeper = set_field(set_field(base, "embedding.kind", "hybrid"), "embedding.generator.rank", "3")
    assert deeper.embedding.generator.rank == 3
    assert set_field(base, "bigrams.rows", "512").bigrams.rows == 512
