"""`minillama plan`: what a training run will take, before it is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from minillama.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from minillama.training.plan import Plan


def plan(
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="A shape of the family: llama2-70b, …")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="How many GPUs.")] = 8,
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="KIND", help="a100-40gb, a100-80gb, h100-80gb or h200-141gb.")
    ] = "a100-80gb",
    precision: Annotated[
        str, typer.Option("--precision", metavar="bf16|fp32", help="bf16 with float32 copies, or all float32.")
    ] = "bf16",
    zero: Annotated[
        str,
        typer.Option(
            "--zero", metavar="0|1|2|3|fsdp", help="Divide optimizer state (1), gradients (2), weights (3 or fsdp)."
        ),
    ] = "1",
    tensor: Annotated[
        int | None,
        typer.Option(
            "--tensor", metavar="N", min=1, help="GPUs that share each matrix.", show_default="the fewest that fit"
        ),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Keep a layer's input alone and run the layer again backward.")
    ] = False,
    micro_batch: Annotated[
        int, typer.Option("--micro-batch", metavar="B", min=1, help="Sequences that a GPU runs at once.")
    ] = 1,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", metavar="T", min=1, help="Tokens of a sequence.", show_default="context, ≤ 4096"),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", metavar="N", min=1, help="Tokens of a step on all GPUs.")
    ] = 1024 * 4096,
    tokens: Annotated[float, typer.Option("--tokens", metavar="N", min=1, help="Tokens to train on.")] = 2e12,
    mfu: Annotated[
        float, typer.Option("--mfu", metavar="SHARE", help="Share of the GPUs' peak that the arithmetic reaches.")
    ] = 0.4,
    dim: Annotated[int | None, typer.Option("--dim", metavar="C", help="A shape of your own: its width,")] = None,
    layers: Annotated[int | None, typer.Option("--layers", metavar="L", help="layers,")] = None,
    heads: Annotated[int | None, typer.Option("--heads", metavar="H", help="query heads,")] = None,
    kv_heads: Annotated[
        int | None, typer.Option("--kv-heads", metavar="K", help="key and value heads,", show_default="as --heads")
    ] = None,
    ffn_dim: Annotated[int | None, typer.Option("--ffn-dim", metavar="F", help="feed-forward width,")] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="V", help="and vocabulary.")] = 32_000,
    table2: Annotated[
        bool, typer.Option("--table2", help="Instead: the paper's table 2 beside the hours at this MFU.")
    ] = False,
) -> None:
    """Memory of a GPU, tokens a second, GPU hours and carbon of a training run."""
    from rich.console import Console

    from minillama import config as shapes
    from minillama.training.plan import Plan, find_gpu, smallest_tensor

    console = Console(highlight=False)
    if table2:
        console.print(_table2(mfu))
        return
    sizes = {"--dim": dim, "--layers": layers, "--heads": heads, "--ffn-dim": ffn_dim}
    found = [name for name, value in {"--preset": preset, **sizes}.items() if value is not None]
    if preset is not None and len(found) == 1:
        name, config = preset.lower(), shapes.preset(preset)
    elif preset is None and dim and layers and heads and ffn_dim:
        name = "your model"
        config = shapes.LlamaConfig(
            dim,
            layers,
            heads,
            ffn_dim,
            vocab_size,
            n_kv_heads=kv_heads or heads,
            max_seq_len=seq_len or 4096,
        )
    else:
        raise UsageError(
            f"plan: expected --preset NAME, or all of {', '.join(sizes)}; found {', '.join(found) or 'neither'}"
        )
    options: dict[str, Any] = {
        "gpu": find_gpu(gpu),
        "precision": precision,
        "zero": _stage(zero),
        "recompute": recompute,
        "micro_batch": micro_batch,
        "seq_len": seq_len,
        "batch_tokens": batch_tokens,
        "tokens": int(tokens),
        "mfu": mfu,
    }
    made = Plan(config, gpus, tensor=tensor, **options) if tensor else smallest_tensor(config, gpus, **options)
    made.check_memory()
    for table in (_run(name, made), _memory(made), _cost(name, made)):
        console.print(table)


def _stage(text: str) -> int:
    """The ZeRO stage that is meant."""
    if text not in ("0", "1", "2", "3", "fsdp"):
        raise UsageError(f"--zero {text}: expected 0, 1, 2, 3 or fsdp")
    return 3 if text == "fsdp" else int(text)


def _rows(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True, min_width=15)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    return table


def _run(name: str, plan: Plan) -> Table:
    table = _rows(f"{name} on {plan.gpus:,} × {plan.gpu.name}")
    table.add_row("parameters", f"{plan.config.param_count():,}", plan.precision)
    divided = ("nothing", "optimizer state", "optimizer state and gradients", "all state")[plan.zero]
    of = f"{plan.tensor} GPUs each, " if plan.tensor > 1 else ""
    table.add_row("ranks", f"{plan.ranks:,}", f"{of}{divided} divided (ZeRO-{plan.zero})")
    pieces = f"{plan.accumulation:,} × {plan.micro_batch} × {plan.seq_len:,}"
    table.add_row("tokens a step", f"{plan.batch_tokens:,}", f"{pieces} a rank: turns, sequences, tokens")
    return table


def _memory(plan: Plan) -> Table:
    table = _rows("\nmemory of a GPU")
    parts = plan.memory()
    for name, size in parts.items():
        table.add_row(name, _bytes(size), "")
    whole = sum(parts.values())
    table.add_row("all", _bytes(whole), f"{whole / plan.gpu.memory:.0%} of {_bytes(plan.gpu.memory)}", style="bold")
    return table


def _cost(name: str, plan: Plan) -> Table:
    from minillama.training.plan import TABLE2, implied_mfu, training_flops

    table = _rows("\ntime and energy")
    useful = training_flops(plan.config, plan.seq_len)
    rule = 6 * plan.config.param_count()
    table.add_row("FLOPs a token", f"{useful / 1e9:,.2f} G", f"6 a parameter: {rule / 1e9:,.2f} G")
    table.add_row("share of peak", f"{plan.mfu:.1%}", f"of {plan.peak / 1e12:,.1f} TFLOP/s a GPU")
    if plan.recompute:
        table.add_row("MFU", f"{plan.mfu * useful / plan.flops_per_token:.1%}", "what is recomputed not counted")
    table.add_row("tokens/s", f"{plan.tokens_per_second:,.0f}", f"{plan.tokens_per_second / plan.gpus:,.0f} a GPU")
    table.add_row("steps", f"{plan.steps:,}", f"for {plan.tokens:,} tokens")
    table.add_row("days", f"{plan.days:,.1f}", f"{plan.batch_tokens / plan.tokens_per_second:,.2f} s a step")
    table.add_row("GPU hours", f"{plan.gpu_hours:,.0f}", "", style="bold")
    if name in TABLE2:
        table.add_row("", f"{TABLE2[name].hours:,}", f"in the paper: an MFU of {implied_mfu(name):.1%} on A100s")
    table.add_row("energy", _thousands(plan.kwh, "kWh", "MWh"), f"{plan.gpu.watts:.0f} W a GPU")
    carbon = _thousands(plan.tonnes * 1000, "kg", "t")
    table.add_row("CO2 equivalent", carbon, f"{plan.intensity:.4f} kg/kWh, PUE included", style="bold")
    return table


def _table2(mfu: float) -> Table:
    """What the paper reports, what its hours imply, and the hours at `mfu`."""
    from rich.table import Table

    from minillama.training.plan import PAPER_HOURS, PAPER_TONNES, TABLE2, implied_mfu, table2_hours

    table = Table(title="Llama 2, table 2: A100-80GB, 2T tokens", title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("GPU hours", "tCO2eq", "kg/kWh", "implied MFU", f"hours at {mfu:.1%}"):
        table.add_column(column, justify="right")
    for name, row in TABLE2.items():
        table.add_row(
            name,
            f"{row.hours:,}",
            f"{row.tonnes:.2f}",
            f"{row.intensity:.4f}",
            f"{implied_mfu(name):.1%}",
            f"{table2_hours(name, mfu):,.0f}",
        )
    table.add_section()
    hours = sum(table2_hours(name, mfu) for name in TABLE2)
    table.add_row("all", f"{PAPER_HOURS:,}", f"{PAPER_TONNES:.2f}", "", "", f"{hours:,.0f}")
    return table


def _thousands(amount: float, unit: str, large: str) -> str:
    """An amount in `unit`, or in the one a thousand times larger."""
    return f"{amount:,.1f} {unit}" if amount < 1000 else f"{amount / 1000:,.2f} {large}"


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"
