"""The miniature: a small world whose truth is known, and the text that it gives to train on.

valley.py           every fact, as tables                                     (data)
world.py            the facts as objects: who and what there is, and how one speaks of it
story_phrases.py    how what happens in stories is told                       (data)
fact_phrases.py     how facts are stated, asked for and answered              (data)
chooser.py          random choices that add up their −log p; what is held out
stories.py          plots: what happens, from a state that changes
facts.py            portraits, questions and answers, talks, lists, sums
corpus.py           all of these, mixed into an endless stream of documents
grammar.py          the way back: is a sentence one of the world's, and is it true?
"""

from minillama.miniature.corpus import Story, corpus, entropy
from minillama.miniature.grammar import Examination, examine
from minillama.miniature.stories import Event, Topic

__all__ = ["Event", "Examination", "Story", "Topic", "corpus", "entropy", "examine"]
