"""What does a batch of generated embeddings cost? `embed_batch` against literal transcriptions, in JAX and PyTorch.

    python -m benchmarks generator [--data-root FOLDER]

Forward and backward (gradients of all parameters) at published sizes, D = 512, 32,768 tokens: consecutive tokens of
WikiText-2's training text in o200k_base, then tokens that are all distinct. The transcriptions evaluate every token,
write the splines' full basis out, and multiply as sign * exp(sum(log)), as the formula suggests; they run as 16
micro-batches of 2,048, of which two are timed (they do the same work for any token): at once they would need tens of
GiB, which `memory_analysis` of the compiled, never executed program tells. Each side has a process of its own, and they
take turns; all keep freed memory, without which PyTorch alone took eight times as long.
"""

import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm.nn import LeviathanEmbedding, embed_batch
from eqx_slm.nn.leviathan import EPS
from eqx_slm.train import keep_freed_memory

from .harness import Row, Worker, cores, interleave, need, parser, serve, show
from .training import temporaries, zipf_batches

VOCAB, D_MODEL, TOKENS, MICRO, ROUNDS = 200_019, 512, 32_768, 2048, 3
SMALL = 200_019, 64, 1024, 64, 2
TIMED = 2
Parameters = dict[str, Any]


def parameters(embedding: LeviathanEmbedding) -> Parameters:
    """What the formula names, the splines' coefficients themselves instead of their offsets from 1."""
    names = ("codebooks", "w_in", "norm_weight", "norm_bias", "w_out")
    return {name: getattr(embedding, name) for name in names} | {"spline": 1 + embedding.spline_offset}


