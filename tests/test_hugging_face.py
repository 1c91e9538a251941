"""Models in Hugging Face's files: the same logits in numpy, and, where they are installed, in transformers."""

import dataclasses
import json
import struct

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
    with pytest.raises(UserError, match="lm_head.weight is not the embedding's table"):
        read()
    for name, value in (
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("activation_function", "relu"),
    ):
        with pytest.raises(UserError, match=f"a GPT-2 with {name} {value!r}"):
            read(**{name: value})
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}, tmp_path / "model.safetensors")
    assert read()[1].head.kind == "tied"


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


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


def llama_shapes(told, head=True):
    d, f, vocab = told["hidden_size"], told["intermediate_size"], told["vocab_size"]
    width = told.get("head_dim") or d // told["num_attention_heads"]
    q, kv = told["num_attention_heads"] * width, told.get("num_key_value_heads", 8) * width
    found = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    for i in range(told["num_hidden_layers"]):
        sizes = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        own = {f"self_attn.{name}_proj": shape for name, shape in sizes.items()}
        own |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
        own |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
    return found | ({"lm_head.weight": (vocab, d)} if head else {})


def gpt2_shapes(told):
    d, inner = told["n_embd"], told.get("n_inner") or 4 * told["n_embd"]
    found = {"wte.weight": (told["vocab_size"], d), "wpe.weight": (told["n_positions"], d)}
    found |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    for i in range(told["n_layer"]):
        own = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
        for name, shape in {**own, "ln_1": (d, d), "ln_2": (d, d)}.items():
            found[f"h.{i}.{name}.weight"] = shape[1:] if name[:2] == "ln" else shape
            found[f"h.{i}.{name}.bias"] = shape[1:]
    return {f"transformer.{name}": shape for name, shape in found.items()}


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}
    return {name: each + 1 if "norm" in name or "ln_" in name else each for name, each in made.items()}


def write(folder, told, tensors, file="model.safetensors"):
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    # transformers asks for the metadata
    save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / file, {"format": "pt"})
    return folder


def refused(folder, *said):
    with pytest.raises(UserError) as error:
        import_hugging_face(folder)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500, line
    assert all(each in line for each in said), line
    return line


def without(told, *names):
    return {name: value for name, value in told.items() if name not in names}


MISTRAL = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
HALF = LLAMA["hidden_size"] // LLAMA["num_attention_heads"] // 2


def accepted():
    """By name: a config, its tensors, and what else stands in the folder."""
    llama, gpt2 = random_tensors(llama_shapes(LLAMA)), random_tensors(gpt2_shapes(GPT2))
    tied = random_tensors(llama_shapes(LLAMA, head=False))
    inv = {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(HALF, np.float32)}
    masks = {
        "transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.uint8)),
        "transformer.h.1.attn.masked_bias": np.float32(-1e4),
    }
    eight = {**without(MISTRAL, "num_key_value_heads"), "num_attention_heads": 8, "hidden_size": 32}
    wide = {**LLAMA, "head_dim": 6}
    inner = {**GPT2, "n_inner": 24}
    return {
        "plain": (LLAMA, llama),
        "null keys": ({**LLAMA, "rope_scaling": None, "head_dim": None, "quantization_config": None}, llama),
        "theta": ({**LLAMA, "rope_theta": 300}, llama),
        "parameters": ({**LLAMA, "rope_theta": 300.0, "rope_parameters": {"rope_type": "default"}}, llama),
        "its theta": ({**LLAMA, "rope_theta": 3.0, "rope_parameters": {"rope_theta": 500.0, "type": "default"}}, llama),
        "swish": ({**LLAMA, "hidden_act": "swish"}, llama),
        "head_dim": (wide, random_tensors(llama_shapes(wide))),
        "buffers": (LLAMA, {**llama, **inv}),
        "tied": ({**LLAMA, "tie_word_embeddings": True}, tied),
        "tied twice": (
            {**LLAMA, "tie_word_embeddings": True},
            {**tied, "lm_head.weight": tied["model.embed_tokens.weight"]},
        ),
        "bare": (
            {**LLAMA, "tie_word_embeddings": True, "architectures": ["LlamaModel"]},
            {name.removeprefix("model."): each for name, each in tied.items()},
        ),
        "half": (LLAMA, {name: each.astype(np.float16) for name, each in llama.items()}),
        "double": (LLAMA, {name: each.astype(np.float64) for name, each in llama.items()}),
        "mistral": (MISTRAL, llama),  # its window of 4096 reaches over the context
        "mistral null": ({**MISTRAL, "sliding_window": None, "max_position_embeddings": 8192}, llama),
        "mistral equal": ({**MISTRAL, "sliding_window": 32}, llama),
        "mistral eight": (eight, random_tensors(llama_shapes(eight))),
        "gpt2": (GPT2, gpt2),
        "gpt2 inner": (inner, random_tensors(gpt2_shapes(inner))),
        "gpt2 masks": (GPT2, {**gpt2, **masks}),
        "gpt2 bare": (GPT2, {name.removeprefix("transformer."): each for name, each in gpt2.items()}),
        "gpt2 head": ({**GPT2, "tie_word_embeddings": False}, {**gpt2, "lm_head.weight": 2 * llama["lm_head.weight"]}),
    }


