"""The one step of `avssl.transforms.kernels` that the compiler does not turn into vector code by itself.

It is spelt out in the compiler's own language, for no processor in particular. Whoever changes it touches
`kernels.py` too: compiled code is kept on disk until the file of the function that was called changes.
"""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 4
"""Numbers that a processor's register holds at the least."""


@intrinsic
def weigh_pixels(typing, line, offsets, weights, x, red, green, blue):  # type: ignore[no-untyped-def]
    """``red[x + p], green[x + p], blue[x + p] = sum of weights[k, x + p] line[offsets[x + p] + 3 k ...]``.

    For the next `LANES` pixels p. The compiler does not find by itself that three colours side by side and
    whatever comes after them fit one register.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
            if isinstance(kind, types.Array)
        ]
        source, begins, factors, *targets = (array.data for array in arrays)
        (count, width), x = cgutils.unpack_tuple(builder, arrays[2].shape), arguments[3]
        vector = ir.VectorType(ir.FloatType(), LANES)
        nothing = ir.Constant(vector, ir.Undefined)

        def pick(first, second, *lanes):  # type: ignore[no-untyped-def]
            chosen = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
            return builder.shuffle_vector(first, second, chosen)

        def at(base, place):  # type: ignore[no-untyped-def]
            return builder.bitcast(builder.gep(base, [place]), vector.as_pointer())

        pixels = [builder.add(x, x.type(p)) for p in range(LANES)]
        places = [builder.load(builder.gep(begins, [pixel])) for pixel in pixels]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in pixels]
        with cgutils.for_range(builder, count) as loop:
            step = builder.mul(loop.index, x.type(3))
            number = builder.add(builder.mul(loop.index, width), x)
            its_weights = builder.load(at(factors, number), align=4)
            for lane, (place, total) in enumerate(zip(places, sums, strict=True)):
                colours = builder.load(at(source, builder.add(place, step)), align=4)
                part = builder.fmul(colours, pick(its_weights, nothing, *[lane] * LANES), flags=("fast",))
                builder.store(builder.fadd(builder.load(total), part, flags=("fast",)), total)
        a, b, c, d = (builder.load(total) for total in sums)
        ab, cd = pick(a, b, 0, 4, 1, 5), pick(c, d, 0, 4, 1, 5)  # two reds, two greens
        blues = pick(pick(a, b, 2, 6, 3, 7), pick(c, d, 2, 6, 3, 7), 0, 1, 4, 5)
        for target, value in zip(
            targets, [pick(ab, cd, 0, 1, 4, 5), pick(ab, cd, 2, 3, 6, 7), blues], strict=True
        ):
            builder.store(value, at(target, x), align=4)

    return types.void(line, offsets, weights, x, red, green, blue), generate
