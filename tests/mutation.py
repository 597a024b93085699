"""Do the tests notice a wrong layer, optimizer or loss? python -m tests.mutation [MODULE ...]

Every function and method of minillama/layers, of what updates parameters and of alignment's losses is changed in one
place at a time (an operator, a constant, a dropped term or statement, two arguments or results exchanged) and its tests
are run on each of the mutants. One that passes is a survivor: either a test is missing or the change makes no
difference, and then EQUIVALENT says why. Prints the survivors; exit code 1 where one has no explanation.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import inspect
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

LAYERS = [
    "blocks",
    "linear",
    "lora",
    "embedding",
    "rmsnorm",
    "rope",
    "attention",
    "swiglu",
    "cross_entropy",
    "token_logprobs",
]
MODULES = {name: (f"minillama.layers.{name}", "tests/layers") for name in LAYERS}
MODULES |= {
    name: (f"minillama.training.{name}", f"tests/training/test_{name}.py") for name in ("adamw", "schedule", "workers")
}
MODULES |= {
    name: (f"minillama.alignment.{name}", f"tests/alignment/test_{name}.py")
    for name in ("masked", "ranking", "dpo", "combine", "advantages", "policy")
}
SECONDS = 20  # for the tests on one mutant: a change can make a loop endless
WITHOUT = [f"-pno:{plugin}" for plugin in ("cacheprovider", "unraisableexception", "threadexception", "logging")]

# Mutants that give the same numbers: how their description begins, and why that is so.
EQUIVALENT = {
    "linear: if len(rows)": "either order of the product is right, which one is a matter of speed",
    "linear: len(rows)": "the same",
    "linear: type(rows)": "the same",
    "linear: 1 << 19": "the same",
    "embedding_backward: if xp is not np": "NumPy can add.at too, three times slower",
    "rope_frequencies: np.clip((turns": "the middle one of three numbers, whatever their order",
    "rope_frequencies: head_dim > 2 -> head_dim > 3": "a head's width is even",
    "attention: if keep": "only memory: the result is dropped at the end",
    "_blocks: past + start if causal else seen.start -> past + start if False": "more is compared,"
    " and no more is hidden",
    "_blocks: past + start -> past": "the same",
    "_blocks: past + start -> start": "the same",
    "_exp_and_sum: total += total == 0 -> total -= total == 0": "no exponentials over -1 are 0, too",
    "cross_entropy: xp.where(mask.reshape(-1), targets, 0)": "a masked target may be any index, its loss is dropped",
    "cross_entropy: xp.where(mask.reshape(-1), losses, 0)": "what is masked has no weight",
    "cross_entropy: d.sum(axis=-1) -> d.sum(axis=1": "d has two axes: 1 is -1",
    "cross_entropy: rows[block].max(axis=-1, keepdims=True) -> rows[block].max(axis=1": "the same",
    "row_blocks: max(1, rows) -> max(2, rows)": "a block ends where the rows end",
    "swiglu: x.reshape(-1, F) -> x.reshape(F, -1)": "every number is on its own, however they are put in rows",
    "swiglu: rows[0] -> rows[1]": "all have as many rows",
    "swiglu_backward: x.reshape(-1, F) -> x.reshape(F, -1)": "as in swiglu",
    "swiglu_backward: rows[0] -> rows[1]": "as in swiglu",
    "__call__: step < self.warmup_steps -> step <=": "the peak by either formula",
    "step: max(map(_length, bounds), default=0)": "how much room there is where nothing is to be done",
    "global_norm: _chunks(grads, part, 0)": "squares may be cut anywhere",
    "_chunks: CHUNK if get_array_module(array) is np": "the size of a piece is a matter of speed",
    "_chunks: get_array_module(array) is np": "the same",
    "_chunks: max(1, len(array)) -> max(2": "the same",
    "_length: piece.stop - piece.start -> piece.stop": "room for more than is needed",
    "__init__: keep_freed_memory()": "speed",
    "__init__: threads if model.xp is np else 1 -> threads if True": "a GPU has one worker for the sake of speed",
    "__init__: threads if model.xp is np else 1 -> threads if model.xp is np else 2": "the same",
    "gradients: zip(*self.threads.each(work), strict=True)": "there is one",
    "gradients: inside.start < inside.stop ->": "nothing is added to nothing",
    "token_logprobs: xp.where(valid, targets.reshape(-1), 0) -> xp.where(valid, targets.reshape(-1), 1": "as in"
    " cross_entropy",
    "value_loss: xp.clip(values, old_values - clip, old_values + clip) -> xp.clip(old_values": "the middle one of"
    " three numbers, whatever their order",
    "explained_variance: xp.where(vary, _variance(returns, mask), 1) -> xp.where(vary, _variance(returns, mask), 2": "a"
    " divisor whose quotient is not used",
}

_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_FUNCTIONS = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "sum": "mean", "zeros": "ones"}
_FUNCTIONS |= {
    "exp": "negative",
    "sqrt": "square",
    "reciprocal": "negative",
    "cos": "sin",
    "sin": "cos",
    "conj": "copy",
}


SYMMETRIC = {"maximum", "minimum", "max", "min", "multiply", "swapaxes", "result_type"}  # of their first two arguments


def variations(node: ast.AST) -> Iterator[ast.AST]:
    """What can be put in the place of `node`."""
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _OPERATORS:
        yield _with(node, op=_OPERATORS[type(node.op)]())
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.MatMult):
        yield node.left
        yield node.right
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        yield _with(node, ops=[_OPERATORS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.BoolOp):
        yield _with(node, op=_OPERATORS[type(node.op)]())
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    if isinstance(node, (ast.If, ast.IfExp)):
        yield _with(node, test=ast.Constant(True))
        yield _with(node, test=ast.Constant(False))
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _FUNCTIONS:
            yield _with(node, func=_with(node.func, attr=_FUNCTIONS[node.func.attr]))
        if len(node.args) > 1 and _name(node.func) not in SYMMETRIC:
            yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield _with(node, value=_with(node.value, elts=node.value.elts[::-1]))
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        yield _with(node, slice=_with(node.slice, elts=node.slice.elts[::-1]))


def _name(function: ast.AST) -> str:
    """`xp.maximum` -> maximum."""
    return ast.unparse(function).rpartition(".")[2]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def mutants(module: ModuleType) -> Iterator[tuple[str, Callable, Callable]]:
    """(description, the function, the changed function) for every place in every function of `module`."""
    for owner, function in _functions(module):
        for part in ast.walk(function):
            if isinstance(part, ast.FunctionDef):
                part.returns = None
        if ast.get_docstring(function) is not None:
            del function.body[0]
        for argument in (*function.args.args, *function.args.kwonlyargs, function.args.kwarg):
            if argument is not None:
                argument.annotation = None
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "reshape":
                for argument in call.args:
                    if isinstance(argument, ast.UnaryOp):
                        argument.operand.any_negative = True  # type: ignore[attr-defined]  # -2 is as good as -1
        original = getattr(owner, function.name)
        count = sum(1 for _ in ast.walk(function))
        for index in range(count):
            for choice in range(len(list(variations(list(ast.walk(function))[index])))):
                changed = copy.deepcopy(function)
                old = list(ast.walk(changed))[index]
                new = list(variations(old))[choice]
                if getattr(old, "any_negative", False):
                    continue
                shown = _around(old, changed)
                before = _text(shown)
                changed = _Replace(old, new).visit(changed)
                after = _text(new if shown is old else shown)
                if before == after:
                    continue
                tree = ast.fix_missing_locations(ast.Module([changed], type_ignores=[]))
                scope = dict(vars(module))
                exec(compile(tree, f"<mutant of {module.__name__}>", "exec"), scope)
                yield f"{function.name}: {before} -> {after}", original, scope[function.name]


def _functions(module: ModuleType) -> Iterator[tuple[object, ast.FunctionDef]]:
    """Functions, and methods of classes, with what they are attributes of."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef):
            yield module, node
        if isinstance(node, ast.ClassDef):
            owner = getattr(module, node.name)
            yield from ((owner, part) for part in node.body if isinstance(part, ast.FunctionDef))