@pytest.mark.parametrize("name", accepted())
def test_what_comes_in_is_what_transformers_computes(name, tmp_path):
    """Both read the same hand-written files."""
    told, tensors = accepted()[name]
    folder = write(tmp_path / "out", told, tensors)
    ours = logits_of(import_hugging_face(folder)[0])
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(torch.tensor(IDS)[None]).logits[0].numpy()
    np.testing.assert_allclose(found, ours, atol=1e-4 * max(1, np.abs(found).max()))


def test_integers_as_floats_come_in(tmp_path):
    told = {name: float(value) if isinstance(value, int) else value for name, value in LLAMA.items()}
    assert import_hugging_face(write(tmp_path / "out", told, random_tensors(llama_shapes(LLAMA))))[1].depth == 2


ZEROS = np.zeros(16, np.float32)


@pytest.mark.parametrize(
    ("told", "more", "said"),
    [
        (LLAMA, {f"model.layers.0.self_attn.{n}_proj.bias": ZEROS for n in "qkvo"}, "q_proj.bias"),
        (LLAMA, {"model.layers.0.mlp.up_proj.bias": ZEROS}, "holds 'model.layers.0.mlp.up_proj.bias', for which"),
        (LLAMA, {"score.weight": ZEROS}, "'score.weight'"),
        (LLAMA, {"model.layers.0.self_attn.q_norm.weight": ZEROS}, "q_norm.weight"),
        (LLAMA, {"model.layers.0.mlp.up_proj.SCB": ZEROS}, "up_proj.SCB"),
        (LLAMA, {"lm_head.bias": ZEROS}, "'lm_head.bias'"),
        (LLAMA, {"model.rotary_emb.inv_freq.more": ZEROS}, "inv_freq.more"),
        ({**LLAMA, "num_hidden_layers": 1}, {}, "holds 'model.layers.1."),
        ({**LLAMA, "num_hidden_layers": 3}, {}, "it lacks 'layers.2."),
        ({**LLAMA, "tie_word_embeddings": True}, {}, "lm_head.weight is not the embedding's table"),
        ({**GPT2, "n_layer": 1}, {}, "holds 'transformer.h.1."),
        (GPT2, {"transformer.h.0.crossattention.q_attn.weight": ZEROS}, "crossattention"),
        (GPT2, {"lm_head.weight": np.ones((64, 16), np.float32)}, "lm_head.weight is not"),
        (GPT2, {"wte.weight": ZEROS}, "are one name"),
        (GPT2, {"transformer.h.0.attn.bias.weight": ZEROS}, "attn.bias.weight"),
        ({**GPT2, "tie_word_embeddings": False}, {}, "it lacks 'lm_head.weight'"),
    ],
)
def test_every_tensor_has_its_place(told, more, said, tmp_path):
    shapes = gpt2_shapes(GPT2) if told["model_type"] == "gpt2" else llama_shapes(LLAMA)
    refused(write(tmp_path / "out", told, {**random_tensors(shapes), **more}), said)


def raw(path, name, dtype, shape, data):
    """A safetensors file with one tensor of any dtype."""
    head = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("BOOL", 1), ("I32", 4), ("I64", 8), ("C64", 8)],
)
def test_other_dtypes_are_named(dtype, size, tmp_path):
    tensors = random_tensors(llama_shapes(LLAMA))
    del tensors["model.norm.weight"]
    folder = write(tmp_path / "out", LLAMA, tensors, "a.safetensors")
    raw(folder / "b.safetensors", "model.norm.weight", dtype, [16], bytes(16 * size))
    refused(folder, f"'model.norm.weight' is of dtype {dtype}", "float16, bfloat16, float32, float64")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_that_are_not_finite_are_refused(value, dtype, tmp_path):
    tensors = random_tensors(llama_shapes(LLAMA))
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][3, 5] = value
    refused(write(tmp_path / "out", LLAMA, tensors), name, "not finite")


