"""What the tests of tokenizers share: a corpus, texts of every kind, and the round trip."""

import numpy as np
from hypothesis import strategies as st

from eqx_slm.data import Corpus

SAMPLE = """def f(self, x):
    return 'self' + "don't" * 1234567  # naïve café 日本語 🙂

\tif x is None:\r
        pass
"""
CORPUS = Corpus(
    "sample", (SAMPLE * 3, "class A:\n    pass\n" * 20), (SAMPLE,), ("x = 1\n",), split_rule="", hash="sample"
)

# Characters that every Unicode table since Python 3.11's has: trainer and encoder may carry newer ones.
assigned = st.characters(exclude_categories=("Cs", "Cn"))
texts = (
    st.text(assigned)
    | st.text("aAbB '_\t\n\r0129.()\u00a0\u3000é日")
    | st.text(st.characters(exclude_categories=("Cs",)))
)


def check_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert ids.size == 0 or (0 <= ids.min() and ids.max() < tokenizer.vocab_size)
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)
    assert tokenizer.byte_lengths.dtype == np.int32
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode("utf-8"))
