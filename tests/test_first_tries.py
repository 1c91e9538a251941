"""What a newcomer tries first: it works, or says in one line what to give instead.

In a process of its own, without the shape checks that these tests are run under: a user has none.
"""

import subprocess
import sys

import pytest

BEGIN = """
import dataclasses, importlib, inspect, sys, typing
import jax, jax.numpy as jnp, numpy as np
from eqx_slm import *
from eqx_slm.data import TokenStream
from eqx_slm.data.tokenizer import ByteTokenizer
key, ids = jax.random.key(0), jnp.arange(8)
config = ModelConfig(vocab_size=64, d_model=32, depth=1, context=16, mixer=AttentionConfig(n_heads=2))
model = build(config, key=key)
generator = LeviathanEmbedding(64, 32, seed_size=16, n_heads=2, rank=4, key=key)
x, batch = jnp.ones((8, 32)), jnp.ones((2, 8, 32))
mixers = [each.build(32, key=key) for each in (GatedAttentionConfig(n_heads=2), TitansConfig(n_heads=2))]
stream = TokenStream.from_tokens(ids, ids, vocab_size=256, sequence_length=2, batch_size=2, tokenizer=ByteTokenizer())
def swept():
    # Every field of every config, given what is not of its kind: what is taken all the same, or fails otherwise.
    found = []
    for module in ("nn", "nn.titans", "nn.ladder", "model", "study.config", "train.loop", "train.optimizer"):
        for cls in vars(importlib.import_module(f"eqx_slm.{module}")).values():
            if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls) and cls.__name__.endswith("Config")):
                continue
            kinds = typing.get_type_hints(cls)
            for field in dataclasses.fields(cls):
                kind, wrong = kinds[field.name], []
                if typing.Literal in (typing.get_origin(k) for k in (kind, *typing.get_args(kind))):
                    wrong = ["xyz"] if field.name != "kind" else []
                elif kind in (int, float):
                    wrong = ["a", None, float("nan"), *([1.5, True] if kind is int else [])]
                elif kind is str:
                    wrong = [3, None]
                for value in wrong:
                    try:
                        cls(**{field.name: value})
                    except UserError:
                        continue
                    except Exception as error:
                        value = f"{value!r}: {type(error).__name__}"
                    found.append(f"{cls.__name__}.{field.name}={value}")
    print("swept", found, file=sys.stderr)
    return found
def tried(code):
    try:
        print(code, "|", np.shape(eval(code)))
    except UserError as error:
        print(code, "|", "said", str(error).replace("\\n", "MORE THAN ONE LINE"))
    except Exception as error:
        print(code, "|", type(error).__name__, str(error)[:80])
"""
WORKS = {
    "model([1, 2, 3])": "(3, 64)",
    "model(np.arange(5))": "(5, 64)",
    "jax.vmap(model)(jnp.zeros((2, 8), int))": "(2, 8, 64)",
    "generator([1, 2])": "(2, 32)",
    "generator(3)": "(32,)",
    "generator(np.zeros((2, 3), int))": "(2, 3, 32)",
    "embed_batch(generator, [[1, 2], [2, 1]])": "(2, 2, 32)",
    "embed_batch(generator, jnp.zeros((2, 0), int))": "(2, 0, 32)",
    "TableEmbedding(64, 32, key=key)([1, 2])": "(2, 32)",
    "LeviathanEmbedding(64, 32, seed_size=16, n_heads=2, rank=4, order=list(range(64)), key=key)(ids)": "(8, 32)",
    "cross_entropy(x, jnp.ones((64, 32)), ids).loss": "()",
    "cross_entropy(x, np.ones((64, 32), np.float32), list(range(8))).loss": "()",
    "cross_entropy(x, jnp.ones((64, 32)), list(range(8)), weights=jnp.ones(8)).loss": "()",
    "token_losses(x, jnp.ones((64, 32)), list(range(8)))": "(8,)",
    "token_losses(batch, jnp.ones((64, 32)), jnp.zeros((2, 8), int))": "(2, 8)",
    "build(config, key=jax.random.PRNGKey(0))(ids)": "(8, 64)",
    "stream.batch(np.int64(3), np.uint8(2))": "(2, 3)",
    "swept()": "(0,)",
    "generate(model, [1, 2], tokens=3, context=16, key=key)": "(3,)",
}
SAID = {
    "ModelConfig(embedding='leviathan')": "embedding='leviathan': give a config, such as LeviathanConfig()",
    "model.features(ids)": "features of int32 of shape (8,): it takes the vectors of one sequence, (t, d)",
    "model.features(batch)": "features of float32 of shape (2, 8, 32): it takes the vectors of one sequence",
    "model.batch_features(ids)": "ids of shape (8,): a batch is (b, t); of one sequence say model(ids)",
    **{
        f"stream.batch({seed}, 0)": "it must be a whole number"
        for seed in ("1.0", "'1'", "None", "True", "np.arange(2)")
    },
    "stream.batch(0, 1.0)": "index=1.0: it must be a whole number, at least 0",
    "stream.batches([1])": "seed=[1]: it must be a whole number",
    "next(stream.batches(0, start='a'))": "start='a': it must be a whole number, at least 0",
    "stream.digest(0, 1.5)": "steps=1.5: it must be a whole number",
    "stream.encode(3)": "the text to encode is 3: give a string",
    "ModelConfig(mixer='attention')": "mixer='attention': give a config",
    "ModelConfig(head='tied')": "head='tied': give a config, such as HeadConfig()",
    "ModelConfig(taper='cosine')": "taper='cosine': give a config",
    "ModelConfig(channel=MLPConfig)": "give a config, such as MLPConfig()",
    "TaperConfig('cosin')": "schedule",
    "parameter_ledger('dense')": "the ledger of 'dense': give a ModelConfig, or a model",
    "generate(model, [1, 200], tokens=3, context=16, key=key)": "the prompt has the id 200: ids are 0 to 63",
    "generate(model, [-1], tokens=3, context=16, key=key)": "the prompt has the id -1",
    "Study('s', {'one': config}, rates=1e-2)": "rates=0.01: give a tuple, of one too: (0.01,)",
    "Study('s', {'one': config}, analyses=paired('one'))": "give a tuple, of one too",
    "Study('s', {'one': config}, report=print)": "report=<built-in function print>: give a tuple",
    "Study('s', ['dense', 'leviathan'])": "arms is a list: give a dict",
    "Study('s', {'one': 'dense'})": "arm 'one' is a str: give a ModelConfig",
    "grid('d_model', 16)": "grid 'd_model': its levels are 16; give several",
    "grid('mixer.kind', 'gated')": "its levels are 'gated'; give several",
    "pair([config, config], None)": "arms is a list",
    "pair({'one': config}, None, seed=2)": "pair() has no argument 'seed'; is 'seeds' meant?",
    "run_study('study')": "run_study of a str: give a Study",
    "model(jnp.zeros((4, 8), int))": "ids of shape (4, 8): a model takes one sequence",
    "model(jnp.ones(5))": "token ids of dtype float32",
    "model('text')": "token ids of type str",
    "generator(jnp.ones(3))": "token ids of dtype float32",
    "model.blocks[0].mixer(batch)": "x of shape (2, 8, 32): attention takes one sequence, (t, 32)",
    "model.blocks[0].mixer(jnp.ones((8, 31)))": "x of shape (8, 31)",
    "mixers[0](batch)": "takes one sequence",
    "mixers[1](batch)": "takes one sequence",
    "mixers[1]([1, 2])": "x of type list",
    "cross_entropy(x, jnp.ones((32, 64)), ids)": "read_out of shape (32, 64): give model.read_out(), or a matrix",
    "cross_entropy(x, model, ids)": "read_out of type LanguageModel",
    "cross_entropy(x, jnp.ones((64, 32)), jnp.ones(8))": "token ids of dtype float32",
    "ModelConfig(vocab_size=64.0)": "vocab_size=64.0: it must be a whole number",
    "LeviathanEmbedding(64.5, 32, key=key)": "vocab_size=64.5",
    "build({'vocab_size': 64}, key=key)": "build of a dict: give a ModelConfig",
    "build(config, key=0)": "key=0: give a key, such as jax.random.key(0)",
    "build(config, key=jax.random.split(key))": "key of shape (2,): give one key",
    "build(config, key=jax.random.split(jax.random.PRNGKey(0)))": "key of shape (2, 2): give one key",
    "pair({'a': model}, None)": "arm 'a' is a LanguageModel: give a ModelConfig, or a function from a key",
    "flops(model)": "flops of a LanguageModel: give a ModelConfig",
    "generate(model, 'hello', tokens=3, context=16, key=key)": "the prompt is text: give ids",
    "generate(model, [1], tokens=3, context=16, key=0)": "key=0: give a key",
    "pair({'a': 'dense'}, None)": "arm 'a' is a str",
    "pair({'a': config}, 'book.txt')": "stream is a str",
    "LeviathanEmbedding(64, 32, order=jnp.zeros(64, int), key=key)": "order is no permutation",
    "LeviathanEmbedding(64, 32, order=jnp.arange(63), key=key)": "order of shape (63,)",
    "LeviathanEmbedding(64, 32, order=jnp.arange(64.0), key=key)": "order of dtype float32",
}


@pytest.fixture(scope="module")
def lines():
    calls = "\n".join(f"tried({code!r})" for code in (*WORKS, *SAID))
    done = subprocess.run([sys.executable, "-c", BEGIN + calls], capture_output=True, text=True, check=True)
    return dict(line.split(" | ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("code", WORKS)
def test_it_works(lines, code):
    assert lines[code] == WORKS[code]


@pytest.mark.parametrize("code", SAID)
def test_it_is_said_in_a_line(lines, code):
    assert lines[code].startswith("said ") and SAID[code] in lines[code] and "MORE THAN" not in lines[code]
