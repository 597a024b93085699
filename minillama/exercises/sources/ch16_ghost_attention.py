"""Chapter 16, Ghost Attention: exercises, solutions and typical wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minillama import layers
from minillama.alignment import rollout
from minillama.alignment.rollout import FULL, Chatter
from minillama.backend import Array
from minillama.chat import ChatTemplate, Dialogue, Message
from minillama.data.dialogues import ChatExample
from minillama.exercises.chapter import Case, Chapter, Functions
from minillama.generate import Sampling
from minillama.tokenizer import Tokenizer

chapter = Chapter(
    "ch16_ghost_attention",
    "Ghost Attention",
    """Chapter 16: Ghost Attention. Write the functions; the chapter says what each is for.

    minillama exercises check ch16      what is right, and the first thing that is not
    minillama exercises hint ch16       the next hint

When 16.1, 16.2 and 16.3 are right, they make the data of a small run, and it is trained on them (here of 40 dialogues;
`make book` has made the model that it begins with):

    minillama exercises run --with ch16 -- gatt --model runs/mini/sft --data miniature:40 --out runs/my-gatt

A message is {"role": "user" or "assistant", "content": text}; a dialogue is a list of them, the user's first, by turns.
T tokens of a dialogue, V vocabulary. Losses are in nats.""",
)

SHOUT = "Answer in capitals."
END = "End every answer with the word Hooray."


# --- 16.1 the instruction on every turn


def instruct_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {"instruction": SHOUT, "requests": ["Where does Ada live?", "Name three animals.", "What is a map for?"]}
    yield {"instruction": END, "requests": ["Who bakes the bread?"]}


def as_instructed(function: Callable[[str, Sequence[str]], list[str]]) -> Callable[[str | None, str], str]:
    """`rollout.instructed`, which the package calls for each request, by a learner's `instruct`."""

    def instructed(instruction: str | None, request: str) -> str:
        return function(instruction, [request])[0] if instruction else request

    return instructed


@chapter.exercise(
    "warm-up",
    cases=instruct_cases,
    returns=("said",),
    replaces="minillama.alignment.rollout:instructed",
    adapt=as_instructed,
    hints=(
        "To sample, the model is reminded before each answer: every request gets the instruction.",
        "f-strings: instruction, a space, request.",
    ),
)
def instruct(instruction: str, requests: Sequence[str]) -> list[str]:
    """What the user says while the dialogue is sampled: the instruction and a space before each of the requests.

    Returns a list as long as `requests`.
    """
    return [f"{instruction} {request}" for request in requests]


chapter.edit(
    "instruct",
    "only the first request has the instruction: that is the dialogue to train on, not the one to sample.",
    '[f"{instruction} {request}" for request in requests]',
    '[f"{instruction} {requests[0]}", *requests[1:]]',
)
chapter.edit(
    "instruct",
    "the instruction comes after the request: the model was taught to read it before.",
    "{instruction} {request}",
    "{request} {instruction}",
)
chapter.edit(
    "instruct",
    "the space between instruction and request is missing.",
    "{instruction} {request}",
    "{instruction}{request}",
)
chapter.edit(
    "instruct",
    "instruction and request are on lines of their own; the package puts a space between them.",
    "{instruction} {request}",
    "{instruction}\\n{request}",
)


# --- 16.2 and taken off again


