"""The CPU engine's compiler, beside what NumPy and Python make of the same."""

from __future__ import annotations

import ctypes
import linecache
import math
import operator
from itertools import count, product

import numpy as np
import pytest

from steprule.compiler.functions import apart, exact, fast
from steprule.compiler.objects import compiled, loaded, written
from steprule.compiler.values import CompileError
from steprule.engine import machine
from steprule.engine.machine import add_square, add_up, float32s, float64
from steprule.formats import kernel
from steprule.formats.kernel import from_bfloat16, to_bfloat16

NUMBER = count()
FLOATS = [0.0, -0.0, 1.0, -2.5, 3e-41, 1e30, -7.25, math.inf, -math.inf, math.nan]
WHOLE = [0, 1, -1, 2, -2, 3, 7, -7, 128, -128, 2**31, -(2**40), 2**62]
TABLE = 5, -3, 8
NAMES = {**vars(machine), **vars(kernel), "TABLE": TABLE}


def run(function, *arrays, numbers=()):
    """Calls a function of an address, where the addresses of arrays and some numbers lie."""
    name = f"test{next(NUMBER)}"
    plan = np.array([*(x.ctypes.data for x in arrays), *numbers], np.int64)
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded(compiled(function, name), name))(plan.ctypes.data)


def of_floats(text, dtype):
    """A function of two arrays of numbers: into a third goes what the text makes of x and y."""
    code = f"""
def f(at):
    plan = int64s(at)
    a, b, c = {dtype}s(plan[0]), {dtype}s(plan[1]), {dtype}s(plan[2])
    for i in range(plan[3]):
        x, y = a[i], b[i]
        c[i] = {text}
"""
    return made(code)


def made(code, scope=None):
    """The function f of some code."""
    name = f"<code {next(NUMBER)}>"
    linecache.cache[name] = len(code), None, code.splitlines(True), name
    scope = {**NAMES, "_deepest": _deepest, **(scope or {})}
    exec(compile(code, name, "exec"), scope)
    return exact(scope["f"])


