"""Text to batches: corpora, tokenizers and token streams."""

from .corpora import Corpus as Corpus
from .open import make_stream as make_stream
from .open import open_data as open_data
from .open import open_prepared as open_prepared
from .preparing import prepare as prepare
from .sources import load_corpus as load_corpus
from .sources import open_source as open_source
from .splits import SplitRule as SplitRule
from .splits import split_rule as split_rule
from .state import StreamState as StreamState
from .stream import Stream as Stream
from .stream import TokenStream as TokenStream
from .streaming import StreamingStream as StreamingStream
from .tokenizer import Tokenizer as Tokenizer
from .vocabulary import make_tokenizer as make_tokenizer