def said(*texts: str) -> list[Message]:
    """A dialogue out of what is said in it, by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def strip_cases(_: np.random.Generator) -> Iterator[Case]:
    yield {
        "messages": said(f"{SHOUT} Where does Ada live?", "IN THE MILL.", f"{SHOUT} Name a fruit.", "A PLUM."),
        "instruction": SHOUT,
    }
    # The instruction is also quoted, by the user and by the model: that is part of what they say.
    yield {
        "messages": said(
            f"{END} Hello.",
            "Hello. Hooray!",
            f"{END} Did I say: {END} I forgot.",
            f"Yes. You said: {END} Hooray!",
            f"{END} Thank you.",
            "I am glad. Hooray!",
        ),
        "instruction": END,
    }
    yield {"messages": said(f"{END} Hello.", "Hello. Hooray!"), "instruction": END}


def as_ghost_dialogues(
    function: Callable[[list[Message], str], list[Message]],
) -> Callable[..., list[list[Message]]]:
    """`ghost_attention.ghost_dialogues`, its dialogues stripped by a learner's `strip_instruction`."""

    def ghost_dialogues(
        chatter: Chatter,
        requests: Sequence[Sequence[str]],
        instructions: Sequence[str],
        *,
        sampling: Sampling = FULL,
        seed: int = 0,
        progress: str | None = None,
    ) -> list[list[Message]]:
        sampled = rollout.conversations(
            chatter,
            requests,
            sampling=sampling,
            seed=seed,
            before_every=instructions,
            end_when_full=True,
            progress=progress,
        )
        # One that has filled the context goes without its last answer, which may be cut.
        whole = [d if len(d) == 2 * len(r) else d[:-2] for d, r in zip(sampled, requests, strict=True)]
        return [function(dialogue, said) for dialogue, said in zip(whole, instructions, strict=True)]

    return ghost_dialogues


@chapter.exercise(
    "warm-up",
    cases=strip_cases,
    returns=("messages",),
    replaces="minillama.alignment.ghost_attention:ghost_dialogues",
    adapt=as_ghost_dialogues,
    hints=(
        'Of the messages with role "user", all but the first lose what they begin with.',
        "str.removeprefix takes the text off at the beginning only; the space belongs to it.",
        "Make new messages: the ones given are not to change.",
    ),
)
def strip_instruction(messages: list[Message], instruction: str) -> list[Message]:
    """The dialogue to train on: the instruction stays in the first request and is taken off all later ones.

    messages: as they were sampled; each request begins with the instruction and a space. What else is said stays as it
    is, even where it quotes the instruction. Returns new messages.
    """
    kept: list[Message] = []
    for i, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "user" and i > 0:
            content = content.removeprefix(f"{instruction} ")
        kept.append({"role": message["role"], "content": content})
    return kept


chapter.edit(
    "strip_instruction",
    "the first request has lost its instruction too: then there is nothing to remember.",
    "and i > 0",
    "and i >= 0",
)
chapter.edit(
    "strip_instruction",
    "nothing is taken off: the model would learn to obey what it is told again each time, which it can already.",
    '.removeprefix(f"{instruction} ")',
    "",
)
chapter.edit(
    "strip_instruction",
    "the instruction is taken out wherever a request has it, also where the user quotes it: only at the beginning.",
    '.removeprefix(f"{instruction} ")',
    '.replace(f"{instruction} ", "")',
)
chapter.edit(
    "strip_instruction",
    "the space after the instruction is left at the beginning of the request.",
    '.removeprefix(f"{instruction} ")',
    ".removeprefix(instruction)",
)
chapter.edit(
    "strip_instruction",
    "the instruction stays in the last request as well, right before the answer that is learned.",
    "and i > 0",
    "and 0 < i < len(messages) - 2",
)


# --- 16.3 the last answer only


def mask_cases(_: np.random.Generator) -> Iterator[Case]:
    for text in ("..###..####", ".#", "...##..#....###..", "..##", "#.#.#"):
        yield {"loss_mask": np.array([sign == "#" for sign in text])}


def as_encode(
    function: Callable[[Array], Array],
) -> Callable[[ChatExample, ChatTemplate, Tokenizer], Dialogue]:
    """`finetune.encode` with a learner's mask for dialogues of which not all answers are learned."""

    def encode(example: ChatExample, template: ChatTemplate, tokenizer: Tokenizer) -> Dialogue:
        dialogue = template.encode(example.messages, tokenizer, add_generation_prompt=False)
        if all(example.learned):
            return dialogue
        return Dialogue(dialogue.tokens, np.asarray(function(np.array(dialogue.loss_mask, bool)), bool).tolist())

    return encode


