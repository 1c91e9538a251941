"""Models to and from Hugging Face's files: Llama's layout (arXiv 2302.13971) both ways, GPT-2's in; without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..configs import read_json, to_dict
from ..errors import UserError
from ..files import check_new, write_bytes_atomic, write_json_atomic
from ..model import ModelConfig, build
from ..nn.attention import AttentionConfig
from ..nn.mlp import MLPConfig
from .generate import materialize
from .hugging_face_config import EPS, imported_config
from .hugging_face_files import Tensors, refuse_adapters

TAPERED = Path(__file__).with_name("modeling_tapered_llama.py")
HEAD = "lm_head.weight"
# The prefix of most names, and the buffers that transformers computes anew.
LLAMA_NAMES = ("model.", r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
GPT2_NAMES = ("transformer.", r"h\.\d+\.attn\.(masked_)?bias")
# Of a block: Llama's name and ours. Theirs are (out, in), ours (in, out).
MATRICES = {
    "self_attn.q_proj": "mixer.w_q",
    "self_attn.k_proj": "mixer.w_k",
    "self_attn.v_proj": "mixer.w_v",
    "self_attn.o_proj": "mixer.w_o",
    "mlp.gate_proj": "channel.gate",
    "mlp.up_proj": "channel.up",
    "mlp.down_proj": "channel.down",
}
NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "channel_norm"}


def to_llama(model: Any, config: ModelConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the config of transformers' `LlamaForCausalLM` that gives a model's logits.

    A generator is evaluated into its table; a scale of the logits goes into the last norm. Widths that differ by layer
    (a taper) are a `TaperedLlamaForCausalLM`, whose code `export_llama` writes beside.

    **Raises:** `UserError` for what Llama's layout cannot say, naming it.
    """
    mixer: Any = config.mixer
    channel, head = config.channel, config.head
    rules = {
        f"mixer {mixer.kind!r}": isinstance(mixer, AttentionConfig),
        f"channel {getattr(channel, 'kind', '?')!r}": isinstance(channel, MLPConfig),
        f"positions {config.positions!r}": config.positions == "rotary",
        f"norm {config.norm!r}": config.norm in ("rms", "zero-centred"),
        f"placement {config.placement!r}": config.placement == "pre",
        f"a {head.kind} head": head.kind != "low-rank",
        "bigrams": not config.bigrams.rows,
    }
    if isinstance(mixer, AttentionConfig):
        rules |= {
            f"qk_norm {mixer.qk_norm!r}": mixer.qk_norm == "none",
            "a window": mixer.window is None or mixer.window >= config.context,
            "a rotary fraction below 1": mixer.rotary_fraction == 1,
            "biases of attention": mixer.bias == "none",
        }
    if isinstance(channel, MLPConfig):
        rules |= {
            f"activation {channel.activation!r}": channel.activation == "swiglu",
            "biases ": channel.bias == "none",
        }
    if missing := [what for what, fits in rules.items() if not fits]:
        instead = "it can be saved as it is: --to safetensors, `save_model`"
        raise UserError(f"Llama's layout has no place for {', '.join(missing)}: {instead}")
    model = materialize(model)
    tensors = {"model.embed_tokens.weight": _host(model.embedding(jnp.arange(config.vocab_size, dtype=jnp.int32)))}
    offset = 1.0 if config.norm == "zero-centred" else 0.0
    for i, block in enumerate(model.blocks):
        for theirs, ours in MATRICES.items():
            part, name = ours.split(".")
            tensors[f"model.layers.{i}.{theirs}.weight"] = _host(getattr(getattr(block, part), name)).T.copy()
        for theirs, ours in NORMS.items():
            tensors[f"model.layers.{i}.{theirs}.weight"] = _host(getattr(block, ours).weight) + np.float32(offset)
    tensors["model.norm.weight"] = (_host(model.norm.weight) + np.float32(offset)) * np.float32(head.scale)
    tied = head.kind in ("tied", "generated")
    if not tied:
        tensors["lm_head.weight"] = _host(model.head.weight)
    return tensors, _llama_config(config, mixer, tied)


