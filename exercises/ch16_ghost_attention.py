"""Chapter 16: Ghost Attention. Write the functions; the chapter says what each is for.

    minillama exercises check ch16      what is right, and the first thing that is not
    minillama exercises hint ch16       the next hint

When 16.1, 16.2 and 16.3 are right, they make the data of a small run, and it is trained on them (here of 40 dialogues;
`make book` has made the model that it begins with):

    minillama exercises run --with ch16 -- gatt --model runs/mini/sft --data miniature:40 --out runs/my-gatt

A message is {"role": "user" or "assistant", "content": text}; a dialogue is a list of them, the user's first, by turns.
T tokens of a dialogue, V vocabulary. Losses are in nats.
"""

from collections.abc import Sequence

import numpy as np

from minillama.backend import Array
from minillama.chat import Message

# 16.1 · warm-up --------------------------------------------------------------


def instruct(instruction: str, requests: Sequence[str]) -> list[str]:
    """What the user says while the dialogue is sampled: the instruction and a space before each of the requests.

    Returns a list as long as `requests`.
    """
    # Hint: To sample, the model is reminded before each answer: every request gets the instruction.
    raise NotImplementedError


# 16.2 · warm-up --------------------------------------------------------------


def strip_instruction(messages: list[Message], instruction: str) -> list[Message]:
    """The dialogue to train on: the instruction stays in the first request and is taken off all later ones.

    messages: as they were sampled; each request begins with the instruction and a space. What else is said stays as it
    is, even where it quotes the instruction. Returns new messages.
    """
    # Hint: Of the messages with role "user", all but the first lose what they begin with.
    raise NotImplementedError


# 16.3 · core -----------------------------------------------------------------


def last_answer_mask(loss_mask: Array) -> Array:
    """The mask of the last answer alone.

    loss_mask: (T,) bool, true on the tokens of every answer, end tokens included; between two answers stands at least
    one token of the user's. Returns (T,) bool, true on the tokens of the last answer.
    """
    # Hint: The last answer begins after the last token that is nobody's answer but has an answer behind it.
    raise NotImplementedError


# 16.4 · core -----------------------------------------------------------------
# Forward and backward in one: the gradient needs what the loss has computed.


def answer_loss(logits: Array, tokens: Array, loss_mask: Array) -> tuple[float, Array]:
    """Mean -log p of the tokens that are learned, each given those before it, and its gradient.

    logits: (T, V) float; row t is the model's prediction of token t + 1. tokens: (T,) integers. loss_mask: (T,) bool,
    true where a token is learned (never the first). Returns the loss and dlogits (T, V).
    """
    # Hint: The logits at t speak about token t + 1. So logits[:-1] meet tokens[1:], and loss_mask[1:] says which count.
    raise NotImplementedError


# 16.5 · core -----------------------------------------------------------------


def obeyed_by_turn(obeyed: Array) -> Array:
    """The share of dialogues that obey at each turn, with Wilson's 95 % interval (z = 1.96).

    obeyed: (n, turns) bool, of n dialogues. The ends of the interval are the two p' with
    (p - p')² = z² p' (1 - p') / n. Returns (turns, 3) float64: the share p, its lower and its upper end.
    """
    # Hint: The mean over axis 0 is the share p of each turn; n is the number of dialogues.
    raise NotImplementedError


# 16.6 · stretch --------------------------------------------------------------
# Then ask: what does this cost in memory, against sampled tokens, and what does it save in variance?


def distil(teacher: Array, student: Array) -> tuple[float, Array]:
    """Context distillation without sampling: the mean over n tokens of KL(teacher || student), and its gradient.

    teacher: (n, V) logits of the model that is reminded on every turn, at the places that predict the last answer's n
    tokens. student: (n, V) logits of the one that reads the instruction in the first turn only, at the same tokens. The
    teacher is fixed. Returns the loss in nats and dstudent (n, V).
    """
    # Hint: log p = z - logsumexp(z) for both. KL(p || q) = Σ p (log p - log q), summed over V, averaged over n.
    raise NotImplementedError