@chapter.exercise(
    "core",
    cases=mask_cases,
    returns=("last",),
    replaces="minillama.training.finetune:encode",
    adapt=as_encode,
    hints=(
        "The last answer begins after the last token that is nobody's answer but has an answer behind it.",
        "Where does an answer begin? Where the mask is true and was false one token before.",
        "With `begin` the last such place, the result is the mask and np.arange(T) >= begin.",
    ),
)
def last_answer_mask(loss_mask: Array) -> Array:
    """The mask of the last answer alone.

    loss_mask: (T,) bool, true on the tokens of every answer, end tokens included; between two answers stands at least
    one token of the user's. Returns (T,) bool, true on the tokens of the last answer.
    """
    before = np.concatenate([[False], loss_mask[:-1]])
    begins = np.flatnonzero(loss_mask & ~before)
    return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])


chapter.edit(
    "last_answer_mask",
    "earlier answers are still learned: in Ghost Attention all tokens of earlier turns have no loss.",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[0])",
)
chapter.edit(
    "last_answer_mask",
    "it is the first answer: the one right after the instruction, which needs no remembering.",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])",
    "return loss_mask & (np.cumsum(loss_mask & ~before) == 1)",
)
chapter.edit(
    "last_answer_mask",
    "it is off by one: the first token of the answer is left out. The shift to targets comes later.",
    ">= begins[-1]",
    "> begins[-1]",
)
chapter.edit(
    "last_answer_mask",
    "it begins one token too early, at the user's last token.",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])",
    "return (loss_mask | np.roll(loss_mask, -1)) & (np.arange(len(loss_mask)) >= begins[-1] - 1)",
)
chapter.edit(
    "last_answer_mask",
    "only the answer's last token is learned, not all of it.",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])",
    "return loss_mask & (np.arange(len(loss_mask)) == np.flatnonzero(loss_mask)[-1])",
)
chapter.edit(
    "last_answer_mask",
    "everything after the answer's beginning is true, also what the template writes behind its end token.",
    "return loss_mask & (np.arange(len(loss_mask)) >= begins[-1])",
    "return np.arange(len(loss_mask)) >= begins[-1]",
)


# --- 16.4 the loss, and what of it goes back


def loss_cases(rng: np.random.Generator) -> Iterator[Case]:
    for T, V, answer in ((9, 5, slice(5, 8)), (6, 3, slice(5, 6)), (7, 4, slice(1, 7))):
        mask = np.zeros(T, bool)
        mask[answer] = True
        yield {"logits": 2 * rng.standard_normal((T, V)), "tokens": rng.integers(0, V, T), "loss_mask": mask}


def gradient_is_its_own(own: Functions) -> str | None:
    """None where the gradient is that of the learner's own loss, by central differences."""
    (case, *_) = loss_cases(np.random.default_rng(1))
    rest = case["tokens"], case["loss_mask"]
    layers.gradcheck(lambda z: own.answer_loss(z, *rest), lambda dy, dz: dy * dz, case["logits"])
    return None


@chapter.exercise(
    "core",
    cases=loss_cases,
    proof=gradient_is_its_own,
    returns=("loss", "dlogits"),
    task="Forward and backward in one: the gradient needs what the loss has computed.",
    hints=(
        "The logits at t speak about token t + 1. So logits[:-1] meet tokens[1:], and loss_mask[1:] says which count.",
        "N is how many count. Subtract the highest logit of each row before you take exponentials.",
        "dlogits: (softmax - onehot) / N where it counts; 0 in all other rows, the last one of all among them.",
    ),
)
def answer_loss(logits: Array, tokens: Array, loss_mask: Array) -> tuple[float, Array]:
    """Mean -log p of the tokens that are learned, each given those before it, and its gradient.

    logits: (T, V) float; row t is the model's prediction of token t + 1. tokens: (T,) integers. loss_mask: (T,) bool,
    true where a token is learned (never the first). Returns the loss and dlogits (T, V).
    """
    z = logits - logits.max(axis=1, keepdims=True)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    at = np.flatnonzero(loss_mask[1:])  # whose successor is learned
    target = tokens[at + 1]
    dlogits = np.zeros_like(logits)
    dlogits[at] = softmax[at] / len(at)
    dlogits[at, target] -= 1 / len(at)
    return float(-np.log(softmax[at, target]).mean()), dlogits


