"""The interpreter behind `@staged`: runs the syntax tree of a function, and emits LLVM IR for what is not known yet.

See `xuni.isa.stage` for what it accepts. `Stage` is the compilation of one LLVM function; `native.py` compiles whole
native functions with it.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from xuni.isa.bits import Bits, const
from xuni.isa.llvm import Function, Llvm, type_of
from xuni.isa.stage import (
    ACTIVE,
    Hinted,
    Native,
    StageError,
    Unreachable,
    Unwind,
    annotated_width,
    native_instance,
    result_type,
    result_widths,
)


@functools.cache
def _tree(function: Callable[..., Any]) -> ast.FunctionDef:
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef), f"{function.__qualname__} is not a def"
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    return tree


@functools.cache
def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    cells = function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, cells, strict=True)}


@functools.cache
def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


class _Assigned(ast.NodeVisitor):
    """Names that a piece of code assigns."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store) and node.id not in self.names:
            self.names.append(node.id)


Env = dict[str, Any]
Edge = tuple[str, Env, dict[str, Bits]]  # block label, locals, registers at its end


@dataclass
class _Frame:
    """One inlined call."""

    function: Callable[..., Any]
    env: Env
    returns: list[tuple[str, Any, dict[str, Bits]]] = field(default_factory=list)
    exit: str = ""
    loops: list[tuple[str, list[Edge], str, list[Edge]]] = field(default_factory=list)  # break label/edges, continue


_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


def _later(value: Any) -> bool:
    return isinstance(value, Bits) and not value.known


