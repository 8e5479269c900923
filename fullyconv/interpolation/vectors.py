# mypy: disable-error-code="untyped-decorator"
"""Sixteen floats as one value inside numba kernels: what the loop vectoriser will not do for short rows, said
outright.

A `Vector` is LLVM's <16 x float>; LLVM maps it to whatever the processor has (one AVX-512, two AVX, four NEON
registers). Arithmetic may be fused (`contract`) and is otherwise strict IEEE, so results do not depend on the
processor's width.
"""

from __future__ import annotations

import operator
from typing import Any, final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending
from numba.core import cgutils, types

__all__ = [
    "WIDTH",
    "at_least",
    "beaten",
    "copy",
    "copy_eight",
    "exp",
    "load16",
    "log",
    "maximum",
    "spread",
    "store",
    "store_integers",
    "take_ticket",
    "where_greater",
]

WIDTH = 16  # floats: one AVX-512 register, two of AVX2, four of NEON
# numba's own annotations describe these as seen from plain Python, not from a kernel.
intrinsic: Any = extending.intrinsic
overload: Any = extending.overload
register_model: Any = extending.register_model
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)
_CONTRACT = ("contract",)


@final
class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Vector16")


_vector: Any = _Vector()


@final
@register_model(_Vector)
class _VectorModel(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _FLOATS)  # type: ignore[no-untyped-call]


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, to: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * WIDTH)


def _whole(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * WIDTH)


@intrinsic
def load16(typingctx: Any, array: Any, index: Any) -> Any:
    """The 16 floats of a contiguous 1-D float32 array from `index` on; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, array, args[0], args[1], _FLOATS), align=4)

    return _vector(array, types.intp), generate


@intrinsic
def store(typingctx: Any, vector: Any, array: Any, index: Any) -> Any:
    """Put 16 floats into a contiguous 1-D float32 array from `index` on; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[0], _pointer(context, builder, array, args[1], args[2], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(_vector, array, types.intp), generate


@intrinsic
def store_integers(typingctx: Any, vector: Any, array: Any, index: Any) -> Any:
    """Put 16 whole, non-negative floats into a contiguous 1-D array of unsigned integers; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = ir.VectorType(ir.IntType(array.dtype.bitwidth), WIDTH)
        whole = builder.fptosi(args[0], _INTEGERS)
        value = builder.trunc(whole, narrow) if array.dtype.bitwidth < 32 else whole
        builder.store(value, _pointer(context, builder, array, args[1], args[2], narrow), align=1)
        return context.get_dummy_value()

    return types.void(_vector, array, types.intp), generate


@intrinsic
def spread(typingctx: Any, value: Any) -> Any:
    """One number in all 16 places."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _whole(0))

    return _vector(types.float32), generate


def _binary(name: str, operation: Any) -> None:
    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(args[0], args[1], flags=_CONTRACT)

        return _vector(_vector, _vector), generate

    @overload(operation)
    def choose(a, b):  # type: ignore[no-untyped-def]  # numba compares the two signatures
        if isinstance(a, _Vector) and isinstance(b, _Vector):
            return lambda a, b: apply(a, b)
        return None


for _name, _operation in (
    ("fadd", operator.add),
    ("fsub", operator.sub),
    ("fmul", operator.mul),
    ("fdiv", operator.truediv),
):
    _binary(_name, _operation)


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger, place by place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return _vector(_vector, _vector), generate


@intrinsic
def where_greater(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """`yes` where a > b, else `no`, place by place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return _vector(_vector, _vector, _vector, _vector), generate


@intrinsic
def at_least(typingctx: Any, a: Any, b: Any) -> Any:
    """A 16-bit integer with bit i set where a[i] >= b[i]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered(">=", args[0], args[1]), ir.IntType(WIDTH))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(_vector, _vector), generate


@intrinsic
def beaten(typingctx: Any, scores: Any, place: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """A 16-bit integer with bit i set where a, b, c and d all lie below what `scores` holds for them at `place`, + 16,
    + 32 and + 48.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lower = None
        for corner in range(4):
            index = builder.add(args[1], ir.Constant(args[1].type, corner * WIDTH))
            pointer = _pointer(context, builder, scores, args[0], index, _FLOATS)
            under = builder.fcmp_ordered("<", args[2 + corner], builder.load(pointer, align=4))
            lower = under if lower is None else builder.and_(lower, under)
        return builder.zext(builder.bitcast(lower, ir.IntType(WIDTH)), ir.IntType(64))

    return types.int64(scores, types.intp, _vector, _vector, _vector, _vector), generate


@intrinsic
def copy(typingctx: Any, source: Any, at: Any, target: Any, to: Any, count: Any) -> Any:
    """target[to : to + count] = source[at : at + count], contiguous 1-D arrays of one type, apart; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = context.get_data_type(source.dtype)
        begin = _pointer(context, builder, source, args[0], args[1], item)
        goal = _pointer(context, builder, target, args[2], args[3], item)
        size = source.dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, goal, begin, args[4], size)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp, types.intp), generate


