"""The examples of README and docs are doctests, run from the repository's root."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


# Pages, and how many examples they have at least.
PAGES = {
    "README.md": 20,
    "docs/mixers.md": 16,
    "docs/data.md": 5,
    "docs/devices.md": 12,
    "docs/sharding.md": 12,
    "docs/studies.md": 10,
    "docs/using.md": 17,
    "docs/scaling.md": 13,
    "docs/embeddings.md": 9,
    "docs/ladder.md": 7,
}


def files_of(page: str) -> dict[str, str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return {name: body for body, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", text, re.DOTALL)}


@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A block that starts with a file's name is that file, and the examples import it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    results = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= PAGES[page]
    assert results.failed == 0


def test_pictures_and_links_exist() -> None:
    targets = []
    for page in PAGES:
        folder = (ROOT / page).parent
        found = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
        targets += [folder / target for target in found if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not target.exists()] == []


# Run in a copy of the package with the page's file and its one line, and nothing else.
FIFTH = """
import json
import jax, jax.numpy as jnp, numpy as np
from eqx_slm import ModelConfig, OptimizerConfig, build, count_parameters, flops, generate, make_program, memory
from eqx_slm.configs import from_dict, set_field, to_dict

config = set_field(ModelConfig(vocab_size=16, d_model=8, depth=2, context=9), "mixer.kind", "fade")
assert type(config.mixer).__module__ == "eqx_slm.nn.fade"
assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config
model = build(config, key=jax.random.key(0))
assert count_parameters(model) == count_parameters(config)
assert flops(config).total > 0 and memory(config, batch_size=2).total > 0

program = make_program(model, OptimizerConfig())
state = program.start(model)
tokens = np.random.default_rng(0).integers(0, 16, (2, 10)).astype(np.int32)
losses = []
for _ in range(3):
    state, metrics = program.step(state, tokens, np.float32(1e-2))
    losses.append(float(metrics.loss))
assert losses[0] > losses[1] > losses[2], losses

@jax.jit
def forms(tokens):
    head, after = model.prefill(tokens[:4], model.start(9))
    return model.features(model.embedding(tokens[:5])), jnp.stack([*head, model.step(tokens[4], after).y])

np.testing.assert_allclose(*forms(tokens[0]), atol=1e-5)
assert generate(model, tokens[0, :3], tokens=4, context=9, key=jax.random.key(1)).shape == (4,)
print("built, trained, counted, decoded")
"""


def test_a_fifth_mixer_is_one_file_and_one_line(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "mixers.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```python\n(    from \.nn\.fade import FadeConfig\n)```", text)
    shutil.copytree(ROOT / "eqx_slm", tmp_path / "eqx_slm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "eqx_slm" / "nn" / "fade.py").write_text(files_of("docs/mixers.md")["fade.py"], encoding="utf-8")
    build = tmp_path / "eqx_slm" / "model.py"
    before, above, after = build.read_text(encoding="utf-8").partition(
        "    from .nn.attention import AttentionConfig\n"
    )
    assert "class Mixers:" in before and "class Channels:" in after
    build.write_text(before + above + line + after, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-c", FIFTH],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == "built, trained, counted, decoded"