chapter.edit(
    "answer_loss",
    "the mask is off by one: it belongs to the token that is predicted, and row t predicts token t + 1.",
    "np.flatnonzero(loss_mask[1:])",
    "np.flatnonzero(loss_mask[:-1])",
)
chapter.edit(
    "answer_loss",
    "each row is compared with its own token, which the model has read; its target is the next one.",
    "target = tokens[at + 1]",
    "target = tokens[at]",
)
chapter.edit(
    "answer_loss",
    "all tokens count: the mask is not used.",
    "np.flatnonzero(loss_mask[1:])",
    "np.flatnonzero(loss_mask[1:] | True)",
)
chapter.edit(
    "answer_loss",
    "it is a sum: divide loss and gradient by the number of tokens that count.",
    "return float(-np.log(softmax[at, target]).mean()), dlogits",
    "return float(-np.log(softmax[at, target]).sum()), dlogits * len(at)",
)
chapter.edit(
    "answer_loss",
    "it is divided by all T - 1 predictions: the mean is over the tokens that count.",
    "return float(-np.log(softmax[at, target]).mean()), dlogits",
    "share = len(at) / (len(tokens) - 1); return float(-np.log(softmax[at, target]).mean()) * share, dlogits * share",
)
chapter.edit(
    "answer_loss",
    "the loss is right, but softmax is left in the rows that do not count: their gradient is 0.",
    "dlogits = np.zeros_like(logits)",
    "dlogits = softmax / len(at)",
)
chapter.edit(
    "answer_loss",
    "the gradient is not divided by N, and the loss is.",
    "return float(-np.log(softmax[at, target]).mean()), dlogits",
    "return float(-np.log(softmax[at, target]).mean()), dlogits * len(at)",
)


# --- 16.5 obedience, turn by turn


def obedience_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield {"obeyed": rng.random((40, 6)) < np.linspace(1, 0.1, 6)}
    yield {"obeyed": np.array([[True, False], [True, False], [True, True]])}
    yield {"obeyed": np.ones((200, 1), bool)}


@chapter.exercise(
    "core",
    cases=obedience_cases,
    returns=("shares",),
    hints=(
        "The mean over axis 0 is the share p of each turn; n is the number of dialogues.",
        "With z = 1.96 the interval's middle is (p + z² / 2n) / (1 + z² / n).",
        "Its half width is z √(p (1 - p) / n + z² / 4n²) / (1 + z² / n).",
    ),
)
def obeyed_by_turn(obeyed: Array) -> Array:
    """The share of dialogues that obey at each turn, with Wilson's 95 % interval (z = 1.96).

    obeyed: (n, turns) bool, of n dialogues. The ends of the interval are the two p' with
    (p - p')² = z² p' (1 - p') / n. Returns (turns, 3) float64: the share p, its lower and its upper end.
    """
    n, z = len(obeyed), 1.96
    p = obeyed.mean(axis=0)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.stack([p, middle - half, middle + half], axis=1)


chapter.edit(
    "obeyed_by_turn",
    "this is p ± z √(p(1-p)/n), which has no width where all obey and leaves 0 … 1 elsewhere; take Wilson's.",
    "return np.stack([p, middle - half, middle + half], axis=1)",
    "half = z * np.sqrt(p * (1 - p) / n); return np.stack([p, p - half, p + half], axis=1)",
)
chapter.edit(
    "obeyed_by_turn",
    "n is the number of turns; each share is one of n dialogues.",
    "n, z = len(obeyed), 1.96",
    "n, z = obeyed.shape[1], 1.96",
)
chapter.edit(
    "obeyed_by_turn",
    "a dialogue counts as obeying at a turn only if it has obeyed at all turns before; each turn stands for itself.",
    "p = obeyed.mean(axis=0)",
    "p = np.logical_and.accumulate(obeyed, axis=1).mean(axis=0)",
)
chapter.edit(
    "obeyed_by_turn",
    "the share is averaged over all turns up to this one, which hides the fall.",
    "p = obeyed.mean(axis=0)",
    "p = np.cumsum(obeyed.mean(axis=0)) / np.arange(1, obeyed.shape[1] + 1)",
)
chapter.edit(
    "obeyed_by_turn",
    "half the width must be divided by 1 + z² / n too.",
    " / (4 * n**2)) / (1 + z**2 / n)",
    " / (4 * n**2))",
)
chapter.edit(
    "obeyed_by_turn",
    "the interval is one standard deviation wide on each side: z is 1.96.",
    "n, z = len(obeyed), 1.96",
    "n, z = len(obeyed), 1.0",
)