class Stage:
    """Compiles one LLVM function by interpreting syntax trees."""

    host_features: ClassVar[frozenset[str]] = frozenset()
    """What the host's processor has beyond x86-64-v2, in LLVM's names; whoever runs the code here sets it."""

    def __init__(self, function: Function, cpu: Any = None, on_native: Callable[[Native], None] | None = None) -> None:
        self.code = function
        self.llvm = Llvm(function)
        self.cpu = cpu
        self.on_native = on_native or (lambda native: None)
        self.before_call: Callable[[Callable[..., Any] | None], None] = lambda function: None  # None: a raise

        self._scopes: list[int] = []
        self._scope_count = 0

    @property
    def scope(self) -> tuple[int, ...]:
        """Where code is being emitted: what was computed in a scope may be used in those that begin with it."""
        return tuple(self._scopes)

    def sees(self, scope: tuple[int, ...]) -> bool:
        """Whether a value computed in `scope` may be used now."""
        return tuple(self._scopes[: len(scope)]) == scope

    @contextmanager
    def _scope(self) -> Any:
        self._scope_count += 1
        self._scopes.append(self._scope_count)
        try:
            yield
        finally:
            self._scopes.pop()

    @contextmanager
    def active(self) -> Any:
        ACTIVE.append(self)
        try:
            yield self
        finally:
            ACTIVE.pop()

    # -- calls ---------------------------------------------------------------------------------------------------------
    def inline(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if not self.code.live:
            raise StageError(f"{function.__qualname__} is called in unreachable code")
        bound = signature_of(function).bind(*args, **kwargs)
        bound.apply_defaults()
        frame = _Frame(function, {**_closure(function), **bound.arguments})
        with self._scope():
            self._block(_tree(function).body, frame)
        if not frame.returns:
            if not self.code.live:
                raise Unreachable
            return None
        if self.code.live:
            frame.returns.append((self.code.block, None, dict(self.code.registers)))
            self.code.jump(frame.exit)
        return self._join_returns(frame)

    def _join_returns(self, frame: _Frame) -> Any:
        code, returns = self.code, frame.returns
        code.start(frame.exit)
        code.registers = self._merge_registers([(label, regs) for label, _, regs in returns])
        values = [value for _, value, _ in returns]
        labels = [label for label, _, _ in returns]
        if all(isinstance(v, tuple) for v in values):
            columns = zip(*values, strict=True)
            return tuple(self._merge(list(column), labels, f"result {i}") for i, column in enumerate(columns))
        return self._merge(values, labels, f"the result of {frame.function.__qualname__}")

    def call_native(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        annotations = function.__annotations__
        passed, types, static = ["ptr %s"], ["ptr"], []
        for name, value in list(arguments.items())[1:]:
            width = annotated_width(annotations.get(name))
            if width is None:
                assert not _later(value), f"{function.__qualname__}: parameter {name} has no width"
                static.append((name, value))
                continue
            value = const(value, width) if isinstance(value, int) else value
            if value.width != width or value.lanes != 1:
                raise StageError(f"{function.__qualname__}: parameter {name} has {width} bits, not {value!r}")
            types.append(type_of(width))
            passed.append(f"{type_of(width)} {self.llvm.lift(value)}")
        instance = native_instance(function, tuple(static))
        self.on_native(instance)
        widths = result_widths(function)
        result = result_type(widths)
        self.code.declare(f"declare dso_local {result} @{instance.symbol}({', '.join(types)})")
        self.before_call(function)
        call = f"call {result} @{instance.symbol}({', '.join(passed)})"
        if annotations.get("return") == "NoReturn":
            self.code.emit(call)
            self.code.end("unreachable")
            raise Unreachable
        if not widths:
            self.code.emit(call)
            return None
        if len(widths) == 1:
            return self.llvm.wrap(widths[0], call)
        whole = self.code.value(call)
        return tuple(self.llvm.wrap(w, f"extractvalue {result} {whole}, {i}") for i, w in enumerate(widths))

    # -- merging -------------------------------------------------------------------------------------------------------
    def _merge(self, values: list[Any], labels: list[str], what: str) -> Any:
        first = values[0]
        if all(v is first for v in values):
            return first
        if isinstance(first, Bits) and all(isinstance(v, Bits) for v in values):
            shape = (first.width, first.lanes)
            if any((v.width, v.lanes) != shape for v in values):
                raise StageError(f"{what} has different widths on two paths: {values}")
            if all(v.known for v in values) and all(v.raw == first.raw for v in values):
                return first
            if all(v.raw == first.raw and v.known == first.known for v in values):
                return first
            return self.llvm.phi(*shape, list(zip(values, labels, strict=True)))
        widths = {(v.width, v.lanes) for v in values if isinstance(v, Bits)}
        if len(widths) == 1 and all(isinstance(v, Bits | int) for v in values):
            (width, lanes), *_ = widths
            if lanes == 1:
                lifted = [v if isinstance(v, Bits) else const(v, width) for v in values]
                return self.llvm.phi(width, 1, list(zip(lifted, labels, strict=True)))
        if isinstance(first, tuple) and all(isinstance(v, tuple) and len(v) == len(first) for v in values):
            return tuple(self._merge(list(column), labels, what) for column in zip(*values, strict=True))
        if not any(isinstance(v, Bits) for v in values):
            try:
                if all(type(v) is type(first) and bool(v == first) for v in values):
                    return first
            except Exception as error:
                raise StageError(f"{what} cannot be compared") from error
        return _Conflict(what, values)

    def _merge_registers(self, edges: list[tuple[str, dict[str, Bits]]]) -> dict[str, Bits]:
        names = edges[0][1].keys()
        labels = [label for label, _ in edges]
        return {name: self._merge([regs[name] for _, regs in edges], labels, name) for name in names}

    def _join(self, label: str, edges: list[Edge], frame: _Frame) -> None:
        """Continue at `label` with what the live edges left."""
        if not edges:
            return
        self.code.start(label)
        labels = [e[0] for e in edges]
        names = [n for n in edges[0][1] if all(n in e[1] for e in edges)]
        frame.env = {n: self._merge([e[1][n] for e in edges], labels, f"variable {n}") for n in names}
        self.code.registers = self._merge_registers([(e[0], e[2]) for e in edges])

    def _edge(self, frame: _Frame) -> Edge:
        return self.code.block, dict(frame.env), dict(self.code.registers)

    # -- statements ----------------------------------------------------------------------------------------------------
    def _block(self, body: Sequence[ast.stmt], frame: _Frame) -> None:
        for statement in body:
            if not self.code.live:
                return
            try:
                if self._statement(statement, frame) is _STOP:
                    return
            except Unreachable:  # the code is not live any more
                return
            except Exception as error:
                if not hasattr(error, "__notes__") or len(error.__notes__) < 12:
                    error.add_note(f"  compiling {frame.function.__qualname__}, "
                                   f"{frame.function.__code__.co_filename}:{statement.lineno}")
                raise

    def _statement(self, node: ast.stmt, frame: _Frame) -> Any:
        match node:
            case ast.Expr(ast.Constant()) | ast.Pass():
                pass
            case ast.Expr(value):
                self._eval(value, frame)
            case ast.Assign(targets, value):
                result = self._eval(value, frame)
                for target in targets:
                    self._assign(target, result, frame)
            case ast.AnnAssign(target, _, value):
                if value is not None:
                    self._assign(target, self._eval(value, frame), frame)
            case ast.AugAssign(target, op, value):
                load = ast.copy_location(_as_load(target), target)
                left = self._eval(load, frame)
                self._assign(target, _BINARY[type(op)](left, self._eval(value, frame)), frame)
            case ast.If():
                self._if(node, frame)
            case ast.While():
                self._while(node, frame)
            case ast.For():
                return self._for(node, frame)
            case ast.Return(value):
                self._return(None if value is None else self._eval(value, frame), frame)
            case ast.Raise(exc):
                assert exc is not None
                self._raise(self._eval(exc, frame))
            case ast.Break():
                label, edges, _, _ = frame.loops[-1]
                edges.append(self._edge(frame))
                self.code.jump(label)
            case ast.Continue():
                _, _, label, edges = frame.loops[-1]
                edges.append(self._edge(frame))
                self.code.jump(label)
            case ast.Assert(test):
                value = self._eval(test, frame)
                assert _later(value) or value, f"assertion failed: {ast.unparse(test)}"
            case _:
                raise StageError(f"{type(node).__name__} cannot be compiled")
        return None

    def _return(self, value: Any, frame: _Frame) -> None:
        if not frame.exit:
            frame.exit = self.code.label("ret")
        frame.returns.append((self.code.block, value, dict(self.code.registers)))
        self.code.jump(frame.exit)

    def _raise(self, error: Any) -> None:
        if isinstance(error, type):
            error = error()
        if not isinstance(error, Unwind):
            raise StageError(f"compiled code raises Unwind only, not {type(error).__name__}")
        self.before_call(None)
        self.code.declare("declare dso_local void @throw(ptr, i64)")
        self.code.emit(f"call void @throw(ptr %s, i64 {error.code})")
        self.code.end("unreachable")

    def _assign(self, target: ast.expr, value: Any, frame: _Frame) -> None:
        match target:
            case ast.Name(name):
                frame.env[name] = value
            case ast.Tuple(elements) | ast.List(elements):
                parts = list(value)
                if len(parts) != len(elements):
                    raise StageError(f"{len(parts)} values for {len(elements)} names")
                for element, part in zip(elements, parts, strict=True):
                    self._assign(element, part, frame)
            case ast.Attribute(owner, name):
                setattr(self._eval(owner, frame), name, value)
            case ast.Subscript(owner, index):
                self._eval(owner, frame)[self._eval(index, frame)] = value
            case _:
                raise StageError(f"cannot assign to {ast.unparse(target)}")

    def _condition(self, node: ast.expr, frame: _Frame) -> Any:
        """A Python truth value, or a later value of width 1."""
        value = self._eval(node, frame)
        if _later(value):
            if value.width != 1:
                raise StageError(f"a condition has 1 bit, not {value!r}; compare with 0: {ast.unparse(node)}")
            return value
        return bool(value)

    def _if(self, node: ast.If, frame: _Frame) -> None:
        test = self._condition(node.test, frame)
        if isinstance(test, bool):
            self._block(node.body if test else node.orelse, frame)
            return
        code = self.code
        then, otherwise, after = code.label("then"), code.label("else"), code.label("endif")
        env, registers = dict(frame.env), dict(code.registers)
        code.branch(test.raw, then, otherwise, test.likely if isinstance(test, Hinted) else None)
        edges: list[Edge] = []
        for label, body in ((then, node.body), (otherwise, node.orelse)):
            frame.env, code.registers = dict(env), dict(registers)
            code.start(label)
            with self._scope():
                self._block(body, frame)
            if code.live:
                edges.append(self._edge(frame))
                code.jump(after)
        self._join(after, edges, frame)

    def _for(self, node: ast.For, frame: _Frame) -> Any:
        iterable = self._eval(node.iter, frame)
        if _later(iterable):
            raise StageError("for needs values known now; use while")
        for item in iterable:
            self._assign(node.target, item, frame)
            self._block(node.body, frame)
            if not self.code.live:
                return _STOP
        return None

    def _while(self, node: ast.While, frame: _Frame) -> None:
        code = self.code
        assigned = _Assigned()
        for statement in node.body:
            assigned.visit(statement)
        assigned.visit(node.test)
        header, done, again = code.label("while"), code.label("done"), code.label("next")
        entry = code.block
        before: dict[str, Bits] = {n: frame.env[n] for n in assigned.names if isinstance(frame.env.get(n), Bits)}
        for name in assigned.names:
            if name in frame.env and name not in before and isinstance(frame.env[name], int):
                raise StageError(f"variable {name} changes in a loop: give it a width, as in u64({frame.env[name]})")
        registers = dict(code.registers)
        code.jump(header)
        code.start(header)
        slots: dict[str, tuple[str, int]] = {}
        for name, value in {**before, **{f"register {n}": v for n, v in registers.items()}}.items():
            slots[name] = code.placeholder()
            phi = Bits(self.llvm, value.width, slots[name][0], value.lanes)
            if name.startswith("register "):
                code.registers[name[9:]] = phi
            else:
                frame.env[name] = phi
        breaks: list[Edge] = []
        continues: list[Edge] = []
        test = self._condition(node.test, frame)
        if not isinstance(test, bool):
            body = code.label("body")
            breaks.append(self._edge(frame))
            code.branch(test.raw, body, done, test.likely if isinstance(test, Hinted) else None)
            code.start(body)
        elif not test:
            raise StageError("while with a condition that is known to be false")
        frame.loops.append((done, breaks, again, continues))
        with self._scope():
            self._block(node.body, frame)
        frame.loops.pop()
        if code.live:
            continues.append(self._edge(frame))
            code.jump(again)
        latch = ""
        if continues:
            self._join(again, continues, frame)
            latch = code.block
        for name, (slot, at) in slots.items():
            value = before[name] if name in before else registers[name[9:]]
            arms = f"[ {self.llvm.lift(value)}, %{entry} ]"
            if continues:
                end = frame.env[name] if name in before else code.registers[name[9:]]
                if not isinstance(end, Bits) or (end.width, end.lanes) != (value.width, value.lanes):
                    raise StageError(f"variable {name} changes its width in a loop: {value!r} and {end!r}")
                arms += f", [ {self.llvm.lift(end)}, %{latch} ]"
            code.fill(slot, at, f"phi {type_of(value.width, value.lanes)} {arms}")
        if continues:
            code.jump(header)
        self._join(done, breaks, frame)

    # -- expressions ---------------------------------------------------------------------------------------------------
    def _eval(self, node: ast.expr, frame: _Frame) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return self._name(name, frame)
            case ast.Attribute(owner, name):
                return getattr(self._eval(owner, frame), name)
            case ast.Call(function, args, keywords):
                callee = self._eval(function, frame)
                values: list[Any] = []
                for arg in args:
                    if isinstance(arg, ast.Starred):
                        values.extend(self._eval(arg.value, frame))
                    else:
                        values.append(self._eval(arg, frame))
                named: dict[str, Any] = {}
                for keyword in keywords:
                    if keyword.arg is None:
                        named.update(self._eval(keyword.value, frame))
                    else:
                        named[keyword.arg] = self._eval(keyword.value, frame)
                return callee(*values, **named)
            case ast.BinOp(left, op, right):
                return _BINARY[type(op)](self._eval(left, frame), self._eval(right, frame))
            case ast.UnaryOp(op, operand):
                return self._unary(op, self._eval(operand, frame))
            case ast.Compare(left, ops, comparators):
                return self._compare(left, ops, comparators, frame)
            case ast.BoolOp(op, values):
                return self._bool(isinstance(op, ast.And), values, frame)
            case ast.IfExp(test, body, orelse):
                return self._ifexp(test, body, orelse, frame)
            case ast.Subscript(owner, index):
                return self._eval(owner, frame)[self._eval(index, frame)]
            case ast.Slice(lower, upper, step):
                return slice(*(None if p is None else self._eval(p, frame) for p in (lower, upper, step)))
            case ast.Tuple(elements):
                return tuple(self._eval(e, frame) for e in elements)
            case ast.List(elements):
                return [self._eval(e, frame) for e in elements]
            case ast.NamedExpr(ast.Name(name), value):
                frame.env[name] = self._eval(value, frame)
                return frame.env[name]
        # Lambdas, comprehensions, f-strings, dictionaries: as Python has them, over the names in sight.
        code = compile(ast.Expression(node), frame.function.__code__.co_filename, "eval")
        return eval(code, {**frame.function.__globals__, **frame.env})

    def _name(self, name: str, frame: _Frame) -> Any:
        if name in frame.env:
            value = frame.env[name]
            if isinstance(value, _Conflict):
                raise StageError(f"{value.what} differs on two paths that meet here: {value.values}; give it a width")
            return value
        if name in frame.function.__globals__:
            return frame.function.__globals__[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise StageError(f"name {name} is not defined on every path that leads here")

    def _unary(self, op: ast.unaryop, value: Any) -> Any:
        match op:
            case ast.Not():
                return ~value if _later(value) else not value
            case ast.Invert():
                return ~value
            case ast.USub():
                return -value
        return +value

    def _compare(self, left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr], frame: _Frame) -> Any:
        a, result = self._eval(left, frame), None
        for op, right in zip(ops, rights, strict=True):
            b = self._eval(right, frame)
            value = _COMPARE[type(op)](a, b)
            if isinstance(value, bool):
                value = const(int(value), 1) if isinstance(result, Bits) else value
            result = value if result is None else result & value
            a = b
        return result

    def _bool(self, conjunction: bool, nodes: list[ast.expr], frame: _Frame) -> Any:
        value = self._eval(nodes[0], frame)
        if len(nodes) == 1:
            return value
        if not _later(value):
            if bool(value) != conjunction:
                return value
            return self._bool(conjunction, nodes[1:], frame)
        code = self.code
        more, after = code.label("and" if conjunction else "or"), code.label("short")
        first = self._edge(frame)
        code.branch(value.raw, *((more, after) if conjunction else (after, more)))
        code.start(more)
        with self._scope():
            rest = self._bool(conjunction, nodes[1:], frame)
        if not isinstance(rest, Bits):
            rest = const(int(bool(rest)), 1)
        second = self._edge(frame)
        code.jump(after)
        code.start(after)
        code.registers = self._merge_registers([(first[0], first[2]), (second[0], second[2])])
        return self._merge([const(int(not conjunction), 1), rest], [first[0], second[0]], "a condition")

    def _ifexp(self, test: ast.expr, body: ast.expr, orelse: ast.expr, frame: _Frame) -> Any:
        condition = self._condition(test, frame)
        if isinstance(condition, bool):
            return self._eval(body if condition else orelse, frame)
        code = self.code
        then, otherwise, after = code.label("then"), code.label("else"), code.label("endif")
        code.branch(condition.raw, then, otherwise)
        code.start(then)
        registers = dict(code.registers)
        with self._scope():
            a = self._eval(body, frame)
        first = (code.block, dict(code.registers))
        code.jump(after)
        code.start(otherwise)
        code.registers = registers
        with self._scope():
            b = self._eval(orelse, frame)
        second = (code.block, dict(code.registers))
        code.jump(after)
        code.start(after)
        code.registers = self._merge_registers([first, second])
        merged = self._merge([a, b], [first[0], second[0]], "a conditional expression")
        if isinstance(merged, _Conflict):
            raise StageError(f"{ast.unparse(body)} and {ast.unparse(orelse)} have no common width")
        return merged


@dataclass
class _Conflict:
    """A variable with two incompatible values; an error only if it is used."""

    what: str
    values: list[Any]


_STOP = object()


def _as_load(target: ast.expr) -> ast.expr:
    load = ast.Load()
    match target:
        case ast.Name(name):
            return ast.Name(name, load)
        case ast.Attribute(owner, name):
            return ast.Attribute(owner, name, load)
        case ast.Subscript(owner, index):
            return ast.Subscript(owner, index, load)
    raise StageError(f"cannot update {ast.unparse(target)}")
