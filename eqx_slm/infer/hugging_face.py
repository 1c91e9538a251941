"""Models to and from Hugging Face's files: Llama's layout (arXiv 2302.13971) both ways, GPT-2's in; without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..configs import from_dict, read_json, to_dict
from ..errors import UserError
from ..files import check_new, write_bytes_atomic, write_json_atomic
from ..model import ModelConfig, TaperConfig, build
from ..nn.attention import AttentionConfig
from ..nn.head import HeadConfig
from ..nn.mlp import MLPConfig
from ..nn.table import TableConfig
from .generate import materialize

EPS = 1e-6
TAPERED = Path(__file__).with_name("modeling_tapered_llama.py")
LLAMAS = ("llama", "mistral", "tapered_llama")
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


def import_hugging_face(folder: str | Path) -> tuple[Any, ModelConfig]:
    """The model and config of a folder with a Llama (or Mistral) or a GPT-2 of transformers: config.json, safetensors.

    Weights become float32, whatever they are kept in.

    **Raises:** `UserError` for other architectures, and for what our modules have no place for, naming it.
    """
    folder = Path(folder)
    told = read_json(folder / "config.json")
    kind = told.get("model_type") if isinstance(told, dict) else None
    if kind not in (*LLAMAS, "gpt2"):
        there = f"is of model_type {kind!r}" if kind else "names no model_type: it is no model of transformers"
        raise UserError(f"{folder}/config.json {there}; {', '.join(LLAMAS)} and gpt2 can be imported")
    tensors = {name.removeprefix("transformer."): array for name, array in _tensors(folder).items()}
    try:
        config = _from_gpt2(told) if kind == "gpt2" else _from_llama(told)
        values = _gpt2_values(tensors, config) if kind == "gpt2" else _llama_values(tensors, config)
    except KeyError as error:
        raise UserError(f"{folder}: it lacks {error}") from None
    model = build(config, key=jax.random.key(0))
    for path, array in values.items():
        model = _placed(model, path.split("."), array, folder, path)
    return model, config


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = ", and others are not read: write it with save_pretrained" if [*folder.glob("*.bin")] else ""
        raise UserError(f"{folder} holds no .safetensors file{other}")
    try:
        return {name: array for file in files for name, array in load_file(file).items()}
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{folder}: its safetensors cannot be read as numbers of numpy: {error}") from None


def _from_llama(told: Mapping[str, Any]) -> ModelConfig:
    rope = told.get("rope_scaling") or told.get("rope_parameters") or {}
    rules = {
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) == "default",
        "attention_bias": not told.get("attention_bias", False),
        "mlp_bias": not told.get("mlp_bias", False),
        "hidden_act": told.get("hidden_act", "silu") == "silu",
        "sliding_window": (told.get("sliding_window") or 2**63) >= told["max_position_embeddings"],
    }
    if missing := [name for name, fits in rules.items() if not fits]:
        raise UserError(f"a Llama with {', '.join(f'{name} {told.get(name)!r}' for name in missing)} has no place here")
    heads = told["num_attention_heads"]
    base = rope.get("rope_theta", told.get("rope_theta", 10_000.0))
    mixer = AttentionConfig(
        n_heads=heads,
        n_kv_heads=told.get("num_key_value_heads") or heads,
        d_head=told.get("head_dim") or told["hidden_size"] // heads,
        rotary_base=float(base),
    )
    taper, width = _taper(told)
    return ModelConfig(
        vocab_size=told["vocab_size"],
        d_model=told["hidden_size"],
        depth=told["num_hidden_layers"],
        context=told["max_position_embeddings"],
        mixer=mixer,
        channel=MLPConfig(d_ff=width),
        taper=taper,
        norm_eps=float(told.get("rms_norm_eps", EPS)),
        embedding=TableConfig(),
        head=HeadConfig("tied" if told.get("tie_word_embeddings", False) else "untied"),
    )


def _taper(told: Mapping[str, Any]) -> tuple[TaperConfig, int]:
    """The taper and the mean width of a Llama's layers; `UserError` for widths that no taper of ours gives."""
    widths = told.get("intermediate_sizes") or [told["intermediate_size"]] * told["num_hidden_layers"]
    if len(set(widths)) == 1:
        return TaperConfig(), widths[0]
    own = dict(told.get("taper") or {})
    width = own.pop("width", None)
    taper = from_dict(TaperConfig, own)
    if width is None or list(taper.widths(len(widths), width)) != list(widths):
        raise UserError(f"intermediate_sizes {widths} are of no taper that the config names: it cannot be imported")
    return taper, width