def _llama_config(config: ModelConfig, mixer: Any, tied: bool) -> dict[str, Any]:
    heads, groups, width = mixer.head_sizes(config.d_model)
    mean = config.channel.width(config.d_model)
    kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if len(set(config.widths)) > 1:
        code = TAPERED.stem
        kind = {
            "architectures": ["TaperedLlamaForCausalLM"],
            "model_type": "tapered_llama",
            "auto_map": {
                "AutoConfig": f"{code}.TaperedLlamaConfig",
                "AutoModelForCausalLM": f"{code}.TaperedLlamaForCausalLM",
            },
            "intermediate_sizes": list(config.widths),
            "taper": {**to_dict(config.taper), "width": mean},
        }
    return {
        **kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": max(config.widths),
        "num_hidden_layers": config.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": width,
        "max_position_embeddings": config.context,
        "rope_theta": mixer.rotary_base,
        "rms_norm_eps": EPS if config.norm_eps is None else config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def export_llama(folder: str | Path, model: Any, config: ModelConfig, tokenizer: Any = None) -> Path:
    """Writes config.json and model.safetensors, and tokenizer.json of a BPE `tokenizer`, into a new or empty folder.

    `transformers.AutoModelForCausalLM.from_pretrained(folder)` loads it; of a tapered model, whose code is written
    beside, with `trust_remote_code=True`. **Raises:** `UserError` as `to_llama`, and
    where the folder holds files.
    """
    from safetensors.numpy import save

    from ..data.vocabulary import export_tokenizer

    folder = Path(folder)
    check_new(folder)
    tensors, told = to_llama(model, config)
    try:
        write_bytes_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        if "auto_map" in told:
            write_bytes_atomic(folder / TAPERED.name, TAPERED.read_bytes())
        if tokenizer is not None and tokenizer.content().get("kind") in ("tiktoken", "hub"):
            export_tokenizer(folder / "tokenizer.json", tokenizer)
        write_json_atomic(folder / "config.json", told)  # last: without it there is no model
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    return folder


class Place(NamedTuple):
    """A tensor of theirs, without the prefix of most names, and the leaves of ours that stand side by side in it."""

    theirs: str
    ours: tuple[str, ...]
    turned: bool = False


def import_hugging_face(folder: str | Path) -> tuple[Any, ModelConfig]:
    """The model and config of a folder with a Llama (or Mistral) or a GPT-2 of transformers: config.json, safetensors.

    Weights become float32, whatever they are kept in. Every tensor of the files has its place, but for buffers that
    transformers computes anew: what comes in is the function that transformers computes.

    **Raises:** `UserError` for other architectures, for what our modules have no place for, naming it, and for files
    that are missing, contradict each other or hold what are no finite floats.
    """
    folder = Path(folder)
    refuse_adapters(folder)  # first: one alone has no config.json
    told = read_json(folder / "config.json")
    try:
        config = imported_config(told)
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    gpt2 = config.positions == "learned"
    tensors = Tensors(folder, *(GPT2_NAMES if gpt2 else LLAMA_NAMES))
    places = [*(_gpt2_places(config) if gpt2 else _llama_places(config))]
    tied = config.head.kind == "tied"
    places += [] if tied else [Place(HEAD, ("head.weight",))]
    tensors.check_names([place.theirs for place in places], [HEAD])
    model = _filled(config, places, tensors)
    if tied and HEAD in tensors and not np.array_equal(tensors.take(HEAD), np.asarray(model.embedding.table)):
        raise UserError(
            f"{folder}: lm_head.weight is not the embedding's table, and config.json ties them: with "
            '"tie_word_embeddings": false it comes in as a head of its own'
        )
    return model, config


def _llama_places(config: ModelConfig) -> Iterator[Place]:
    yield Place("embed_tokens.weight", ("embedding.table",))
    yield Place("norm.weight", ("norm.weight",))
    for i in range(config.depth):
        for theirs, ours in MATRICES.items():
            yield Place(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}",), turned=True)
        for theirs, ours in NORMS.items():
            yield Place(f"layers.{i}.{theirs}.weight", (f"blocks.{i}.{ours}.weight",))


def _gpt2_places(config: ModelConfig) -> Iterator[Place]:
    yield Place("wte.weight", ("embedding.table",))
    yield Place("wpe.weight", ("positions.table",))
    for part, w, b in (("weight", "w_", ""), ("bias", "b_", "b_")):
        yield Place(f"ln_f.{part}", (f"norm.{part}",))
        for i in range(config.depth):
            own, at = f"h.{i}.", f"blocks.{i}."
            yield Place(f"{own}attn.c_attn.{part}", tuple(f"{at}mixer.{w}{name}" for name in "qkv"))
            yield Place(f"{own}attn.c_proj.{part}", (f"{at}mixer.{w}o",))
            yield Place(f"{own}ln_1.{part}", (f"{at}mixer_norm.{part}",))
            yield Place(f"{own}ln_2.{part}", (f"{at}channel_norm.{part}",))
            yield Place(f"{own}mlp.c_fc.{part}", (f"{at}channel.{b}up",))
            yield Place(f"{own}mlp.c_proj.{part}", (f"{at}channel.{b}down",))


def _filled(config: ModelConfig, places: list[Place], tensors: Tensors) -> Any:
    """The model with their tensors in its leaves; `UserError` for shapes that config.json does not say."""
    try:  # shapes alone, so that sizes that are not there are refused before anything of them is made
        model = eqx.filter_eval_shape(lambda key: build(config, key=key), jax.random.key(0))
    except (ValueError, TypeError, OverflowError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{tensors.folder}/config.json: no model can be built of it: {said}") from None
    values = {}
    for place in places:
        sizes = [_at(model, path).shape for path in place.ours]
        shape = (*sizes[0][:-1], sum(size[-1] for size in sizes))
        array = tensors.take(place.theirs, shape[::-1] if place.turned else shape)
        ends = np.cumsum([size[-1] for size in sizes])[:-1]
        parts = np.split(array.T if place.turned else array, ends, axis=-1)
        values |= {path: jnp.asarray(np.ascontiguousarray(part)) for path, part in zip(place.ours, parts, strict=True)}
    return eqx.tree_at(lambda tree: [_at(tree, path) for path in values], model, [*values.values()])


def _at(node: Any, path: str) -> Any:
    for step in path.split("."):
        node = node[int(step)] if step.isdigit() else getattr(node, step)
    return node


def _host(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)