def literal_jax(p: Parameters, ids: jax.Array) -> jax.Array:
    """The formula in JAX: a vector an id."""
    k, base, _ = p["codebooks"].shape
    digits = jnp.stack([ids // base ** (k - 1 - r) % base for r in range(k)])
    z_ts = sum(p["codebooks"][r][digits[r]] for r in range(k))
    pre_ths = jnp.einsum("ts,hsz->thz", z_ts, p["w_in"])
    mean, variance = pre_ths.mean(-1, keepdims=True), pre_ths.var(-1, keepdims=True)
    normal = (pre_ths - mean) / jnp.sqrt(variance + EPS) * p["norm_weight"][None] + p["norm_bias"][None]
    u_ths = jax.nn.sigmoid(normal / 2)
    knots = p["spline"].shape[2]
    grid = jnp.linspace(0, 1, knots)[None, None, None]
    d = jnp.abs(u_ths[..., None] - grid) * (knots - 1)
    basis_thsg = jnp.where(d < 0.5, 0.75 - d**2, jnp.where(d < 1.5, 0.5 * (1.5 - d) ** 2, 0))
    basis_thsg = basis_thsg / basis_thsg.sum(-1, keepdims=True)
    phi_thsr = jnp.einsum("thsg,hsgr->thsr", basis_thsg, p["spline"])
    sign = jax.lax.stop_gradient(jnp.sign(phi_thsr).prod(2))
    modes_thr = sign * jnp.exp(jnp.log(jnp.abs(phi_thsr) + 1e-9).sum(2))
    return jnp.einsum("thr,hrd->td", modes_thr, p["w_out"])


def literal_torch(p: Parameters, ids: Any) -> Any:
    """The formula in PyTorch, line for line."""
    import torch

    k, base, _ = p["codebooks"].shape
    digits = torch.stack([ids // base ** (k - 1 - r) % base for r in range(k)])
    z_ts = sum(p["codebooks"][r][digits[r]] for r in range(k))
    pre_ths = torch.einsum("ts,hsz->thz", z_ts, p["w_in"])
    mean, variance = pre_ths.mean(-1, keepdim=True), pre_ths.var(-1, keepdim=True, unbiased=False)
    normal = (pre_ths - mean) / torch.sqrt(variance + EPS) * p["norm_weight"] + p["norm_bias"]
    u_ths = torch.sigmoid(normal / 2)
    knots = p["spline"].shape[2]
    d = torch.abs(u_ths[..., None] - torch.linspace(0, 1, knots)) * (knots - 1)
    basis_thsg = torch.where(d < 0.5, 0.75 - d**2, torch.where(d < 1.5, 0.5 * (1.5 - d) ** 2, 0.0))
    basis_thsg = basis_thsg / basis_thsg.sum(-1, keepdim=True)
    phi_thsr = torch.einsum("thsg,hsgr->thsr", basis_thsg, p["spline"])
    sign = torch.sign(phi_thsr.detach()).prod(2)
    modes_thr = sign * torch.exp(torch.log(torch.abs(phi_thsr) + 1e-9).sum(2))
    return torch.einsum("thr,hrd->td", modes_thr, p["w_out"])


def text_tokens(count: int, vocab: int) -> tuple[np.ndarray, str]:
    """Ids, and where they come from."""
    root = os.environ.get("EQX_SLM_DATA")
    path = Path(root or ".") / "wikitext-2" / "train.txt"
    if not root or not path.exists():
        return zipf_batches(vocab, 1, count, 1)[0][0, :count], "Zipf ids (no EQX_SLM_DATA/wikitext-2/train.txt)"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(Path(root) / "tiktoken"))
    import tiktoken

    text = path.read_text(encoding="utf-8")[: 16 * count]
    ids = tiktoken.get_encoding("o200k_base").encode(text, disallowed_special=())
    return np.asarray(ids[:count], np.int32), "WikiText-2 in o200k_base"


def jax_side(literal: Parameters, tokens: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    """Adds up the gradients of `TIMED` micro-batches."""

    def add(total: Parameters, p: Parameters, ids: jax.Array, weight: jax.Array) -> Parameters:
        gradient = jax.grad(lambda p: jnp.sum(literal_jax(p, ids) * weight))(p)
        return jax.tree.map(jnp.add, total, gradient)

    compiled = jax.jit(add, donate_argnums=0)
    parts = list(zip(*(np.split(x, TIMED) for x in (tokens, cotangent)), strict=True))

    def run() -> Any:
        total = jax.tree.map(jnp.zeros_like, literal)
        for ids, weight in parts:
            total = compiled(total, literal, ids, weight)
        return jax.block_until_ready(total)

    return run


def torch_side(literal: Parameters, tokens: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    """The same in PyTorch, which adds gradients up by itself."""
    import torch

    torch.set_num_threads(cores())
    p = {name: torch.tensor(np.asarray(value)).requires_grad_() for name, value in literal.items()}
    ids, weights = torch.tensor(tokens).long().split(len(tokens) // TIMED), torch.tensor(cotangent)
    parts = list(zip(ids, weights.split(len(tokens) // TIMED), strict=True))

    def run() -> None:
        for value in p.values():
            value.grad = None
        for micro, weight in parts:
            (literal_torch(p, micro) * weight).sum().backward()

    return run


def our_side(embedding: LeviathanEmbedding, tokens: np.ndarray, cotangent: np.ndarray) -> Callable[[], Any]:
    """All tokens at once."""
    gradient = eqx.filter_jit(our_gradient)
    ids, weight = jnp.asarray(tokens), jnp.asarray(cotangent)
    return lambda: jax.block_until_ready(gradient(embedding, ids, weight))


def our_gradient(embedding: LeviathanEmbedding, ids: jax.Array, weight: jax.Array) -> LeviathanEmbedding:
    """The gradient of a weighted sum of the embeddings."""
    return eqx.filter_grad(lambda e: jnp.sum(embed_batch(e, ids) * weight))(embedding)


def check(embedding: LeviathanEmbedding, literal: Parameters, tokens: np.ndarray) -> None:
    """All three agree, and so does a gradient of the JAX transcription."""
    import torch

    ours = np.asarray(embed_batch(embedding, jnp.asarray(tokens)))
    scale = np.abs(ours).max()
    theirs = literal_torch({n: torch.tensor(np.asarray(v)) for n, v in literal.items()}, torch.tensor(tokens).long())
    weight = jnp.ones(ours.shape)
    np.testing.assert_allclose(literal_jax(literal, jnp.asarray(tokens)), ours, rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-3, atol=1e-4 * scale)
    gradient = jax.grad(lambda p: jnp.sum(literal_jax(p, jnp.asarray(tokens))))(literal)["w_in"]
    found = our_gradient(embedding, jnp.asarray(tokens), weight).w_in
    np.testing.assert_allclose(gradient, found, rtol=1e-2, atol=1e-3 * float(jnp.abs(found).max()))


SIDES = ("ours", "ours-distinct", "JAX", "PyTorch")


def serve_side(side: str, embedding: LeviathanEmbedding, tokens: np.ndarray, cotangent: np.ndarray, few: slice) -> None:
    """One side in this process, which takes turns."""
    if side in ("JAX", "PyTorch"):
        make = jax_side if side == "JAX" else torch_side
        run = make(parameters(embedding), tokens[few], cotangent[few])
    else:
        distinct = np.random.default_rng(0).permutation(embedding.vocab_size)[: tokens.size].astype(np.int32)
        run = our_side(embedding, tokens if side == "ours" else distinct, cotangent)
    run()  # compiles
    rounds = 3 if side.startswith("ours") else 1
    serve(None, lambda: interleave({"it": run}, rounds=rounds)["it"])


def main() -> None:
    """Prints the two ratios of time and that of memory; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--data-root", help="folder with wikitext-2/train.txt (default: EQX_SLM_DATA)")
    options.add_argument("--side", choices=SIDES)
    arguments = options.parse_args()
    need("torch")
    if arguments.data_root:
        os.environ["EQX_SLM_DATA"] = arguments.data_root
    vocab, d_model, count, micro, rounds = SMALL if arguments.small else (VOCAB, D_MODEL, TOKENS, MICRO, ROUNDS)
    keep_freed_memory()
    embedding = LeviathanEmbedding(vocab, d_model, key=jax.random.key(0))
    tokens, source = text_tokens(count, vocab)
    cotangent = np.random.default_rng(1).normal(size=(count, d_model)).astype(np.float32)
    few = slice(0, TIMED * micro)
    if arguments.side:
        serve_side(arguments.side, embedding, tokens, cotangent, few)
        return
    literal = parameters(embedding)
    check(embedding, literal, tokens[:8])
    small = ["--small"] if arguments.small else []
    workers = {side: Worker("generator", "--side", side, *small) for side in SIDES}
    turns: dict[str, list[float]] = {side: [] for side in workers}
    for side, worker in rounds * list(workers.items()):
        turns[side].append(worker.turn())
    seconds = {side: statistics.median(times) for side, times in turns.items()}
    for worker in workers.values():
        worker.close()
    batches = math.ceil(count / micro)
    seconds |= {name: seconds[name] * batches / TIMED for name in ("JAX", "PyTorch")}
    best = min(seconds["JAX"], seconds["PyTorch"])
    peers = f"JAX {seconds['JAX']:.1f} s, PyTorch {seconds['PyTorch']:.1f} s ({TIMED} of {batches} micro-batches timed)"
    ours, spread = seconds["ours"], seconds["ours-distinct"]
    text = f"{np.unique(tokens).size:,} distinct of {count:,}, {source}"
    shapes = literal, jnp.asarray(tokens), jnp.asarray(cotangent)
    at_once = jax.jit(jax.grad(lambda p, ids, weight: jnp.sum(literal_jax(p, ids) * weight)))
    static = eqx.filter(embedding, eqx.is_array, inverse=True)
    ours_at_once = jax.jit(lambda arrays, ids, weight: our_gradient(eqx.combine(arrays, static), ids, weight))
    temporary = {
        "ours": temporaries(ours_at_once.lower(*eqx.filter((embedding, *shapes[1:]), eqx.is_array)).compile()),
        "JAX": temporaries(at_once.lower(*shapes).compile()),
    }
    memory = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in temporary.items())
    show(
        Row("generator", best / ours, ">= 20", "x faster", f"ours {ours:.2f} s, {text}; {peers}"),
        Row("generator-distinct", best / spread, ">= 3", "x faster", f"ours {spread:.2f} s, all distinct; {peers}"),
        Row("generator-memory", temporary["ours"] / temporary["JAX"], "<= 0.1", "x the temporaries", memory),
        small=arguments.small,
    )


if __name__ == "__main__":
    main()