# --- 16.6 without sampling: the whole distribution


def distil_cases(rng: np.random.Generator) -> Iterator[Case]:
    for n, V in ((4, 6), (1, 3), (5, 2)):
        teacher, student = 2 * rng.standard_normal((2, n, V))
        yield {"teacher": teacher, "student": student}
    same = rng.standard_normal((2, 4))
    yield {"teacher": same + 3.0, "student": same}  # the same probabilities


def distilled_is_its_own(own: Functions) -> str | None:
    """None where the gradient is that of the learner's own loss; else what is wrong."""
    (case, *_) = distil_cases(np.random.default_rng(1))
    layers.gradcheck(lambda z: own.distil(case["teacher"], z), lambda dy, dz: dy * dz, case["student"])
    return None


@chapter.exercise(
    "stretch",
    cases=distil_cases,
    proof=distilled_is_its_own,
    returns=("loss", "dstudent"),
    task="Then ask: what does this cost in memory, against sampled tokens, and what does it save in variance?",
    hints=(
        "log p = z - logsumexp(z) for both. KL(p || q) = Σ p (log p - log q), summed over V, averaged over n.",
        "The teacher's part is constant. What is left is a cross-entropy, whose target is a distribution.",
        "Its gradient is (softmax(student) - softmax(teacher)) / n: chapter 10's, with p in the place of the one-hot.",
    ),
)
def distil(teacher: Array, student: Array) -> tuple[float, Array]:
    """Context distillation without sampling: the mean over n tokens of KL(teacher || student), and its gradient.

    teacher: (n, V) logits of the model that is reminded on every turn, at the places that predict the last answer's n
    tokens. student: (n, V) logits of the one that reads the instruction in the first turn only, at the same tokens. The
    teacher is fixed. Returns the loss in nats and dstudent (n, V).
    """
    log_p, log_q = (z - z.max(axis=1, keepdims=True) for z in (teacher, student))
    log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (log_p, log_q))
    p, q = np.exp(log_p), np.exp(log_q)
    return float((p * (log_p - log_q)).sum() / len(p)), (q - p) / len(p)


chapter.edit(
    "distil",
    "it is the reverse divergence, KL(student || teacher): samples of the teacher give the forward one.",
    "return float((p * (log_p - log_q)).sum() / len(p)), (q - p) / len(p)",
    "gap = log_q - log_p; mean = (q * gap).sum(axis=1, keepdims=True); "
    "return float(mean.sum() / len(p)), q * (gap - mean) / len(p)",
)
chapter.edit(
    "distil",
    "it is the cross-entropy: the teacher's entropy is missing, so that equal distributions do not give 0.",
    "(p * (log_p - log_q)).sum()",
    "-(p * log_q).sum()",
)
chapter.edit(
    "distil",
    "the mean is over n and V; sum over the vocabulary, and average over the tokens.",
    "return float((p * (log_p - log_q)).sum() / len(p)), (q - p) / len(p)",
    "return float((p * (log_p - log_q)).mean()), (q - p) / p.size",
)
chapter.edit(
    "distil",
    "the sum over the tokens is not divided by n.",
    "return float((p * (log_p - log_q)).sum() / len(p)), (q - p) / len(p)",
    "return float((p * (log_p - log_q)).sum()), q - p",
)
chapter.edit(
    "distil",
    "the gradient has the wrong sign: more logit where the student has too much probability.",
    "(q - p) / len(p)",
    "(p - q) / len(p)",
)
chapter.edit(
    "distil",
    "the teacher's most probable token is the target: that is no sample of its distribution.",
    "p, q = np.exp(log_p), np.exp(log_q)",
    "q = np.exp(log_q); p = np.eye(q.shape[1])[log_p.argmax(axis=1)]; log_p = np.where(p > 0, 0.0, log_q)",
)
