"""Text to batches: corpora, tokenizers and token streams."""

from .base import Stream as Stream
from .corpora import Corpus as Corpus
from .open import open_data as open_data
from .prepared import PreparedStream as PreparedStream
from .prepared import open_prepared as open_prepared
from .preparing import prepare as prepare
from .sources import load_corpus as load_corpus
from .sources import open_source as open_source
from .splits import SplitRule as SplitRule
from .splits import split_rule as split_rule
from .state import StreamState as StreamState
from .stream import TokenStream as TokenStream
from .stream import make_stream as make_stream
from .streaming import StreamingStream as StreamingStream
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import make_tokenizer as make_tokenizer
