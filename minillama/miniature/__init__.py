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

chat_phrases.py     the words of requests, refusals and disguises             (data)
conversation.py     requests with good answers, what they ask for, their splits
instructions.py     harmless requests: facts, lists, sums, what to do
story_requests.py   harmless requests: tell a story, end it, answer a question about it
personas.py         instructions that hold for a whole conversation, and whether they are obeyed
prompts.py          unsafe requests with refusals, and harmless ones that sound like them
dialogues.py        all of these as endless streams
risks.py            the words by which a refusal and a violation are known    (data)
judge.py            how helpful and how safe an answer is
annotator.py        preferences between two answers, with the errors that people make
export.py           conversations as JSONL
"""

from minillama.miniature.corpus import Story, corpus, entropy
from minillama.miniature.grammar import Examination, examine
from minillama.miniature.stories import Event, Topic

__all__ = ["Event", "Examination", "Story", "Topic", "corpus", "entropy", "examine"]
