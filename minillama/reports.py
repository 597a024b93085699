"""The tables that `minillama info` and `minillama bench` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from minillama.config import LlamaConfig

if TYPE_CHECKING:
    from minillama.bench import Speed
    from minillama.weights import Checkpoint

BATCHES = (1, 8, 32)


def show_config(name: str, config: LlamaConfig) -> None:
    """Sizes, parameter count and memory of a shape, without weights."""
    console = Console(highlight=False)
    sizes = _grid(f"{name}")
    _add_sizes(sizes, config)
    console.print(sizes)
    console.print(_memory(config))


def show_checkpoint(name: str, path: Path, checkpoint: Checkpoint) -> None:
    """As `show_config`, with what the checkpoint carries beside its weights."""
    console = Console(highlight=False)
    sizes = _grid(name)
    sizes.add_row("file", f"{path} ({checkpoint.format}, {_bytes(_size(path))})")
    _add_sizes(sizes, checkpoint.config)
    tokenizer, template = checkpoint.tokenizer, checkpoint.chat_template
    if tokenizer is None:
        sizes.add_row("tokenizer", "none")
    else:
        stops = ", ".join(f"{tokenizer.piece(token)} ({token})" for token in sorted(tokenizer.stop_ids))
        sizes.add_row(
            "tokenizer", f"{tokenizer.vocab_size:,} tokens, {type(tokenizer).__name__}; stops at {stops or 'none'}"
        )
    sizes.add_row("chat template", "none: a completion model" if template is None else str(template))
    console.print(sizes)
    console.print(_memory(checkpoint.config))


def show_speeds(title: str, speeds: list[Speed]) -> None:
    """Engines side by side, the first of them minillama; below each other one, minillama's rate in multiples of its."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("tokens/s")
    batches = list(speeds[0].decode)
    for name in ("load", "prefill", *(f"batch {batch}" for batch in batches), "peak memory"):
        table.add_column(name, justify="right")
    for speed in speeds:
        table.add_row(
            speed.engine,
            f"{speed.load:.1f} s",
            f"{speed.prefill:,.0f}",
            *(f"{speed.decode[batch]:,.1f}" if batch in speed.decode else "" for batch in batches),
            "" if speed.peak is None else _bytes(speed.peak),
        )
    own = speeds[0]
    for peer in speeds[1:]:
        table.add_row(
            f"minillama / {peer.engine.split()[0]}",
            "",
            f"{own.prefill / peer.prefill:.2f} x",
            *(f"{own.decode[batch] / peer.decode[batch]:.2f} x" if batch in peer.decode else "" for batch in batches),
            "" if own.peak is None or peer.peak is None else f"{own.peak / peer.peak:.2f} x",
            style="bold",
        )
    Console(highlight=False).print(table)


def _grid(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _add_sizes(table: Table, config: LlamaConfig) -> None:
    kind = {config.n_heads: "multi-head", 1: "multi-query"}.get(config.n_kv_heads, "grouped-query")
    rope = f"theta {config.rope_theta:,.0f}"
    if config.rope_scaling is not None:
        rope += f", scaled by {config.rope_scaling.factor:g} ({config.rope_scaling.kind})"
    window = f", each seeing the last {config.sliding_window:,}" if config.sliding_window else ""
    for name, value in {
        "parameters": f"{config.param_count():,}",
        "layers": f"{config.n_layers}",
        "width": f"{config.dim:,}, feed-forward {config.ffn_dim:,}",
        "heads": f"{config.n_heads} of width {config.head_dim}, {config.n_kv_heads} of keys and values ({kind})",
        "vocabulary": f"{config.vocab_size:,}, embeddings {'tied' if config.tie_embeddings else 'untied'}",
        "context": f"{config.max_seq_len:,} positions{window}",
        "rotary embedding": rope,
        "norm epsilon": f"{config.norm_eps:g}",
        **({"head": "a score: this is a reward model"} if config.head == "score" else {}),
    }.items():
        table.add_row(name, value)


def _memory(config: LlamaConfig) -> Table:
    """Inference at 4 and 2 bytes a value, training at 4: rows are batches, columns lengths of the sequences."""
    lengths = sorted({min(length, config.max_seq_len) for length in (512, 4096)} | {config.max_seq_len})
    table = Table(title="\nmemory, by batch and length", title_justify="left", title_style="bold")
    table.add_column("")
    for batch in BATCHES:
        table.add_column(f"batch {batch}", justify="right")
    for purpose, width, estimate in (
        ("generate, float32", 4, config.inference_bytes),
        ("generate, 16 bit", 2, config.inference_bytes),
        ("train, float32", 4, config.training_bytes),
    ):
        for length in lengths:
            cells = [_bytes(estimate(batch, length, width)) for batch in BATCHES]
            table.add_row(f"{purpose}, {length:,} tokens", *cells)
        table.add_section()
    return table


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return (
        sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _bytes(count: int) -> str:
    """A size as people say it: 1.3 GB (10⁹ bytes)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
