"""Text to batches: corpora, tokenizers and token streams."""

from .corpus import Corpus as Corpus
from .corpus import load_corpus as load_corpus
from .stream import TokenStream as TokenStream
from .stream import make_stream as make_stream
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import make_tokenizer as make_tokenizer
