"""The config.json of transformers' Llama, Mistral and GPT-2 as a config of ours, or one line on what has no place."""

from collections.abc import Mapping
from typing import Any

from ..checks import INT32, real, shown, whole
from ..configs import from_dict
from ..errors import UserError
from ..model import ModelConfig, TaperConfig
from ..nn.attention import AttentionConfig
from ..nn.head import HeadConfig
from ..nn.mlp import MLPConfig
from ..nn.table import TableConfig

EPS = 1e-6
KINDS = {"llama": "a Llama", "mistral": "a Mistral", "tapered_llama": "a tapered Llama", "gpt2": "a GPT-2"}
BARE = ("LlamaModel", "MistralModel", "TaperedLlamaModel", "GPT2Model")
# What decides the function and has one place here: the values that do, the first of them the class's default. Keys
# that a class of transformers does not read change nothing and are not looked at.
LLAMA = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),  # releases of transformers differ in whether they heed it
    "is_causal": (True,),
}
GPT2 = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "add_cross_attention": (False, None),
    "is_causal": (True,),
}
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
ROPE = {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1, None)}


def imported_config(told: Any) -> ModelConfig:
    """The config of the model that transformers builds from a config.json's content.

    **Raises:** `UserError` for other kinds of models, for values of a wrong type or out of range, and for what our
    modules have no place for, naming key and value.
    """
    kind = told.get("model_type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        there = f"is of model_type {shown(kind)}" if kind else "names no model_type: it is no model of transformers"
        raise UserError(f"it {there}; {', '.join(KINDS)} can be imported")
    _check_task(told)
    try:
        return _from_gpt2(told) if kind == "gpt2" else _from_llama(told, kind)
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # sizes that do not fit each other
        raise UserError(" ".join(str(error).split())) from None


def _check_task(told: Mapping[str, Any]) -> None:
    names = told.get("architectures") or []
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not listed or not all(name.endswith(("ForCausalLM", "LMHeadModel")) or name in BARE for name in names):
        raise UserError(
            f"architectures {shown(names)} is no language model: ...ForCausalLM, GPT2LMHeadModel and the bare models "
            "can be imported"
        )
    if (quantized := told.get("quantization_config")) is not None:
        method = quantized.get("quant_method", quantized) if isinstance(quantized, dict) else quantized
        raise UserError(
            f"quantization_config of {shown(method)}: quantized weights are not read; give the original in float16, "
            "bfloat16 or float32, or dequantize it and save it again"
        )


def _check_fixed(told: Mapping[str, Any], fixed: Mapping[str, tuple], what: str) -> None:
    if missing := [name for name, fits in fixed.items() if name in told and told[name] not in fits]:
        given = ", ".join(f"{name} {shown(told[name])}" for name in missing)
        allowed = ", ".join(f"{name} {fixed[name][0]!r}" for name in missing)
        raise UserError(f"{what} with {given} has no place here: {allowed} can be imported")


def _from_llama(told: Mapping[str, Any], kind: str) -> ModelConfig:
    what = KINDS[kind]
    _check_fixed(told, LLAMA, what)
    mistral = kind == "mistral"
    d_model, context = _size(told, "hidden_size"), _size(told, "max_position_embeddings")
    heads = _size(told, "num_attention_heads")
    # Mistral's own defaults, of keys that are not there (null is another value).
    groups = _size_or(told, "num_key_value_heads", heads) if "num_key_value_heads" in told or not mistral else 8
    window = _size_or(told, "sliding_window", None) if "sliding_window" in told or not mistral else 4096
    if heads % groups:
        raise UserError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={groups}")
    if window is not None and window < context:
        default = "" if "sliding_window" in told else " (Mistral's default)"
        raise UserError(
            f"{what} with sliding_window {window}{default} has no place here: null, or at least "
            f"max_position_embeddings, {context}, can be imported"
        )
    if told.get("head_dim") is None and d_model % heads:
        raise UserError(f"hidden_size={d_model} is no multiple of num_attention_heads={heads}: head_dim is needed")
    width = _size_or(told, "head_dim", d_model // heads)
    if not width or width % 2:
        raise UserError(
            f"head_dim={width} (hidden_size / num_attention_heads where it is not given): it must be even, as rotary "
            "positions turn pairs of channels"
        )
    layers = told.get("layer_types") or ["full_attention"]
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise UserError(f"{what} with layer_types {shown(layers)} has no place here: 'full_attention' can be imported")
    depth = _size(told, "num_hidden_layers", most=10_000)
    taper, d_ff = _taper(told, depth) if kind == "tapered_llama" else (TaperConfig(), _size(told, "intermediate_size"))
    return ModelConfig(
        vocab_size=_size(told, "vocab_size"),
        d_model=d_model,
        depth=depth,
        context=context,
        mixer=AttentionConfig(n_heads=heads, n_kv_heads=groups, d_head=width, rotary_base=_rope_base(told, what)),
        channel=MLPConfig(d_ff=d_ff),
        taper=taper,
        norm_eps=_real(told, "rms_norm_eps", EPS),
        embedding=TableConfig(),
        head=_head(told, tied=False),
    )


def _rope_base(told: Mapping[str, Any], what: str) -> float:
    """The base of the rotary positions; `UserError` for all but the plain ones, the same in all layers."""
    for name in ("rope_scaling", "rope_parameters"):
        given = told.get(name)
        if given is None:
            continue
        if not isinstance(given, dict) or not given.keys() <= {*ROPE, "rope_theta"}:
            raise UserError(
                f"{what} with {name} {shown(given)} has no place here: null, or an object of rope_type 'default' and "
                "a rope_theta for all layers, can be imported"
            )
        _check_fixed(given, ROPE, f"{name} of {what}")
    own = told.get("rope_scaling") or told.get("rope_parameters") or {}  # as transformers chooses
    base = _real(own if "rope_theta" in own else told, "rope_theta", 10_000.0)
    if base < 1:  # angles beyond what float32 tells apart: no two programs would agree on them
        raise UserError(f"rope_theta={base}: it must be at least 1")
    return base


def _taper(told: Mapping[str, Any], depth: int) -> tuple[TaperConfig, int]:
    """The taper and the mean width of a Llama's layers; `UserError` for widths that no taper of ours gives."""
    widths = told.get("intermediate_sizes")
    if not widths:
        return TaperConfig(), _size(told, "intermediate_size")
    if not isinstance(widths, list) or len(widths) != depth:
        raise UserError(f"intermediate_sizes {shown(widths)}: a list of {depth}, the width of every layer, is needed")
    widths = [_size({"intermediate_sizes": width}, "intermediate_sizes") for width in widths]
    if len(set(widths)) == 1:
        return TaperConfig(), widths[0]
    own = told.get("taper")
    if not isinstance(own, dict) or own.get("width") is None:
        raise UserError(f"intermediate_sizes {shown(widths)} are of no taper that the config names: not imported")
    taper = from_dict(TaperConfig, {name: value for name, value in own.items() if name != "width"}, "taper")
    width = _size(own, "width")
    if list(taper.widths(depth, width)) != widths:
        raise UserError(f"intermediate_sizes {shown(widths)} are of no taper that the config names: not imported")
    return taper, width


def _from_gpt2(told: Mapping[str, Any]) -> ModelConfig:
    _check_fixed(told, GPT2, KINDS["gpt2"])
    for alias, name in GPT2_ALIASES.items():
        if alias in told and told[alias] != told.get(name):
            raise UserError(f"{alias} {shown(told[alias])} is a GPT-2's {name}, {shown(told.get(name))}: write one")
    d_model, heads = _size(told, "n_embd"), _size(told, "n_head")
    if d_model % heads:
        raise UserError(f"n_embd={d_model} is no multiple of n_head={heads}")
    return ModelConfig(
        vocab_size=_size(told, "vocab_size"),
        d_model=d_model,
        depth=_size(told, "n_layer", most=10_000),
        context=_size(told, "n_positions"),
        positions="learned",
        norm="layer",
        norm_eps=_real(told, "layer_norm_epsilon", 1e-5),
        mixer=AttentionConfig(n_heads=heads, bias="all"),
        channel=MLPConfig(d_ff=_size_or(told, "n_inner", 4 * d_model), activation="gelu", bias="all"),
        head=_head(told, tied=True),
    )


def _head(told: Mapping[str, Any], tied: bool) -> HeadConfig:
    tied = told.get("tie_word_embeddings", tied)
    if not isinstance(tied, bool):
        raise UserError(f"tie_word_embeddings={shown(tied)}: it must be true or false")
    return HeadConfig("tied" if tied else "untied")


def _size(told: Mapping[str, Any], name: str, most: int = INT32) -> int:
    """A size that must be there; 2.0 counts as 2."""
    if name not in told:
        raise UserError(f"it lacks {name!r}: a whole number, at least 1, is needed")
    value = told[name]
    return whole(name, int(value) if isinstance(value, float) and value.is_integer() else value, most=most)


def _size_or(told: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """A size, or what stands for null and for none."""
    return otherwise if told.get(name) is None else _size(told, name)


def _real(told: Mapping[str, Any], name: str, default: float) -> float:
    value = told.get(name, default)
    try:
        real(name, value)
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise UserError(f"{name}={shown(value)}: it must be finite, as a float") from None