def _llama_values(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    values = {"embedding.table": tensors["model.embed_tokens.weight"], "norm.weight": tensors["model.norm.weight"]}
    for i in range(config.depth):
        for theirs, ours in MATRICES.items():
            values[f"blocks.{i}.{ours}"] = tensors[f"model.layers.{i}.{theirs}.weight"].T
        for theirs, ours in NORMS.items():
            values[f"blocks.{i}.{ours}.weight"] = tensors[f"model.layers.{i}.{theirs}.weight"]
    return values | ({} if config.head.kind == "tied" else {"head.weight": tensors["lm_head.weight"]})


def _from_gpt2(told: Mapping[str, Any]) -> ModelConfig:
    rules = {
        "activation_function": told.get("activation_function", "gelu_new") in ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": told.get("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": not told.get("scale_attn_by_inverse_layer_idx", False),
        "add_cross_attention": not told.get("add_cross_attention", False),
    }
    if missing := [name for name, fits in rules.items() if not fits]:
        raise UserError(f"a GPT-2 with {', '.join(f'{name} {told.get(name)!r}' for name in missing)} has no place here")
    d_model = told["n_embd"]
    return ModelConfig(
        vocab_size=told["vocab_size"],
        d_model=d_model,
        depth=told["n_layer"],
        context=told["n_positions"],
        positions="learned",
        norm="layer",
        norm_eps=float(told.get("layer_norm_epsilon", 1e-5)),
        mixer=AttentionConfig(n_heads=told["n_head"], bias="all"),
        channel=MLPConfig(d_ff=told.get("n_inner") or 4 * d_model, activation="gelu", bias="all"),
        head=HeadConfig("tied" if told.get("tie_word_embeddings", True) else "untied"),
    )


def _gpt2_values(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    values = {"embedding.table": tensors["wte.weight"], "positions.table": tensors["wpe.weight"]}
    values |= {f"norm.{part}": tensors[f"ln_f.{part}"] for part in ("weight", "bias")}
    values |= {} if config.head.kind == "tied" else {"head.weight": tensors["lm_head.weight"]}
    for i in range(config.depth):
        own, at = f"h.{i}.", f"blocks.{i}."
        for part, w in (("weight", "w_"), ("bias", "b_")):
            split = np.split(tensors[f"{own}attn.c_attn.{part}"], 3, axis=-1)
            values |= {f"{at}mixer.{w}{name}": array for name, array in zip("qkv", split, strict=True)}
            values[f"{at}mixer.{w}o"] = tensors[f"{own}attn.c_proj.{part}"]
            for theirs, ours in (("ln_1", "mixer_norm"), ("ln_2", "channel_norm")):
                values[f"{at}{ours}.{part}"] = tensors[f"{own}{theirs}.{part}"]
        for theirs, ours in (("c_fc", "up"), ("c_proj", "down")):
            values[f"{at}channel.{ours}"] = tensors[f"{own}mlp.{theirs}.weight"]
            values[f"{at}channel.b_{ours}"] = tensors[f"{own}mlp.{theirs}.bias"]
    return values


def _placed(model: Any, path: list[str], array: np.ndarray, folder: Path, name: str) -> Any:
    def at(node: Any) -> Any:
        for step in path:
            node = node[int(step)] if step.isdigit() else getattr(node, step)
        return node

    wanted = at(model).shape
    if array.shape != wanted:
        raise UserError(f"{folder}: {name} has shape {list(array.shape)}, its config.json says {list(wanted)}")
    return eqx.tree_at(at, model, jnp.asarray(np.ascontiguousarray(array), jnp.float32))


def _host(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)
