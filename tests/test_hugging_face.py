"""Models in Hugging Face's files: the same logits in numpy, and, where they are installed, in transformers."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from tiny import GENERATOR, tiny_config, tiny_model

from eqx_slm import AttentionConfig, HeadConfig, MLPConfig, TaperConfig, UserError, build, generate
from eqx_slm.infer.hugging_face import export_llama, import_hugging_face, to_llama

IDS = np.array([3, 60, 1, 1, 17, 42, 8, 9, 63, 0])
CONFIGS = {
    "dense": tiny_config(depth=2),
    "grouped": tiny_config(mixer=AttentionConfig(n_heads=4, n_kv_heads=2, d_head=6, rotary_base=500.0)),
    "tied": tiny_config(head=HeadConfig("tied", scale=0.25)),
    "zero-centred": tiny_config(norm="zero-centred", channel=MLPConfig(d_ff=24)),
    "leviathan": tiny_config(embedding=GENERATOR),
    "generated": tiny_config(embedding=GENERATOR, head=HeadConfig("generated")),
    "tapered": tiny_config(depth=3, channel=MLPConfig(d_ff=64), taper=TaperConfig("cosine")),
    "epsilon": tiny_config(norm_eps=3e-3),
}


def moved(config, seed=0):
    """A model whose norms are not at their start and whose logits are large enough to tell mistakes."""
    model = build(config, key=jax.random.key(seed))
    key = jax.random.key(seed + 1)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda x: 3 * x + 0.2 * jax.random.normal(key, x.shape), arrays)
    return eqx.combine(arrays, rest)


def llama_in_numpy(tensors, told, ids):
    """The forward pass of a Llama, from the published equations."""
    eps, heads, groups = told["rms_norm_eps"], told["num_attention_heads"], told["num_key_value_heads"]
    width, count = told["head_dim"], len(ids)
    t = {name: array.astype(np.float64) for name, array in tensors.items()}

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * t[name]

    frequency = told["rope_theta"] ** (-np.arange(0, width, 2) / width)
    angle = np.concatenate([np.outer(np.arange(count), frequency)] * 2, axis=-1)[:, None]

    def turn(x):
        half = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], axis=-1)
        return x * np.cos(angle) + half * np.sin(angle)

    x = t["model.embed_tokens.weight"][ids]
    for i in range(told["num_hidden_layers"]):
        at = f"model.layers.{i}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (y @ t[f"{at}self_attn.{n}_proj.weight"].T).reshape(count, -1, width).astype(np.float64) for n in "qkv"
        )
        q, k, v = turn(q), np.repeat(turn(k), heads // groups, axis=1), np.repeat(v, heads // groups, axis=1)
        scores = np.einsum("tnh,unh->ntu", q, k) / np.sqrt(width)
        scores = np.where(np.tril(np.ones((count, count), bool)), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        x = x + np.einsum("ntu,unh->tnh", shares, v).reshape(count, -1) @ t[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate = y @ t[at + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ t[at + "mlp.up_proj.weight"].T)) @ t[at + "mlp.down_proj.weight"].T
    tied = told["tie_word_embeddings"]
    return norm(x, "model.norm.weight") @ t["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def logits_of(model):
    return np.asarray(eqx.filter_jit(model)(jnp.asarray(IDS, jnp.int32)))


@pytest.mark.parametrize("name", CONFIGS)
def test_llamas_equations_on_the_exported_tensors_give_the_models_logits(name, tmp_path):
    model = moved(CONFIGS[name])
    wanted = logits_of(model)
    np.testing.assert_allclose(llama_in_numpy(*to_llama(model, CONFIGS[name]), IDS), wanted, rtol=1e-3, atol=1e-4)
    back, config = import_hugging_face(export_llama(tmp_path / "out", model, CONFIGS[name]))
    np.testing.assert_allclose(logits_of(back), wanted, rtol=1e-4, atol=1e-4)
    assert config.widths == CONFIGS[name].widths and config.head.kind in ("tied", "untied")


@settings(max_examples=5)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_transformers_gives_the_same_logits(tmp_path_factory, heads, groups, depth, tied, seed):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    mixer = AttentionConfig(n_heads=2 * heads, n_kv_heads=groups)
    config = tiny_config(depth=depth, mixer=mixer, head=HeadConfig("tied" if tied else "untied"))
    model = moved(config, seed)
    folder = export_llama(tmp_path_factory.mktemp("hf") / "out", model, config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = theirs(torch.tensor(IDS)[None]).logits[0].numpy()
    np.testing.assert_allclose(found, logits_of(model), atol=1e-4 * max(1, np.abs(found).max()))
    ours = generate(model, IDS[:3].astype(np.int32), tokens=12, context=16, temperature=0.0, key=jax.random.key(0))
    sampled = theirs.generate(torch.tensor(IDS[:3])[None], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert sampled[0, 3:].tolist() == np.asarray(ours).tolist()


def loaded(transformers, folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def random_config(rng):
    """Tied, untied, generated, tapered, with grouped heads: anything that can go out."""
    kind = rng.choice(["untied", "tied", "leviathan", "generated"])
    heads = int(rng.choice([2, 4]))
    mixer = AttentionConfig(
        n_heads=heads, n_kv_heads=int(rng.choice([1, 2])), rotary_base=float(rng.choice([500, 1e4]))
    )
    taper = TaperConfig("cosine", multiple=4) if rng.random() < 0.4 else TaperConfig()
    return tiny_config(
        d_model=int(rng.choice([16, 32])),
        depth=int(rng.integers(1, 4)) + 2 * (taper.schedule != "uniform"),
        context=256,
        mixer=mixer,
        channel=MLPConfig(d_ff=int(rng.choice([32, 48]))),
        taper=taper,
        norm=str(rng.choice(["rms", "zero-centred"])),
        norm_eps=float(rng.choice([1e-6, 1e-5])),
        head=HeadConfig({"leviathan": "untied"}.get(kind, kind), scale=float(rng.choice([1.0, 0.25]))),
        **({"embedding": GENERATOR} if kind in ("leviathan", "generated") else {}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_random_config_is_the_same_model_in_transformers(seed, tmp_path):
    """Logits within 1e-4 of those in float64, of both and relative to the largest where that is above 1; 200 tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = random_config(np.random.default_rng(seed))
    for name, model in (("initial", build(config, key=jax.random.key(seed))), ("moved", moved(config, seed))):
        theirs = loaded(transformers, export_llama(tmp_path / name, model, config))
        assert [layer.mlp.up_proj.out_features for layer in theirs.model.layers] == list(config.widths)
        back, _ = import_hugging_face(tmp_path / name)
        with torch.no_grad():
            found = theirs(torch.tensor(IDS)[None]).logits[0].numpy()
            exact = theirs.double()(torch.tensor(IDS)[None]).logits[0].numpy()
            theirs.float()
        close = 1e-4 * max(1, np.abs(exact).max())
        for each in (found, logits_of(model), logits_of(back)):
            assert np.abs(each - exact).max() < close
        ids = generate(model, IDS[:3].astype(np.int32), tokens=200, context=256, temperature=0.0, key=jax.random.key(0))
        their_ids = theirs.generate(torch.tensor(IDS[:3])[None], max_new_tokens=200, do_sample=False, pad_token_id=0)
        assert their_ids[0, 3:].tolist() == np.asarray(ids).tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_transformers_saved_gives_the_same_logits_here(kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "llama":
        shapes = transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-4, rope_theta=700.0,
        )  # fmt: skip
        theirs = transformers.LlamaForCausalLM(shapes)
    else:
        shapes = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=4)
        theirs = transformers.GPT2LMHeadModel(shapes)
    with torch.no_grad():
        for each in theirs.parameters():
            each += 0.3 * torch.randn_like(each)
        wanted = theirs.eval()(torch.tensor(IDS)[None]).logits[0].numpy()
    theirs.save_pretrained(tmp_path / "saved")
    model, config = import_hugging_face(tmp_path / "saved")
    np.testing.assert_allclose(logits_of(model), wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    assert config.context == 32
    again = eqx.tree_at(jax.tree.leaves, build(config, key=jax.random.key(0)), jax.tree.leaves(model))
    np.testing.assert_array_equal(logits_of(again), logits_of(model))  # the config says all that is not a weight


def test_a_gpt2_with_its_own_head_comes_in_and_others_are_refused(tmp_path):
    """What config.json says of the function counts; without transformers, by its names of tensors."""
    from safetensors.numpy import save_file

    rng, d, vocab = np.random.default_rng(0), 8, 16
    shapes = {"wte.weight": (vocab, d), "wpe.weight": (4, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for part, shape in (("attn.c_attn", (d, 3 * d)), ("attn.c_proj", (d, d)), ("mlp.c_fc", (d, 4 * d))):
        shapes |= {f"h.0.{part}.weight": shape, f"h.0.{part}.bias": shape[1:]}
    shapes |= {"h.0.mlp.c_proj.weight": (4 * d, d), "h.0.mlp.c_proj.bias": (d,)}
    shapes |= {f"h.0.{norm}.{part}": (d,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    tensors = {f"transformer.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    head = rng.normal(size=(vocab, d)).astype(np.float32)
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors")
    told = {"model_type": "gpt2", "vocab_size": vocab, "n_embd": d, "n_layer": 1, "n_head": 2, "n_positions": 4}

    def read(**more):
        (tmp_path / "config.json").write_text(json.dumps({**told, **more}))
        return import_hugging_face(tmp_path)

    model, config = read(tie_word_embeddings=False)
    assert config.head.kind == "untied"
    np.testing.assert_array_equal(model.head.weight, head)
    assert read()[1].head.kind == "tied"
    for name, value in (
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("activation_function", "relu"),
    ):
        with pytest.raises(UserError, match=f"a GPT-2 with {name} {value!r}"):
            read(**{name: value})


def test_weights_in_bfloat16_and_a_mistral_come_in(tmp_path):
    """As most published checkpoints are."""
    from safetensors.flax import load_file, save_file

    config = tiny_config(norm_eps=1e-5)
    model = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if eqx.is_inexact_array(x) else x, moved(config)
    )
    out = export_llama(tmp_path / "out", model, config)
    tensors = {name: each.astype(jnp.bfloat16) for name, each in load_file(out / "model.safetensors").items()}
    save_file(tensors, out / "model.safetensors")
    told = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**told, "model_type": "mistral", "sliding_window": None}))
    back, found = import_hugging_face(out)
    np.testing.assert_allclose(logits_of(back), logits_of(model), rtol=1e-5, atol=1e-5)
    assert found.norm_eps == 1e-5 and all(
        x.dtype == jnp.float32 for x in jax.tree.leaves(eqx.filter(back, eqx.is_array))
    )
    (out / "config.json").write_text(json.dumps({**told, "sliding_window": 4}))
    with pytest.raises(UserError, match="sliding_window 4"):
        import_hugging_face(out)


def test_widths_of_no_taper_are_refused(tmp_path):
    config = CONFIGS["tapered"]
    out = export_llama(tmp_path / "out", moved(config), config)
    told = json.loads((out / "config.json").read_text())
    assert (out / "modeling_tapered_llama.py").is_file()
    (out / "config.json").write_text(json.dumps({**told, "intermediate_sizes": told["intermediate_sizes"][::-1]}))
    with pytest.raises(UserError, match="are of no taper"):
        import_hugging_face(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm": "layer"}, "norm 'layer'"),
        ({"positions": "learned"}, "positions 'learned'"),
        ({"placement": "post"}, "placement 'post'"),
        ({"channel": MLPConfig(d_ff=32, activation="gelu")}, "activation 'gelu'"),
        ({"mixer": AttentionConfig(n_heads=2, window=4)}, "a window"),
        ({"mixer": AttentionConfig(n_heads=2, qk_norm="rms")}, "qk_norm 'rms'"),
    ],
)
def test_what_llama_cannot_say_is_named(change, said, tmp_path):
    config = tiny_config(**change)
    with pytest.raises(UserError, match=f"Llama's layout has no place for .*{said}"):
        export_llama(tmp_path / "out", tiny_model(config), config)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_refused(tmp_path):
    config = tiny_config()
    out = export_llama(tmp_path / "out", tiny_model(), config)
    with pytest.raises(UserError, match="is there already"):
        export_llama(out, tiny_model(), config)
    told = json.loads((out / "config.json").read_text())
    for change, said in (
        ({"model_type": "mamba"}, "model_type 'mamba'; llama, mistral"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"intermediate_size": 48}, "has shape"),
        ({"num_hidden_layers": 2}, "it lacks"),
    ):
        (out / "config.json").write_text(json.dumps({**told, **change}))
        with refuses(said):
            import_hugging_face(out)
    (out / "model.safetensors").write_bytes(b"x")
    (out / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="cannot be read"):
        import_hugging_face(out)
    (out / "model.safetensors").rename(out / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no .safetensors file, and others are not read"):
        import_hugging_face(out)
    assert dataclasses.is_dataclass(config)