def _around(node: ast.AST, function: ast.AST) -> ast.AST:
    """What to show of a change at `node`: of a constant, the expression that it is in."""
    parents = {child: parent for parent in ast.walk(function) for child in ast.iter_child_nodes(parent)}
    while isinstance(node, (ast.Constant, ast.UnaryOp, ast.keyword, ast.Slice, ast.Tuple)):
        node = parents[node]
    return node


def _text(node: ast.AST) -> str:
    """One line of source."""
    first = _with(node, body=[], orelse=[]) if isinstance(node, ast.If) else node
    return ast.unparse(first).strip().rstrip(":")


def survives(original: Callable, mutant: Callable, tests: str) -> bool:
    """Whether the tests pass with `mutant` in the place of `original`, wherever that has been imported to."""
    code, defaults, named = original.__code__, original.__defaults__, original.__kwdefaults__
    original.__code__ = mutant.__code__
    original.__defaults__, original.__kwdefaults__ = mutant.__defaults__, mutant.__kwdefaults__
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time, whatever else the machine does
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return pytest.main(["-x", "-q", *WITHOUT, tests]) == pytest.ExitCode.OK
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        original.__code__, original.__defaults__, original.__kwdefaults__ = code, defaults, named


def _too_slow(*_: object) -> None:
    raise TimeoutError("the tests on this mutant take too long")


def main(names: list[str]) -> int:
    signal.signal(signal.SIGPROF, _too_slow)
    total = equivalent = unexplained = 0
    used: set[str] = set()
    started = time.perf_counter()
    for name in names or MODULES:
        path, tests = MODULES[name]
        module = importlib.import_module(path)
        found = list(mutants(module))
        total += len(found)
        for description, original, mutant in found:
            if not survives(original, mutant, tests):
                continue
            reasons = [start for start in EQUIVALENT if description.startswith(start)]
            used.update(reasons)
            if reasons:
                equivalent += 1
            else:
                unexplained += 1
                print(f"survivor in {name}.py: {description}", flush=True)
        print(f"{name}.py: {len(found)} mutants", flush=True)
    print(
        f"{total} mutants in {time.perf_counter() - started:.0f} s: {total - equivalent - unexplained} killed, "
        f"{equivalent} equivalent, {unexplained} unexplained"
    )
    stale = EQUIVALENT.keys() - used if not names else set()
    if stale:
        print("explained, but killed or gone:", *sorted(stale), sep="\n  ")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
