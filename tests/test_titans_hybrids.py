"""MAG and MAC: whole pass against prefill and steps, no leak to earlier tokens, persistent tokens, and the books."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled, is_parameter

from eqx_slm import ModelConfig, count_parameters
from eqx_slm.nn.titans import TitansConfig
from eqx_slm.nn.titans_mac import TitansMACConfig
from eqx_slm.nn.titans_mag import TitansMAGConfig

D, C, T = 8, 3, 8
MEMORY = TitansConfig(n_heads=2, chunk=C, persistent=2, memory_norm="none")
# A window of three tokens: eight tokens go block by block, five do not.
CONFIGS = {"mag": TitansMAGConfig(memory=MEMORY, window=3), "mac": TitansMACConfig(memory=MEMORY)}
FAST = dict(compiler_options={"xla_backend_optimization_level": 0})  # half the time to compile
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@functools.cache
def programs(config):
    shapes = eqx.filter_eval_shape(lambda key: config.build(D, key=key), jax.random.key(0))
    static = eqx.partition(shapes, is_parameter)[1]
    forms = {
        name: jax.jit(lambda params, *a, name=name: getattr(eqx.combine(params, static), name)(*a), **FAST)
        for name in ("__call__", "prefill", "step")
    }
    return forms | {"start": jax.jit(lambda params: eqx.combine(params, static).start(T), **FAST)}


def parameters(config):
    """In float64, at a scale where memory, gates and attention matter."""
    mixer = filled(lambda key: config.build(D, key=key), std=0.5, dtype=np.float64)
    return eqx.filter(mixer, eqx.is_inexact_array)


def whole(config):
    """The mixer itself."""
    return eqx.combine(parameters(config), filled(lambda key: config.build(D, key=key)))


def close(a, b):
    for x, y in zip(jax.tree.leaves(as_numpy(a)), jax.tree.leaves(as_numpy(b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


@both
def test_whole_pass_prefill_and_steps_are_one_function(config):
    """At splits below, at and across segment and window boundaries; the state agrees as well."""
    with jax.enable_x64(True):
        forms, params = programs(config), parameters(config)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))

        def pieces(cuts):
            state, outputs = forms["start"](params), []
            for begin, end in zip((0, *cuts), (*cuts, T), strict=True):
                form, piece = ("step", x[begin]) if end - begin == 1 else ("prefill", x[begin:end])
                y, state = forms[form](params, piece, state)
                outputs.append(np.asarray(y).reshape(-1, D))
            return np.concatenate(outputs), state

        steps, last = pieces(range(1, T))
        assert np.abs(steps).max() > 0.1
        close(forms["__call__"](params, x), steps)
        close(forms["__call__"](params, x[: C - 1]), steps[: C - 1])
        for cuts in ((), (C,), (C + 1,), (C, *range(C + 1, T)), (C + 1, *range(C + 2, T)), (1, 2 * C - 1)):
            got, state = pieces(cuts)
            close(got, steps)
            close(live(state, config), live(last, config))


def live(state, config):
    """A decode state without the rows of a cache that hold nothing any more."""
    if isinstance(config, TitansMAGConfig):
        return state
    seen = state.memory.phase
    return state._replace(cache=jax.tree.map(lambda a: a[:seen], state.cache))


@both
def test_no_output_depends_on_a_later_token(config):
    """Exactly zero, within segments and across: the recalled tokens and the second read included."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))
        jacobian = jax.jit(jax.jacfwd(whole(config)), **FAST)(x)
    influence = np.abs(np.asarray(jacobian)).max(axis=(1, 3))
    assert (influence[np.triu_indices(T, 1)] == 0).all()
    assert (influence[np.tril_indices(T)] > 1e-9).all()


@both
def test_every_leaf_learns_and_a_batch_is_its_sequences(config):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, D)))
        pull = jnp.asarray(np.random.default_rng(2).normal(size=(2, T, D)))
        params, static = eqx.partition(whole(config), eqx.is_inexact_array)

        def loss(params):
            mixer = eqx.combine(params, static)
            y = (getattr(mixer, "batch", None) or jax.vmap(mixer))(x)
            return (y * pull).sum(), y

        gradient, y = jax.jit(jax.grad(loss, has_aux=True), **FAST)(params)
        for i in range(2):
            close(y[i], programs(config)["__call__"](parameters(config), x[i]))
    for leaf in jax.tree.leaves(as_numpy(gradient)):
        assert np.isfinite(leaf).all() and (np.abs(leaf) > 0).mean() > 0.9


@both
def test_closed_forms(config):
    shapes = eqx.filter_eval_shape(lambda key: config.build(D, key=key), jax.random.key(0))
    assert config.parameters(D) == count_parameters(shapes)
    state = jax.eval_shape(lambda: filled(lambda key: config.build(D, key=key)).start(T))
    assert config.state_numbers(D, T) == sum(int(np.prod(a.shape)) for a in jax.tree.leaves(state) if a.shape)
    assert config.activations(D, T) > 0


@pytest.mark.parametrize("kind", [TitansMAGConfig, TitansMACConfig])
def test_flops_equal_xlas_count_of_one_segment(kind):
    """A context of one chunk. XLA also counts the masked half of attention; MAG's last write is unused."""
    d, context = 1024, 256
    memory = TitansConfig(n_heads=4, chunk=context)
    config = kind(memory=memory, window=context) if kind is TitansMAGConfig else kind(memory=memory)
    params, static = eqx.partition(
        eqx.filter_eval_shape(lambda key: config.build(d, key=key), jax.random.key(0)), is_parameter
    )
    x = jax.ShapeDtypeStruct((context, d), jnp.float32)
    run = jax.jit(lambda params, x: eqx.combine(params, static)(x))
    cost = run.lower(params, x).cost_analysis()
    counted = (cost[0] if isinstance(cost, list) else cost)["flops"] / context
    masked = 2 * d * context * (1 if kind is TitansMAGConfig else 2)
    unused = 4 * memory.memory_numbers(d) if kind is TitansMAGConfig else 0
    assert counted - masked + unused == pytest.approx(config.flops(d, context), rel=0.02)


def test_bad_sizes_and_states_are_refused_in_one_line():
    for config, named in (
        (TitansMAGConfig(window=0), "window=0: a token sees at least itself"),
        (TitansMAGConfig(memory=TitansConfig(n_heads=8)), "head width 1 is odd"),
        (TitansMACConfig(memory=TitansConfig(n_heads=3)), "d_model=8 is not divisible by n_heads=3"),
        (TitansMACConfig(memory=TitansConfig(chunk=0)), "chunk=0: it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=named) as caught:
            ModelConfig(d_model=8, mixer=config)
        assert "\n" not in str(caught.value)
    mag, mac = (filled(lambda key, c=c: c.build(D, key=key)) for c in CONFIGS.values())
    for mixer, other, named in (
        (mag, mac, "MACState.*TitansMAG decodes"),
        (mac, mag, "MAGState.*TitansMAC decodes"),
    ):
        state = jax.eval_shape(lambda other=other: other.start(T))
        for call in (mixer.step, mixer.prefill):
            with pytest.raises(ValueError, match=named):
                call(jnp.ones((D,) if call == mixer.step else (2, D)), state)