def test_the_files_that_count(tmp_path):
    """The index's, else model.safetensors, else all, where no name comes twice."""
    tensors, stray = random_tensors(llama_shapes(LLAMA)), random_tensors(llama_shapes(LLAMA), seed=1)
    names = sorted(tensors)
    halves = [{name: tensors[name] for name in part} for part in (names[:9], names[9:])]
    wanted = logits_of(import_hugging_face(write(tmp_path / "whole", LLAMA, tensors))[0])
    out = tmp_path / "out"
    for i, half in enumerate(halves):
        write(out, LLAMA, half, f"part-{i}.safetensors")
    np.testing.assert_array_equal(logits_of(import_hugging_face(out)[0]), wanted)
    write(out, LLAMA, stray, "consolidated.safetensors")
    refused(out, "are one name", "consolidated.safetensors", "part-0.safetensors")
    index = out / "model.safetensors.index.json"
    places = {name: f"part-{i}.safetensors" for i, half in enumerate(halves) for name in half}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    np.testing.assert_array_equal(logits_of(import_hugging_face(out)[0]), wanted)
    write(out, LLAMA, stray)
    refused(out, "model.safetensors and an index of other files")
    index.unlink()
    np.testing.assert_array_equal(
        logits_of(import_hugging_face(out)[0]), logits_of(import_hugging_face(write(tmp_path / "s", LLAMA, stray))[0])
    )
    (out / "model.safetensors").unlink()
    for content in (
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../part-0.safetensors"}}',
        '{"weight_map": {"a": "config.json"}}',
        json.dumps({"weight_map": {**places, "more": "part-2.safetensors"}}),
    ):
        index.write_text(content)
        refused(out, "index.json")
    refused(out, "names 'part-2.safetensors', which the folder does not hold")
    for damage in (b"", b"x" * 100, (out / "part-1.safetensors").read_bytes()[:-7]):
        index.write_text(json.dumps({"weight_map": places}))
        (out / "part-1.safetensors").write_bytes(damage)
        refused(out, "part-1.safetensors cannot be read")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"])
def test_an_adapter_is_to_be_merged_first(name, tmp_path):
    folder = write(tmp_path / "out", LLAMA, random_tensors(llama_shapes(LLAMA)))
    (folder / name).write_bytes(b"{}")
    refused(folder, name, "merge it")
    (folder / "config.json").unlink()
    refused(folder, name, "merge it")