def computed(text, xs, ys, dtype):
    x, y = (np.array(one, dtype) for one in zip(*product(xs, ys), strict=True))
    result = np.zeros_like(x)
    run(of_floats(text, dtype), x, y, result, numbers=[len(x)])
    return x, y, result


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", ["+", "-", "*", "/"])
def test_arithmetic_of_fractions(sign, dtype):
    x, y, result = computed(f"x {sign} y", FLOATS, FLOATS, dtype)
    with np.errstate(all="ignore"):
        wanted = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[sign](x, y)
    np.testing.assert_array_equal(result, wanted, strict=True)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(result[numbers]), np.signbit(wanted[numbers]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_comparisons(sign, dtype):
    compare = {
        "<": np.less,
        "<=": np.less_equal,
        ">": np.greater,
        ">=": np.greater_equal,
        "==": np.equal,
        "!=": np.not_equal,
    }[sign]
    x, y, result = computed(f"{dtype}(x {sign} y)", FLOATS, FLOATS, dtype)
    np.testing.assert_array_equal(result, compare(x, y))
    x, y, result = computed(f"x if not (x {sign} y) else y", FLOATS, FLOATS, dtype)
    np.testing.assert_array_equal(result, np.where(compare(x, y), y, x))
    x, y, result = computed(f"x {sign} y", WHOLE, WHOLE, "int64")
    np.testing.assert_array_equal(result, compare(x, y))


@pytest.mark.parametrize("sign", ["+", "-", "*", "//", "%", "&", "|", "^"])
def test_arithmetic_of_whole_numbers(sign):
    x, y, result = computed(f"x {sign} y", WHOLE, WHOLE, "int64")
    whole = {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod", "&": "and_", "|": "or_", "^": "xor"}[
        sign
    ]
    wanted = [
        0 if sign in ("//", "%") and not b else getattr(operator, whole)(a, b)
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(result, [(one + 2**63) % 2**64 - 2**63 for one in wanted])


def test_shifts_and_unsigned_numbers():
    x, _, result = computed("int64((uint64(x) * uint64(0x9E3779B97F4A7C15)) >> uint64(7))", WHOLE, [0], "int64")
    np.testing.assert_array_equal(result, [(a % 2**64 * 0x9E3779B97F4A7C15) % 2**64 >> 7 for a in x.tolist()])
    x, y, result = computed("x >> y", WHOLE, [0, 1, 30], "int64")
    np.testing.assert_array_equal(result, x >> y)
    x, y, result = computed("x << y", WHOLE, [0, 1, 30], "int64")
    np.testing.assert_array_equal(result, x << y)
    x, _, result = computed("int64(uint32(x))", WHOLE, [0], "int64")
    np.testing.assert_array_equal(result, x % 2**32)
    x, y, result = computed("float64(uint64(x)) if uint64(x) < uint64(y) else 0.0", WHOLE, WHOLE, "int64")
    unsigned, other = x.astype(np.uint64), y.astype(np.uint64)
    wanted = np.where(unsigned < other, unsigned.astype(np.float64), 0.0)
    small = wanted < 2**62
    np.testing.assert_array_equal(result[small], wanted[small].astype(np.int64))


def test_conversions_are_those_of_c():
    x, _, result = computed("float64(float32(x))", [*FLOATS, 0.1, 1e-300], [0.0], "float64")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, x.astype(np.float32).astype(np.float64))
    x, _, result = computed("float64(int64(x))", [0.0, 2.9, -2.9, 1e15], [0.0], "float64")
    np.testing.assert_array_equal(result, [0, 2, -2, 1e15])
    x, _, result = computed("float32(int64(7)) + x", FLOATS, [0.0], "float32")
    np.testing.assert_array_equal(result, np.float32(7) + x)
    x, _, result = computed("float32(x + 0.1)", FLOATS, [0.0], "float32")  # 0.1 has 64 bits
    np.testing.assert_array_equal(result, (x.astype(np.float64) + 0.1).astype(np.float32))
    x, _, result = computed("float32(int64(x > 0.0) * 3)", FLOATS, [0.0], "float32")
    np.testing.assert_array_equal(result, np.where(x > 0, 3, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sqrt", "exp", "log", "floor", "abs", "-"])
def test_functions_of_fractions(name, dtype):
    wanted = {"abs": np.abs, "-": np.negative}.get(name) or getattr(np, name)
    x, _, result = computed(f"{name}(x)", FLOATS, [0.0], dtype) if name not in dir(math) else (None,) * 3
    if x is None:
        x, result = np.array(FLOATS, dtype), np.zeros(len(FLOATS), dtype)
        text = "def f(at):\n    plan = int64s(at)\n    a, c = {0}s(plan[0]), {0}s(plan[1])\n    for i in range(plan[2]):\n        c[i] = {1}(a[i])\n"
        run(made(text.format(dtype, name), vars(math)), x, result, numbers=[len(x)])
    with np.errstate(all="ignore"):
        expected = wanted(x)
    eps = {"exp": 4, "log": 4}.get(name, 0) * np.finfo(dtype).eps
    np.testing.assert_allclose(result, expected, eps, 0)
    assert result.dtype == expected.dtype


def test_powers():
    x, y, result = computed("x ** y", [0.0, 0.5, 0.999, 2.0, math.inf], [0.0, 1.0, 2.0, 3.0, 1000.0, 0.5], "float64")
    np.testing.assert_allclose(result, x**y, 1e-15)


def test_instructions():
    x, y, result = computed("multiply_add(x, y, x)", [0.1, -3.0, 1e10], [7.0, 1e-10], "float64")
    np.testing.assert_allclose(result, [math.fsum([a * b, a]) for a, b in zip(x, y, strict=True)], 1e-15)
    x, _, result = computed(
        "number_as_bits(bits_as_number(x) - float32(8388608))", [1.0, 2.0, 1024.0], [0.0], "float32"
    )
    np.testing.assert_array_equal(result, x / 2)
    x, _, result = computed("from_bfloat16(to_bfloat16(x))", [1.0, 1.00390625, 1.01171875, math.nan], [0.0], "float32")
    np.testing.assert_array_equal(result, [1.0, 1.0, 1.015625, math.nan])


@exact
def _deepest(x, most):
    for i in range(most):
        if x > i and x % 2 == 0:
            return i, x
        elif x < -i or x == 1:
            x = x + i
        else:
            while True:
                x += 1
                if x > 5:
                    return -1, x
    return most, x


def deepest(x, most):
    """The same in Python."""
    return _deepest._python(x, most)


def test_calls_loops_and_returns():
    code = """
def f(at):
    plan = int64s(at)
    a, c = int64s(plan[0]), int64s(plan[1])
    for i in range(0, plan[2]):
        first, second = _deepest(a[i], 4)
        c[2 * i], c[2 * i + 1] = first, second
    a[0] += 1
    return min(a[0], plan[2], 100) + max(3, TABLE[plan[3]]) + len(TABLE)
"""
    x = np.array(WHOLE, np.int64)
    result = np.zeros(2 * len(x), np.int64)
    answer = run(made(code), x, result, numbers=[len(x), 2])
    assert result.reshape(-1, 2).tolist() == [[*deepest(one, 4)] for one in WHOLE]
    assert answer == 1 + 8 + 3 and x[0] == 1


def test_conditions_stop_where_they_are_decided():
    code = """
def f(at):
    plan = int64s(at)
    counter = plan[0]
    both = fetch_add(counter, 1) == 0 and fetch_add(counter, 1) == 5 and fetch_add(counter, 100) == 0
    one = fetch_add(counter, 1) == 2 or fetch_add(counter, 100) == 0
    return int64(both) + 2 * int64(one)
"""
    counter = np.zeros(1, np.int64)
    assert run(made(code), counter) == 2
    assert counter[0] == 3


def test_nothing_is_returned_by_some():
    code = """
def g(x):
    if x[0] > 3:
        return
    x[0] = 9

g = exact(g)

def f(at):
    plan = int64s(at)
    g(int64s(plan[0]))
    g(int64s(plan[0]))
"""
    x = np.zeros(1, np.int64)
    assert run(made(code), x) == 0 and x[0] == 9


def test_what_may_be_assumed_stands_at_each_operation():
    """Nothing but signs of zeros, and in sums the order; of operations that called functions write, too."""

    def of(x, y):
        return x * y + from_bfloat16(to_bfloat16(x)) - abs(y)

    def sums(x, y):
        return add_square(add_up(x, y), y)

    scope = {"of": fast(of), "sums": exact(sums), "plain": exact(of)}
    body = "def f(at):\n    x = float32s(at)\n    x[0] = {}(x[1], x[2])\n"

    def flags(name):
        text = str(written(made(body.format(name), scope), "f"))
        return {
            line.split(" = ")[1].split(" float")[0]
            for line in text.splitlines()
            if any(word in line for word in ("fadd", "fsub", "fmul", "fcmp", "call")) and " = " in line
        }

    assert flags("plain") == {"fmul", "fadd", "fsub", "call", "fcmp uno"}
    assert flags("of") == {"fmul nsz", "fadd nsz", "fsub nsz", "call nsz", "fcmp nsz uno"}
    assert flags("sums") == {"fadd reassoc", "call reassoc"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "text",
    [
        "-(x > y)", "(x > y) - (x < y)", "(x > y) + (y > x) + (x == y)", "(x > 0.0) * y", "x * (y > 0.0)", "(x > y) ** 2", "2.0 ** (x > y)",
        "(x > y) / 2", "1 - (x > y)", "(x > y) < (x < y)", "((x > y) & (x > 0.0)) * 1.0", "((x > y) ^ (x > 0.0)) * 1.0",
        "(x > y) == 1.0",
    ],
)  # fmt: skip
def test_truth_values_count_as_numbers(text, dtype):
    numbers = [0.0, 1.0, -2.5, 7.25]
    x, y, result = computed(text, numbers, numbers, dtype)
    wanted = [float(eval(text, {"x": a, "y": b})) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    np.testing.assert_array_equal(result, wanted)


def test_truth_values_where_numbers_are_chosen_or_given():
    _, _, result = computed("(x > 1.0) if y > 0.0 else x", [0.0, 2.0], [0.0, 2.0], "float32")
    assert result.tolist() == [0, 0, 2, 1]
    _, _, result = computed("multiply_add(x > 1.0, y, x)", [0.0, 2.0], [3.0], "float32")
    assert result.tolist() == [0, 5]
    scope = {"sqrt": math.sqrt}
    code = "def f(at):\n    x = float64s(int64s(at)[0])\n    x[0] = {}\n"
    for text, wanted in {
        "sqrt(x[0] > 1.0)": 1.0,
        "abs(x[0] < 1.0)": 0.0,
        "(x[0] > 1.0) & x[0]": 1.0,
        "x[0] | (x[0] > 9.0)": 1.0,
    }.items():
        x = np.array([4.0])
        run(made(code.format(text), scope), x)
        assert x[0] == wanted, text


def test_what_no_branch_has_set_is_zero():
    code = """
def f(at):
    plan = int64s(at)
    if plan[0] > 5:
        x = 7
    for i in range(plan[0]):
        pass
    return 10 * x + i
"""
    assert [run(made(code), numbers=[one]) for one in (0, 9)] == [0, 78]


def test_the_least_number_is_divided_by_all():
    _, _, result = computed("x // y", [-(2**63)], [-1, 1, 0, 2], "int64")
    assert result.tolist() == [-(2**63), -(2**63), 0, -(2**62)]
    assert not computed("x % y", [-(2**63)], [-1, 1, 0, 2], "int64")[2].any()


def test_what_is_apart_is_a_function_of_its_own():
    def sums(address, numbers, size):
        low, (factor, _) = 0.0, numbers
        x = float32s(address)
        for i in range(size):
            low = add_up(low, float64(x[i] * factor))
        return low, float64(size)

    code = """
def f(at):
    plan = int64s(at)
    total, count = sums(plan[0], (float32(2), (1, 2)), plan[1])
    return int64(total + count)
"""
    function = made(code, {"sums": apart(sums)})
    text = str(written(function, "f"))
    assert text.count("define") == 2 and "noinline" in text
    assert run(function, np.arange(5, dtype=np.float32), numbers=[5]) == 25


def test_float16_without_a_processor_that_converts_it(monkeypatch):
    monkeypatch.setattr(kernel, "_has_float16", lambda: False)
    codes = np.arange(2**16, dtype=np.uint16)
    code = """
def f(at):
    plan = int64s(at)
    for i in range(plan[2]):
        store(plan[1], i, from_float16(load(plan[0], i)))
"""
    found = np.zeros(2**16, np.float32)
    run(
        made(code, {"load": kernel.array("float16", 0)[0], "store": kernel.array("float32", 1)[1]}),
        codes,
        found,
        numbers=[2**16],
    )
    halves = codes.view(np.float16)
    np.testing.assert_array_equal(found, halves.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(halves))

    with np.errstate(all="ignore"):
        near = np.concatenate([found, (found[:-1] + found[1:]) / 2])  # and what lies in the middle
        x = np.concatenate(
            [
                near,
                np.nextafter(near, np.float32(np.inf)),
                np.nextafter(near, np.float32(-np.inf)),
                [1e-30, 65519.99, 1e38],
            ]
        )
        x = x.astype(np.float32)
        wanted = x.astype(np.float16)
    result = np.zeros(len(x), np.uint16)
    code = code.replace("from_", "to_")
    run(
        made(code, {"load": kernel.array("float32", 0)[0], "store": kernel.array("float16", 1)[1]}),
        x,
        result,
        numbers=[len(x)],
    )
    np.testing.assert_array_equal(result.view(np.float16), wanted)
    finite = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(result.view(np.float16)[finite]), np.signbit(wanted[finite]))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("x = plan[0] + y", "there is no y"),
        ("x = plan + 1", "address of int64 and int64 are no two numbers"),
        ("x = uint32(1) + 1", "uint32 and int64, of which neither is the wider"),
        ("x = 1.5 & 1", "no BitAnd of float64"),
        ("x, y = plan[0], 1, 2", r"\(int64, int64, int64\) for 2 variables"),
        ("x = 1; x = 1.5", "float64 for what was int64"),
        ("x = 1 if at else 1.5", "int64 or float64"),
        ("x = [1]", "no List"),
        ("x = 'a'", "'a' is no number"),
        ("import math", "no Import"),
        ("for x in plan: pass", "a loop is over range"),
        ("for x in range(1, 5, 2): pass", "a loop is over range"),
        ("x = 1 < 2 < 3", "comparisons are of two"),
        ("x = multiply_add(1.0, plan, 2.0)", "address of int64 where float64 is needed"),
        ("x = print(1)", "there is no print"),
        ("x = True; x = 2.5", "float64 for what was bool"),
        ("x = plan[1.5]", "float64 where int64 is needed"),
        ("x = 2 ** 70 + 1180591620717411303424", "has more than 64 bits"),
        ("x = fetch_add(at)", "1 arguments where there are 2"),
        ("x = multiply_add(1, 2, 3)", "int64, int64, int64 where numbers with fractions are needed"),
        ("x = len(3)", "3 is no name"),
        ("x = max()", "max takes one number"),
        ("if at: return 1", "f returns something, and nothing at its end"),
        ("x = min(1.0, 2.0)", "min and max are of whole numbers"),
        ("x = _deepest(1)", "_deepest takes 2 arguments, not 1"),
        ("x = int64(1, 2)", "int64 takes one number"),
        ("return 1, 2", "f returns several"),
    ],
)
def test_what_is_not_compiled_is_refused_with_its_line(line, error):
    with pytest.raises(CompileError, match=error) as seen:
        written(made(f"\ndef f(at):\n    plan = int64s(at)\n    {line}\n"), "f")
    if "return" not in line:
        assert ":4: " in str(seen.value)
