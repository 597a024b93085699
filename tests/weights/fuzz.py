"""Loads damaged copies of a checkpoint; run as `python -m tests.weights.fuzz KIND CASES FOLDER` by test_fuzz.py.

A process of its own, so that its memory can be limited and a crash of a library in C or Rust is seen. Ends with 1
and the traceback at the first case that ends in anything but success or a MinillamaError of one line.
"""

from __future__ import annotations

import faulthandler
import random
import shutil
import string
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from minillama import weights
from minillama.chat import builtin
from minillama.config import RopeScaling
from minillama.errors import MinillamaError
from minillama.lora import LoraConfig, LoraLlama
from minillama.model import Llama
from minillama.tokenizer import Tokenizer, from_gguf
from tests.weights.support import CONFIGS, TINY, random_params, tiny_checkpoint, tiny_tokenizer, write_meta

ROOM = 64 << 20  # what loading may take beyond the process that has loaded the sound file, of 100 kB, before
SECONDS = 60  # for one case; a hang ends the process with its traceback
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def make(kind: str, folder: Path) -> Path:
    """A sound checkpoint with all that the format can carry."""
    if kind == "meta":
        checkpoint = tiny_checkpoint(CONFIGS["untied"])
        write_meta(folder / "model", checkpoint.params, checkpoint.config, n_files=2)
        (folder / "model" / "tokenizer.model").write_bytes(tiny_tokenizer().model)
        return folder / "model"
    if kind == "peft":
        weights.save(tiny_checkpoint(), folder / "base")
        lora = LoraConfig(rank=2, targets=("wk", "w2"), also=("norm.weight",))
        model = LoraLlama.wrap(Llama(TINY, random_params(TINY)), lora, base="../base")
        checkpoint = replace(model.checkpoint(), tokenizer=tiny_tokenizer(), chat_template=builtin("chatml"))
        weights.save(checkpoint, folder / "adapters")
        return folder / "adapters"
    config = TINY if kind.startswith("llama2c") else replace(TINY, rope_scaling=RopeScaling("llama3", 8.0))
    checkpoint = tiny_checkpoint(config)
    checkpoint.chat_template = builtin("chatml")
    if kind.endswith("-bytes"):
        checkpoint.tokenizer = byte_level_tokenizer()
    to = kind.removesuffix("-bytes")
    name = {"huggingface": "model", "gguf": "model.gguf"}.get(to, "model.bin")
    weights.save(checkpoint, folder / name, to=to)
    return folder / name


def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE: the letters, a merge, a control token."""
    tokens = [*string.ascii_letters, "Ġ", "Ċ", "th", "the", "<|im_end|>"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    return from_gguf(fields)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` cut short, with bits flipped, numbers overwritten, or pieces taken out or repeated."""
    # Headers come first: half of the damage goes there, and the rest anywhere.
    start = rng.randrange(min(len(data), 1000) if rng.random() < 0.5 else len(data))
    match rng.randrange(5):
        case 0:
            return data[:start]
        case 1 | 2:
            changed = bytearray(data)
            for _ in range(rng.choice([1, 1, 1, 2, 8])):
                changed[start] ^= 1 << rng.randrange(8)
                start = min(len(data) - 1, start + rng.randrange(64))
            return bytes(changed)
        case 3:
            width = rng.choice([1, 4, 8])
            number = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
            return data[:start] + number + data[start + width :]
        case _:
            piece = data[start : start + rng.randrange(1, 100)]
            return data[:start] + piece * rng.choice([0, 2]) + data[start + len(piece) :]


def limit_memory() -> None:
    """No allocation far beyond the size of the file, where the system can refuse one."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def run(kind: str, cases: int, folder: Path) -> None:
    sound = make(kind, folder / "sound")
    weights.load(sound)  # every library is loaded and warm
    files = sorted(path for path in (folder / "sound").rglob("*") if path.is_file())
    limit_memory()
    warnings.simplefilter("error")
    shutil.copytree(folder / "sound", folder / "copy")
    outcomes = {"loaded": 0, "refused": 0}
    for case in range(cases):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        rng = random.Random(case)
        victim = rng.choice(files)
        copy = folder / "copy" / victim.relative_to(folder / "sound")
        copy.write_bytes(damaged(victim.read_bytes(), rng))
        refusal = ""
        try:
            weights.load(folder / "copy" / sound.relative_to(folder / "sound"))
        except MinillamaError as error:
            refusal = str(error)
        except BaseException:
            print(f"case {case}, {victim.name}", file=sys.stderr, flush=True)
            raise
        assert "\n" not in refusal, (case, refusal)
        assert "expected memory" not in refusal, (case, refusal)
        outcomes["refused" if refusal else "loaded"] += 1
        copy.write_bytes(victim.read_bytes())
    faulthandler.cancel_dump_traceback_later()
    print(outcomes["loaded"], outcomes["refused"])


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
