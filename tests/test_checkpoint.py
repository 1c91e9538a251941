"""Model files: what is written comes back bit for bit, and what does not fit is named."""

import dataclasses
import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GENERATOR, VOCAB, tiny_config, tiny_model

from eqx_slm import UserError, build
from eqx_slm.train import load_model, save_model
from eqx_slm.train.checkpoint import named_arrays

ORDERED = tiny_config(embedding=dataclasses.replace(GENERATOR, order="random"))


def like(config):
    return eqx.filter_eval_shape(lambda key: build(config, key=key), jax.random.key(0))


def same(model, other):
    assert jax.tree.structure(model) == jax.tree.structure(other)
    for path, leaf in named_arrays(model).items():
        there = named_arrays(other)[path]
        assert leaf.dtype == there.dtype and leaf.shape == there.shape
        assert np.asarray(leaf).tobytes() == np.asarray(there).tobytes()


def refused(path, model):
    with pytest.raises(UserError) as error:
        load_model(path, model)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("config", [tiny_config(), ORDERED], ids=["dense", "ordered"])
def test_a_model_comes_back_bit_for_bit(config, tmp_path):
    model = tiny_model(config)
    odd = {"nan": jnp.nan, "zero": -0.0, "small": 1e-42}
    model = eqx.tree_at(lambda m: m.norm.weight, model, jnp.asarray([*odd.values()] + [1.0] * 13))
    save_model(tmp_path / "model.safetensors", model, metadata={"arm": "dense", "seed": 3})
    same(load_model(tmp_path / "model.safetensors", like(config)), model)
    same(load_model(tmp_path / "model.safetensors", tiny_model(config, seed=1)), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_file_holds_dotted_names_buffers_and_metadata(tmp_path):
    from safetensors import safe_open

    model = tiny_model(ORDERED)
    save_model(tmp_path / "model", model, metadata={"arm": "dense", "seed": 3})
    with safe_open(tmp_path / "model", framework="np") as file:
        assert set(file.keys()) == set(named_arrays(model)) >= {"blocks.0.channel.up", "embedding.order"}
        assert file.get_tensor("embedding.order").dtype == np.int32
        told = json.loads(file.metadata()["eqx_slm"])
        assert len(told.pop("sha256")) == 64 and told == {"arm": "dense", "seed": 3}
    whole = (tmp_path / "model").read_bytes()
    for again in range(4):
        save_model(tmp_path / str(again), model, metadata={"seed": 3, "arm": "dense"})
        assert (tmp_path / str(again)).read_bytes() == whole


class Odd(eqx.Module):
    scalar: jax.Array
    empty: jax.Array
    narrow: jax.Array
    flags: jax.Array
    turned: jax.Array
    name: str
    none: None = None


def test_any_shape_and_dtype(tmp_path):
    odd = Odd(
        scalar=jnp.asarray(2.5),
        empty=jnp.zeros((0, 3)),
        narrow=jnp.asarray([1.5, -3.0], jnp.bfloat16),
        flags=jnp.asarray([True, False]),
        turned=jnp.arange(6.0).reshape(2, 3).T,
        name="odd",
    )
    save_model(tmp_path / "odd", odd)
    same(load_model(tmp_path / "odd", odd), odd)


def test_a_wrong_shape_is_named(tmp_path):
    path = tmp_path / "model"
    save_model(path, tiny_model())
    text = refused(path, like(tiny_config(vocab_size=VOCAB + 1)))
    assert "embedding.table is float32[64, 16], the model's float32[65, 16]" in text


def test_a_wrong_dtype_is_named(tmp_path):
    path = tmp_path / "model"
    save_model(path, tiny_model())
    other = eqx.tree_at(lambda m: m.norm.weight, tiny_model(), jnp.ones(16, jnp.bfloat16))
    assert "norm.weight is float32[16], the model's bfloat16[16]" in refused(path, other)


def test_a_missing_leaf_is_named_on_either_side(tmp_path):
    one, two = tiny_config(), tiny_config(depth=2)
    save_model(tmp_path / "one", tiny_model(one))
    save_model(tmp_path / "two", tiny_model(two))
    assert "the file lacks blocks.1.channel" in refused(tmp_path / "one", like(two))
    assert "the model lacks blocks.1.channel" in refused(tmp_path / "two", like(one))
    save_model(tmp_path / "ordered", tiny_model(ORDERED))
    assert "the model lacks embedding.order" in refused(tmp_path / "ordered", like(tiny_config(embedding=GENERATOR)))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "model"
    save_model(path, tiny_model())
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    refused(path, tiny_model())


def test_no_flipped_bit_is_loaded_in_silence(tmp_path):
    path, rng = tmp_path / "model", np.random.default_rng(0)
    save_model(path, tiny_model(), metadata={"arm": "dense"})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*rng.integers(0, header, 60), *rng.integers(header, len(whole), 60)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises((UserError, UserWarning)):  # a warning where the hash itself was lost
            load_model(path, tiny_model())


def test_other_metadata_and_files_without_a_hash(tmp_path):
    save_model(tmp_path / "one", tiny_model(), metadata={"seed": 1})
    with pytest.raises(UserError, match="one is another file: it was saved with seed 1, not 2"):
        load_model(tmp_path / "one", tiny_model(), expected={"seed": 2, "arm": "dense"})
    save_model(tmp_path / "two", tiny_model(), hashed=False)
    with pytest.warns(UserWarning, match="two has no hash: whether its arrays are whole cannot be told"):
        same(load_model(tmp_path / "two", tiny_model()), tiny_model())


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "nothing", tiny_model())
    refused(tmp_path, tiny_model())  # a folder


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, failing):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "model"
    save_model(path, tiny_model())
    before = path.read_bytes()
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        save_model(path, tiny_model(seed=1))
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "new", tiny_model())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