@intrinsic
def copy_eight(typingctx: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
    """target[to : to + 8] = source[at : at + 8], both contiguous 1-D arrays of one type; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        eight = ir.VectorType(context.get_data_type(source.dtype), 8)
        value = builder.load(_pointer(context, builder, source, args[0], args[1], eight), align=1)
        builder.store(value, _pointer(context, builder, target, args[2], args[3], eight), align=1)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), generate


@intrinsic
def take_ticket(typingctx: Any, counter: Any) -> Any:
    """The next whole number: returns counter[0] (int64) and adds one, as one step for all threads."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = context.make_array(counter)(context, builder, args[0]).data
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@final
class _Builder:
    """Vector arithmetic while IR is being generated, to write polynomials as one does on paper."""

    def __init__(self, builder: Any) -> None:
        self.ir = builder

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        product = self.ir.fmul(a, b, flags=_CONTRACT)
        return self.ir.fadd(product, c, flags=_CONTRACT)

    def polynomial(self, x: Any, coefficients: tuple[float, ...]) -> Any:
        total = _constant(coefficients[0])
        for c in coefficients[1:]:
            total = self.multiply_add(total, x, _constant(c))
        return total


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """exp(x) for x <= 0 to about 1 ulp, exp(-87) below -87. Polynomial: Cephes expf (Moshier)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        make = _Builder(builder)
        floor = _constant(-87.0)
        value = builder.select(builder.fcmp_ordered(">", args[0], floor), args[0], floor)
        # Adding 1.5 * 2^23 rounds to a whole number n, and leaves it in the lowest bits; no flag on the difference, or
        # LLVM might fold it away.
        magic = _constant(12582912.0)
        shifted = make.multiply_add(value, _constant(1.44269504088896341), magic)
        n = builder.fsub(shifted, magic)
        r = make.multiply_add(n, _constant(-0.693359375), value)
        r = make.multiply_add(n, _constant(2.12194440e-4), r)
        p = make.polynomial(
            r,
            (
                1.9875691500e-4,
                1.3981999507e-3,
                8.3334519073e-3,
                4.1665795894e-2,
                1.6666665459e-1,
                5.0000001201e-1,
            ),
        )
        p = make.multiply_add(p, builder.fmul(r, r), builder.fadd(r, _constant(1.0)))
        # p lies in [0.7, 1.42]: times 2^n is n more in its exponent.
        exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), _whole(23))
        return builder.bitcast(builder.add(builder.bitcast(p, _INTEGERS), exponent), _FLOATS)

    return _vector(_vector), generate


@intrinsic
def log(typingctx: Any, x: Any) -> Any:
    """log(x) for normal x > 0 to about 1 ulp. Polynomial: Cephes logf (Moshier)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        make = _Builder(builder)
        bits = builder.bitcast(args[0], _INTEGERS)
        exponent = builder.sub(builder.lshr(bits, _whole(23)), _whole(126))
        mantissa = builder.or_(builder.and_(bits, _whole(0x007FFFFF)), _whole(0x3F000000))
        m = builder.bitcast(mantissa, _FLOATS)  # in [0.5, 1)
        low = builder.fcmp_ordered("<", m, _constant(0.70710678118654752440))
        whole = builder.sitofp(exponent, _FLOATS)
        n = builder.select(low, builder.fsub(whole, _constant(1.0)), whole)
        m = builder.fsub(builder.select(low, builder.fadd(m, m), m), _constant(1.0))
        z = builder.fmul(m, m)
        p = make.polynomial(
            m,
            (
                7.0376836292e-2,
                -1.1514610310e-1,
                1.1676998740e-1,
                -1.2420140846e-1,
                1.4249322787e-1,
                -1.6668057665e-1,
                2.0000714765e-1,
                -2.4999993993e-1,
                3.3333331174e-1,
            ),
        )
        p = builder.fmul(builder.fmul(p, m), z)
        p = make.multiply_add(n, _constant(-2.12194440e-4), p)
        p = make.multiply_add(z, _constant(-0.5), p)
        return make.multiply_add(n, _constant(0.693359375), builder.fadd(m, p))

    return _vector(_vector), generate