NO_PLACE = [
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "default"}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "llama3"}},
    {"rope_parameters": "default"},
    {"rope_scaling": "linear"},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"factor": 2.0}},
    {"rope_scaling": {"rope_type": None}},
    {"rope_scaling": ["default"]},
    {"attention_bias": True},
    {"attention_bias": "no"},
    {"mlp_bias": True},
    {"hidden_act": "gelu"},
    {"hidden_act": None},
    {"sliding_window": 31},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"is_causal": False},
    {"architectures": ["LlamaForSequenceClassification"]},
    {"architectures": ["LlamaForCausalLM", "LlamaForTokenClassification"]},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [1]},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"quantization_config": {"bits": 4}},
    {"quantization_config": "fp8"},
    {"quantization_config": {}},
]
OUT_OF_RANGE = [
    {"num_attention_heads": 0},
    {"num_attention_heads": 3},
    {"num_attention_heads": 3, "head_dim": 4},
    {"num_attention_heads": "4"},
    {"num_attention_heads": True},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": -2},
    {"num_key_value_heads": [2]},
    {"head_dim": 7},
    {"head_dim": 0},
    {"head_dim": 2.5},
    {"hidden_size": 12},
    {"hidden_size": 18},
    {"hidden_size": 10**30},
    {"hidden_size": 2**31 - 8},
    {"intermediate_size": None},
    {"intermediate_size": 2**31 - 1},
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "2"},
    {"vocab_size": None},
    {"vocab_size": 64.5},
    {"vocab_size": 2**31 - 1},
    {"rope_theta": None},
    {"rope_theta": "10k"},
    {"rope_theta": 0},
    {"rope_theta": 1e-300},
    {"rope_theta": -1e4},
    {"rope_theta": 10**400},
    {"rope_parameters": {"rope_theta": None}},
    {"rms_norm_eps": "abc"},
    {"rms_norm_eps": None},
    {"rms_norm_eps": -1e-5},
    {"rms_norm_eps": [1e-5]},
    {"max_position_embeddings": None},
    {"max_position_embeddings": "32"},
    {"max_position_embeddings": {}},
    {"sliding_window": "4"},
    {"sliding_window": 0},
    {"tie_word_embeddings": "false"},
    {"tie_word_embeddings": None},
]
TAPERED = {**LLAMA, "model_type": "tapered_llama", "architectures": ["TaperedLlamaForCausalLM"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama and a GPT-2 whose config.json a test changes."""
    at = tmp_path_factory.mktemp("folders")
    llama = write(at / "llama", LLAMA, random_tensors(llama_shapes(LLAMA)))
    return {"llama": llama, "gpt2": write(at / "gpt2", GPT2, random_tensors(gpt2_shapes(GPT2)))}


@pytest.mark.parametrize("change", NO_PLACE + OUT_OF_RANGE, ids=lambda change: str(change)[:60])
def test_values_of_a_llama_that_have_no_place_are_named(change, folders):
    (folders["llama"] / "config.json").write_text(json.dumps({**LLAMA, **change}))
    name = next(iter(change))
    line = refused(folders["llama"])
    # A size that is none of the tensors' is found by their shapes; within rope_parameters the key's own name is said.
    assert name in line or "has shape" in line or (name == "rope_parameters" and "rope_theta=None" in line), line


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_sizes_that_are_missing_are_named(name, folders):
    (folders["llama"] / "config.json").write_text(json.dumps(without(LLAMA, name)))
    refused(folders["llama"], f"it lacks {name!r}")


@pytest.mark.parametrize(
    "told",
    [
        {**MISTRAL, "max_position_embeddings": 8192},
        {**MISTRAL, "sliding_window": 16},
        without(MISTRAL, "num_key_value_heads"),  # 8 by default, of 4
        {**TAPERED, "intermediate_sizes": [24, 16]},
        {**TAPERED, "intermediate_sizes": [24]},
        {**TAPERED, "intermediate_sizes": "24"},
        {**TAPERED, "intermediate_sizes": [24, "a"]},
        {**TAPERED, "intermediate_sizes": [24, 8], "taper": "cosine"},
        {**TAPERED, "intermediate_sizes": [24, 8], "taper": {"schedule": "none", "width": 16}},
        {**TAPERED, "intermediate_sizes": [24, 8], "taper": {"schedule": "cosine", "width": "16"}},
        {**TAPERED, "intermediate_sizes": [24, 8], "taper": {"schedule": "cosine", "width": 15}},
        {**TAPERED, "intermediate_sizes": [24, 8], "taper": {"schedule": "cosine", "start": "x", "width": 16}},
        {"model_type": ["llama"]},
        {"model_type": 3},
        [LLAMA],
    ],
    ids=str,
)
def test_other_configs_are_refused(told, folders):
    (folders["llama"] / "config.json").write_text(json.dumps(told))
    refused(folders["llama"])


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_weights": False},
        {"scale_attn_weights": None},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
        {"activation_function": "gelu"},
        {"activation_function": ["gelu_new"]},
        {"architectures": ["GPT2DoubleHeadsModel"]},
        {"architectures": ["GPT2ForSequenceClassification"]},
        {"quantization_config": {"quant_method": "gptq"}},
        {"n_head": 3},
        {"n_head": 0},
        {"n_inner": "a"},
        {"n_inner": 0},
        {"layer_norm_epsilon": "abc"},
        {"n_positions": None},
        {"tie_word_embeddings": 1},
        {"hidden_size": 24},
        {"is_causal": False},
    ],
    ids=str,
)
def test_values_of_a_gpt2_that_have_no_place_are_named(change, folders):
    (folders["gpt2"] / "config.json").write_text(json.dumps({**GPT2, **change}))
    refused(folders["gpt2"], *change)


@pytest.mark.parametrize("names", [["attn.c_attn"], ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]])
def test_a_gpt2_with_turned_matrices_is_refused(names, tmp_path):
    """As nanoGPT keeps them."""
    tensors = random_tensors(gpt2_shapes(GPT2))
    turned = {f"transformer.h.{i}.{name}.weight" for i in range(2) for name in names}
    tensors = {name: each.T if name in turned else each for name, each in tensors.items()}
    refused(write(tmp_path / "out", GPT2, tensors), "c_attn.weight has shape [48, 16]", "[16, 48]", "transposed")
