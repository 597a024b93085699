"""Data for training: documents out of text, JSONL and public sets, and the tokens of them on disk."""

from minillama.data.shards import TokenData, TokenSplit, is_prepared, tokenize
from minillama.data.sources import Document, documents

__all__ = ["Document", "TokenData", "TokenSplit", "documents", "is_prepared", "tokenize"]
