"""The miniature: a small world whose truth is known, and the text that it gives to train on.

world.py            the valley: who and what is in it, and every fact
story_phrases.py    how what happens in stories is told     (data)
fact_phrases.py     how facts are stated and asked for      (data)
chooser.py          random choices that add up their −log p
stories.py          plots: what happens, from a state that changes
facts.py            portraits, questions and answers, talks, lists, sums
corpus.py           all of these, mixed into an endless stream of documents
"""

from minillama.miniature.corpus import Story, corpus
from minillama.miniature.stories import Event

__all__ = ["Event", "Story", "corpus"]
