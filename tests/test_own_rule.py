"""A user's own rule, in their own file, in every engine and both fronts."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import random_operands, run_cpu, run_eager
from forked import MODULES, forked
from test_engines import assert_within_bound

import steprule
from steprule import Optimizer, Rule, RuleError, arrays
from steprule.pieces import ema, exp, floor, log, minimum, where
from steprule.rule import TorchArguments

EXAMPLE = Path(__file__).parent.parent / "examples" / "lion.py"


@pytest.fixture(scope="module")
def lion():
    spec = importlib.util.spec_from_file_location("lion", EXAMPLE)
    module = sys.modules["lion"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["lion"]


@pytest.mark.parametrize("run", [run_cpu, run_eager])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_runs_in_every_engine(lion, run, dtype):
    rule = lion.LionRule
    hyper = {**rule.hyperparameters, "weight_decay": 0.1}
    operands = random_operands(rule, hyper, 500, dtype, seed=0)
    assert_within_bound(rule, hyper, operands, 1, False, run(rule, hyper, operands, 1))


def test_it_is_a_torch_optimizer(lion):
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = lion.Lion([param], lr=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    param.grad = torch.tensor([0.5, -4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.9, -1.9, 3.0]))
    torch.testing.assert_close(optimizer.state[param]["exp_avg"], torch.tensor([0.005, -0.04, 0.0]))
    copy = pickle.loads(pickle.dumps(optimizer))
    assert copy.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_it_is_an_array_optimizer(lion):
    class ArrayLion(arrays.Optimizer, rule=lion.LionRule):
        pass

    param = np.array([1.0, -2.0, 3.0])
    ArrayLion([param], lr=0.1).step([np.array([0.5, -4.0, 0.0])])
    np.testing.assert_allclose(param, [0.9, -1.9, 3.0])


def test_the_example_runs():
    (result,) = forked([[EXAMPLE]], MODULES)
    assert result.returncode == 0, result.stderr
    losses = [float(line.split()[1]) for line in result.stdout.splitlines()]
    assert len(losses) == 2 and all(loss < 0.5 for loss in losses)


def test_a_rule_that_cannot_run_says_so_at_construction():
    class Branching(steprule.Rule):
        def update(param, grad, *, lr=0.1):
            return param if grad > 0 else param - lr * grad

    class Optimizer(steprule.Optimizer, rule=Branching):
        pass

    with pytest.raises(steprule.RuleError, match=r"branches on a number.*test_own_rule.py.*where\(condition, a, b\)"):
        Optimizer([torch.nn.Parameter(torch.ones(2))])


def test_a_rule_whose_fault_shows_later_changes_nothing():
    """The flag is turned on after construction; the step refuses and the parameter and states stay."""

    class Late(steprule.Rule):
        def update(param, grad, exp_avg, *, lr=0.1, broken=False):
            return (param - lr * grad,) if broken else (param - lr * grad, exp_avg)

    class Optimizer(steprule.Optimizer, rule=Late):
        pass

    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = Optimizer([param])
    optimizer.param_groups[0]["broken"] = True
    with pytest.raises(steprule.RuleError, match="returned 1 value and must return 2: param, exp_avg"):
        optimizer.step()
    assert torch.equal(param, torch.ones(2)) and not optimizer.state
    optimizer.param_groups[0]["broken"] = False
    optimizer.step()
    assert torch.equal(param, torch.full((2,), 0.9))


def test_a_subclass_with_arguments_of_its_own_shows_them():
    class Scaled(steprule.AdamW):
        def __init__(self, params, lr=0.1, scale=1.0):
            super().__init__(params, lr=lr * scale)

    assert list(inspect.signature(Scaled).parameters) == ["params", "lr", "scale"]
    assert Scaled([torch.nn.Parameter(torch.ones(2))], scale=2.0).defaults["lr"] == 0.2


@pytest.mark.parametrize("make", [lambda: Normed, lambda: steprule.chain(steprule.rules.Lion, name="Mine")])
def test_a_formula_that_is_called_says_what_its_optimizer_is(make):
    rule = make()
    with pytest.raises(TypeError, match=rf"{rule.__name__} is a formula .* steprule.Optimizer.of\({rule.__name__}\)"):
        rule([torch.ones(2, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Rprop", {"weight_decay": 0.1}, "'weight_decay'; it has no weight_decay; it takes params, lr, "),
        ("Rprop", {"wd": 0.1}, "'wd'; it has no weight_decay; it takes params, lr, "),
        ("Rprop", {"momentum": 0.1}, "'momentum'; it has no momentum; it takes params, lr, "),
        ("AdamW", {"weight_decai": 0.1}, "'weight_decai'; did you mean 'weight_decay'?"),
        ("AdamW", {"beta": 0.1}, "'beta'; did you mean 'betas'?"), ("AdamW", {"wd": 0.1}, "'wd'; did you mean 'weight_decay'?"),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_only_other_rules_have(name, arguments, message):
    with pytest.raises(TypeError, match=message.replace("?", r"\?")):
        getattr(steprule, name)([torch.ones(2, requires_grad=True)], **arguments)


ATTRIBUTES = {
    "nonfinite": ("skip", "is chosen when an optimizer is made"), "average": (0.9, "is chosen when an optimizer is made"),
    "lookahead": (5, "is chosen when an optimizer is made"), "grads": ("24bit", "is chosen when an optimizer is made"),
    "states": ("8bit", "is a setting of parameter groups"), "lr": (0.5, "is a setting of parameter groups"),
    "maximize": (True, "is a setting of parameter groups"), "betas": ((0.5, 0.5), "is a setting of parameter groups"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("copied", [False, True])
def test_an_attribute_that_would_do_nothing_is_refused(name, copied):
    value, message = ATTRIBUTES[name]
    optimizer = steprule.AdamW([torch.ones(2, requires_grad=True)], clip=1.0)
    optimizer = copy.deepcopy(optimizer) if copied else optimizer
    with pytest.raises(AttributeError, match=f"an attribute {name} would do nothing: {name} {message}"):
        setattr(optimizer, name, value)
    assert not hasattr(optimizer, name) or getattr(optimizer, name) is None
    optimizer.clip = 2.0
    optimizer.mine = 3
    with pytest.raises(AttributeError):
        optimizer.telemetry = 5


def test_a_class_may_have_attributes_of_its_own():
    class Warm(steprule.SGD):
        lr = 0.0

        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.lr = lr

    assert Warm([torch.ones(2, requires_grad=True)], 0.5).lr == 0.5


def test_an_attribute_of_an_array_optimizer_is_refused():
    optimizer = arrays.SGD([np.ones(2)], lr=0.1)
    with pytest.raises(AttributeError, match=r"an attribute lr would do nothing: assign to settings\['lr'\]"):
        optimizer.lr = 0.5


class Normed(steprule.Rule):
    """Momentum of normalized gradients, which slows down as the weights leave where they began."""

    longest = steprule.State("scalar", begins="floor_")
    steps = steprule.State("scalar")
    anchor = steprule.State(begins="param", exact=True)

    def update(param, grad, longest, steps, anchor, mean, *, lr=0.1, beta=0.9, floor_=0.5):
        longest = steprule.maximum(longest, steprule.norm(grad))
        mean = steprule.ema(mean, grad / longest, beta)
        gone = param - anchor
        slow = 1 + steprule.sqrt(steprule.total_of_all(gone * gone)) + steprule.mean(mean * mean)
        return param - lr / slow * mean, longest, steps + 1, anchor, mean


class NormedTensors(steprule.Optimizer, rule=Normed):
    pass


class NormedArrays(arrays.Optimizer, rule=Normed):
    pass


def by_hand(params, grads, steps):
    """The same in NumPy, on whole lists."""
    anchors, means = [p.copy() for p in params], [p * 0 for p in params]
    longest = [0.5] * len(params)
    for step in range(steps):
        gone = sum(float(((p - a) ** 2).sum()) for p, a in zip(params, anchors, strict=True))
        for i, p in enumerate(params):
            longest[i] = max(longest[i], float(np.linalg.norm(grads[step][i])))
            means[i] = 0.9 * means[i] + 0.1 * grads[step][i] / longest[i]
            p -= 0.1 / (1 + gone**0.5 + float((means[i] ** 2).mean())) * means[i]
    return params, longest


@pytest.mark.parametrize("front", ["torch", "torch, strided", "torch, 8bit", "numpy"])
def test_sums_scalar_states_and_first_values_in_every_front(front):
    random = np.random.default_rng(0)
    params = [random.normal(size=shape).astype(np.float32) for shape in ((4, 40), (7,))]
    grads = [[random.normal(size=p.shape).astype(np.float32) for p in params] for _ in range(4)]
    expected, longest = by_hand([p.astype(np.float64) for p in params], grads, 4)
    if front == "numpy":
        optimizer = NormedArrays(params)
        for own in grads:
            optimizer.step(own)
        states = optimizer.state
    else:
        tensors = [torch.tensor(p) for p in params]
        if front == "torch, strided":
            tensors = [torch.stack([p, p], -1)[..., 0] for p in tensors]
        optimizer = NormedTensors(tensors, **({"states": "8bit"} if "8bit" in front else {}))
        for own in grads:
            for tensor, grad in zip(tensors, own, strict=True):
                tensor.grad = torch.tensor(grad)
            optimizer.step()
        params, states = [p.numpy() for p in tensors], [optimizer.state[p] for p in tensors]
        assert (optimizer._core.plans.current is not None) == (front != "torch, strided")
        assert states[0]["longest"].dtype == torch.float64 and states[0]["anchor"].dtype == torch.float32
        assert states[0]["mean_8bit" if "8bit" in front else "mean"].dtype == (
            torch.int8 if "8bit" in front else torch.float32
        )
    for p, q, number, state in zip(params, expected, longest, states, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-3 if "8bit" in front else 1e-6)
        assert float(state["longest"]) == pytest.approx(number, rel=1e-6) and float(state["steps"]) == 4


def test_what_does_not_fit_a_rule_is_refused_when_it_is_made():
    def define(**attributes):
        return type("Mine", (steprule.Rule,), {"update": lambda param, grad, m, *, lr=0.1: (param, m), **attributes})

    for state in (steprule.State(), steprule.State("scalar")):
        with pytest.raises(steprule.RuleError, match=r"Mine.mm is a State, .*; did you mean 'm'"):
            define(mm=state)
    with pytest.raises(
        steprule.RuleError, match=r"Mine.m = State\(begins='first'\) names an unknown .*; update has lr"
    ):
        define(m=steprule.State(begins="first"))
    assert define(m=steprule.State(begins="lr")).begins_at("m", None, {"lr": 0.25}) == 0.25
    assert define(m=steprule.State(begins=0.5)).begins_at("m", None, {"lr": 0.25}) == 0.5


@pytest.mark.parametrize("default", [(0.9, 0.99), [0.9, 0.99], "x", None], ids=["tuple", "list", "text", "None"])
def test_a_state_begins_at_a_number(default):
    def update(param, grad, m, *, lr=0.1, betas=default):
        return param - lr * m, m

    with pytest.raises(steprule.RuleError, match=r"Mine.m = State\(begins='betas'\): betas=.* is not a number"):
        type("Mine", (steprule.Rule,), {"update": update, "m": steprule.State(begins="betas")})


@pytest.mark.parametrize("what", ["when", "exact"])
def test_a_state_does_not_depend_on_a_tuple(what):
    def update(param, grad, m, *, lr=0.1, betas=(0.9, 0.99)):
        return param - lr * m, m

    with pytest.raises(steprule.RuleError, match=rf"Mine.m = State\({what}='betas'\): betas=.* is not a number"):
        type("Mine", (steprule.Rule,), {"update": update, "m": steprule.State(**{what: "betas"})})


def absent(line):
    """A rule whose formula begins so, and has a state that is only there with momentum."""
    body = (
        f"def update(param, grad, buffer, *, lr=0.1, momentum=0.0):\n    {line}\n    return param - lr * grad, buffer"
    )
    names = {"ema": steprule.ema, "sqrt": steprule.sqrt, "where": steprule.where}
    names |= {"total": steprule.total, "size": steprule.size}
    exec(compile(body, "my_rule.py", "exec"), names)
    attributes = {"update": names["update"], "buffer": steprule.State(when="momentum")}
    return type("Mine", (steprule.Rule,), attributes)


ABSENT = {
    "arithmetic": "buffer = momentum * buffer + grad",
    "a piece": "buffer = ema(buffer, grad, momentum)",
    "a function": "grad = grad / sqrt(buffer)",
    "a comparison": "grad = where(buffer > 0, grad, 0.0)",
    "a choice": "grad = where(grad > 0, grad, buffer)",
    "a sum": "grad = grad * total(buffer)",
    "a size": "grad = grad / size(buffer)",
    "a method": "buffer.mul_(momentum)",
}


@pytest.mark.parametrize("front", ["torch", "numpy"])
@pytest.mark.parametrize("case", ABSENT)
def test_a_formula_that_uses_a_state_which_is_not_there_is_told_which(case, front):
    rule = absent(ABSENT[case])
    message = (
        r"Mine.update computes with None. buffer is only there with momentum: State\(when='momentum'\). Ask for it first: "
        r"if buffer is not None: ... \(my_rule.py:2\)"
    )
    with pytest.raises(steprule.RuleError, match=message):
        if front == "torch":
            Optimizer.of(rule)([torch.ones(2)])
        else:
            array = np.ones(2)
            type("Front", (arrays.Optimizer,), {}, rule=rule)([array]).step([array])


def test_none_that_is_no_states_is_told_as_ever():
    with pytest.raises(steprule.RuleError, match="a rule computes with None, which a formula cannot do"):
        Optimizer.of(absent("grad = grad + None"))([torch.ones(2)], momentum=0.9)


@pytest.mark.parametrize("call", ["torch.norm(grad)", "np.mean(grad)", "np.linalg.norm(grad)", "torch.unique(grad)"])
def test_what_a_library_does_with_a_symbol_is_told_with_the_rules_line(call):
    names = {"torch": torch, "np": np}
    text = f"def update(param, grad, *, lr=0.1):\n    return param - lr * {call}"
    exec(compile(text, "my_rule.py", "exec"), names)
    with pytest.raises(steprule.RuleError, match=r"cannot do \(my_rule.py:2, in update\)"):
        Optimizer.of(type("Mine", (steprule.Rule,), {"update": names["update"]}))([torch.ones(2)])


@pytest.mark.parametrize("states", ["", ", m, n"], ids=["no state", "two states"])
def test_a_formula_without_a_return_is_told_what_to_return(states):
    names = {}
    exec(f"def update(param, grad{states}, *, lr=0.1):\n    param = param - lr * grad", names)
    with pytest.raises(steprule.RuleError, match=f"Mine.update returned nothing: it must end in return param{states} "):
        Optimizer.of(type("Mine", (steprule.Rule,), {"update": names["update"]}))([torch.ones(2)])


def test_what_a_signature_gets_wrong_is_told_with_what_to_write():
    with pytest.raises(steprule.RuleError, match=r"Mine.update: lr has a default: put \* before it .*test_own_rule.py"):

        class Mine(steprule.Rule):
            def update(param, grad, m, lr=1e-3):
                return param - lr * grad, m

    with pytest.raises(steprule.RuleError, match=r"\(self, param, grad\) .*; a formula has no self"):

        class WithSelf(steprule.Rule):
            def update(self, param, grad, *, lr=1e-3):
                return param - lr * grad


@pytest.mark.parametrize("front", ["torch", "numpy"])
def test_what_python_keeps_between_steps_is_refused_at_construction(front):
    class Counting(steprule.Rule):
        count = 0.0

        def update(param, grad, *, lr=1e-3):
            Counting.count += 1.0
            return param - lr / Counting.count * grad

    class ArrayCounting(arrays.Optimizer, rule=Counting):
        pass

    with pytest.raises(steprule.RuleError, match=r"asked for twice: 1.0 became 2.0 .*must be a state"):
        ArrayCounting([np.ones(2)]) if front == "numpy" else steprule.Optimizer.of(Counting)([torch.ones(2)])


def test_what_a_rule_uses_may_not_change_under_its_kernels():
    """As when a notebook's cell with a helper runs again: kernels of the old formula are kept for the rule."""
    scale = {"factor": 1.0}

    class Scaled(steprule.Rule):
        def update(param, grad, *, lr=0.1):
            return param - lr * scale["factor"] * grad

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    steprule.Optimizer.of(Scaled)([param]).step()
    scale["factor"] = 100.0
    with pytest.raises(steprule.RuleError, match=r"1\.0 became 100\.0 .* defined anew, define the rule anew"):
        steprule.Optimizer.of(Scaled)([param])
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))


def test_a_rule_may_have_weights_of_its_own_to_evaluate():
    """Its optimizer has eval() and train(), whatever the formulas are called with."""

    class Ahead(steprule.Rule):
        def update(param, grad, velocity, *, lr=0.5, share=0.25):
            velocity = grad * 2
            return param - lr * grad, velocity

        def evaluated(param, velocity, *, share):
            return param + share * velocity

        def trained(param, velocity, *, share):
            return param - share * velocity

    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Optimizer.of(Ahead)([weight])
    optimizer.eval()  # nothing to evaluate yet
    optimizer.train()
    weight.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert weight.tolist() == [0.5, 2.5]
    optimizer.eval()
    assert weight.tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        optimizer.step()
    optimizer.train()
    assert weight.tolist() == [0.5, 2.5]


def test_weights_to_evaluate_need_the_way_back_and_known_arguments():
    def update(param, grad, *, lr=0.1):
        return param - lr * grad

    def evaluated(param, z):
        return z

    with pytest.raises(
        steprule.RuleError, match=r"One has no trained\(param, \.\.\.\): evaluated and trained come in pairs"
    ):
        type("One", (steprule.Rule,), {"update": update, "evaluated": lambda param: param})
    with pytest.raises(steprule.RuleError, match=r"Two\.evaluated takes z, which is no state and no hyperparameter"):
        type("Two", (steprule.Rule,), {"update": update, "evaluated": evaluated, "trained": lambda param: param})


@pytest.mark.parametrize("name, nearest", [("keep_step", "keeps_step"), ("decays", "decay"), ("need", "needs")])
def test_a_misspelled_attribute_of_a_rule_is_refused(name, nearest):
    def update(param, grad, *, lr=0.1):
        return param - lr * grad

    with pytest.raises(steprule.RuleError, match=rf"Mine\.{name} means nothing to a rule; did you mean '{nearest}'"):
        type("Mine", (steprule.Rule,), {"update": update, name: False})
    type("Mine", (steprule.Rule,), {"update": update, "notes": "of one's own"})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sparse_grads", "yes", "must be True or False, not 'yes'"),
        ("begins_early", 1, "must be True or False, not 1"),
        ("keeps_step", None, "must be True or False, not None"),
        ("needs", "memory", "must be a tuple of names, not 'memory'"),
        ("refuses", None, "must be a text, not None"),
        ("when", ("a",), r"must be a text, not \('a',\)"),
        ("constants", "lr", "must be a dict of hyperparameters and reasons, not 'lr'"),
        ("evaluated", 3, "must be a function, or None for none, not 3"),
        ("like_torch", "maximize", r"must be TorchArguments\(\.\.\.\), or None for none, not 'maximize'"),
        ("hyperparameters", {"lr": 1.0}, r"would do nothing: .* def update\(\.\.\., \*, lr=1e-3\)"),
        ("meanings", {}, "would do nothing: .* lr = Hyperparameter"),
        ("counts_steps", True, r"would do nothing: .* def update\(\.\.\., \*, step\)"),
        ("decay", ["coupled"], r"must be a text, or None where nothing is said, not \['coupled'\]"),
    ],
    ids=lambda x: x if isinstance(x, str) and x.isidentifier() else "",
)
def test_a_class_attribute_of_the_wrong_kind_is_refused(name, value, told):
    def update(param, grad, m, *, lr=0.1):
        return param - lr * grad, m

    with pytest.raises(steprule.RuleError, match=rf"Mine\.{name} {told}"):
        type("Mine", (steprule.Rule,), {"update": update, name: value})


def test_states_without_a_step_do_not_begin_early():
    """Which step is the first is seen by them, where a formula asks for the step and it is not kept."""

    def update(param, grad, m, *, step, lr=0.1):
        return param - lr * grad / step, m

    said = {"update": update, "begins_early": True, "keeps_step": False}
    with pytest.raises(steprule.RuleError, match=r"Mine\.begins_early = True needs keeps_step"):
        type("Mine", (steprule.Rule,), said)


@pytest.mark.parametrize(
    ("said", "unknown"),
    [
        ({"flags": "maximise"}, "flags names the unknown 'maximise'; there are foreach, maximize"),
        ({"flags": "maximize", "positional": "fused"}, "positional names the unknown 'fused'; there are maximize"),
        ({"flags": "", "keyword_only": "beta"}, "keyword_only names the unknown 'beta'; there are lr"),
    ],
    ids=["flags", "positional", "keyword_only"],
)
def test_what_a_rule_says_of_torchs_arguments_must_be_there(said, unknown):
    def update(param, grad, *, lr=0.1):
        return param - lr * grad

    rule = type("Mine", (steprule.Rule,), {"update": update, "like_torch": TorchArguments(**said)})
    with pytest.raises(steprule.RuleError, match=rf"Mine\.like_torch: {unknown}"):
        Optimizer.of(rule)


@pytest.mark.parametrize("default", ["{}", "1j", "b'x'", "(0.9, 'x')", "np.ones(2)", "((1.0, 2.0), (3.0, 4.0))"])
def test_a_default_that_no_hyperparameter_can_have_is_refused_with_the_class(default):
    text = (
        f"class Mine(Rule):\n    def update(param, grad, *, lr=0.1, other={default}):\n        return param - lr * grad"
    )
    message = r"^Mine.update: the default other=.* is no number, .* None or text \(<string>:2\)\. (What|Write one set of coefficients)"
    with pytest.raises(RuleError, match=message):
        exec(text, {"Rule": Rule, "np": np})


def test_a_default_may_be_a_function_of_the_step():
    class Mine(Rule):
        def update(param, grad, *, lr=lambda step: 1.0 / step):
            return param - lr * grad

    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = Optimizer.of(Mine)([param])
    for _ in range(2):
        param.grad = torch.ones(2)
        optimizer.step()
    assert param.tolist() == [-1.5, -1.5]


def test_a_default_outside_of_its_range_is_refused():
    def update(param, grad, *, share=2.0):
        return param - share * grad

    share = steprule.Hyperparameter("share of the gradient", "[0, 1]")
    with pytest.raises(steprule.RuleError, match=r"the default share=2\.0 is outside of its range \[0, 1\]"):
        type("Mine", (steprule.Rule,), {"update": update, "share": share})


def test_an_exchange_that_cannot_be_made_changes_nothing():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = steprule.ScheduleFreeSGD(params, lr=0.1)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(2)
        optimizer.step()
    before, kept = [param.detach().clone() for param in params], optimizer.state[params[1]]["z"]
    optimizer.state[params[1]]["z"] = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match="shape"):
        optimizer.eval()
    assert all(torch.equal(param, one) for param, one in zip(params, before, strict=True))
    optimizer.state[params[1]]["z"] = kept
    optimizer.train()
    optimizer.step()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"plain_state_dict\(\)"):
        optimizer.plain_state_dict()


def test_a_group_of_another_optimizer_does_not_follow_this_ones_functions():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    first = steprule.SGD(params[:1], lr=lambda step: 1e-3)
    second = steprule.SGD(params[1:2], lr=lambda step: 0.5)
    second.add_param_group({**first.param_groups[0], "params": params[2:]})
    for param in params:
        param.grad = torch.ones(1)
    second.step()
    assert params[1].item() == 0.5 and params[2].item() == pytest.approx(0.999)


def test_states_that_begin_early_and_those_of_options_are_all_made_when_asked_for():
    """torch.distributed.checkpoint asks by a first step with lr and gradients of 0."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.Adagrad([param], lr=0.0, lookahead=2)
    param.grad = torch.zeros(2)
    optimizer.step(closure=None)
    assert {"step", "sum", "slow_param"} <= set(optimizer.state[param])
    assert float(optimizer.state[param]["step"]) == 0.0


def test_a_step_with_closure_none_looks_through_no_states():
    """Which it did with a learning rate, for every parameter, waiting for GPUs, and stumbling over what is no parameter's."""
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.Lion([param], clip=1.0)
    for _ in range(2):
        param.grad = torch.ones(2)
        optimizer.step(closure=None)
        optimizer.state["of nobody"] = 1
    assert optimizer.state["of nobody"] == 1 and param[0].item() < 1


def _plain(*, lr, momentum, **others):
    assert not others
    if lr > momentum:
        raise ValueError("lr above momentum")


def _of_class(cls, *, lr, momentum):
    assert issubclass(cls, Rule)
    _plain(lr=lr, momentum=momentum)


def _positional(lr, momentum):
    _plain(lr=lr, momentum=momentum)


CHECKS = {
    "plain": _plain,
    "plain with cls": _of_class,
    "plain, by position": _positional,
    "staticmethod": staticmethod(_plain),
    "classmethod": classmethod(_of_class),
}


def checked(check):
    return type(
        "Checked", (Rule,), {"update": lambda param, grad, *, lr=0.1, momentum=0.5: param - lr * grad, "check": check}
    )


def _in_a_chain(rule):
    return Optimizer.of(steprule.chain(rule))([torch.nn.Parameter(torch.ones(2))], momentum=0.5)


ASKING = {
    "constructor": lambda rule: Optimizer.of(rule)([torch.nn.Parameter(torch.ones(2))], lr=0.7),
    "flags and formats": lambda rule: Optimizer.of(rule)(
        [torch.nn.Parameter(torch.ones(2))], lr=0.7, maximize=True, states="bfloat16"
    ),
    "options": lambda rule: Optimizer.of(rule)([torch.nn.Parameter(torch.ones(2))], lr=0.7, lookahead=2),
    "function": lambda rule: Optimizer.of(rule)([torch.nn.Parameter(torch.ones(2))], lr=lambda step: 0.7),
    "group": lambda rule: Optimizer.of(rule)([{"params": torch.nn.Parameter(torch.ones(2)), "momentum": 0.05}]),
    "by hand": lambda rule: _by_hand(rule, lr=0.7),
    "arrays": lambda rule: type("Arrays", (arrays.Optimizer,), {}, rule=rule)([np.ones(2)], lr=0.7),
    "chain": _in_a_chain,
}


def _by_hand(rule, **settings):
    optimizer = Optimizer.of(rule)([torch.nn.Parameter(torch.ones(2))])
    optimizer.step()
    optimizer.param_groups[0].update(settings)
    optimizer.step()


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("check", CHECKS)
def test_check_is_asked_for_all_hyperparameters_and_nothing_else(check, asking):
    with pytest.raises(ValueError, match="lr above momentum"):
        ASKING[asking](checked(CHECKS[check]))


def test_a_check_that_does_not_take_all_hyperparameters_is_refused():
    with pytest.raises(
        RuleError, match=r"Checked\.check is given all hyperparameters \(lr, momentum\): .*'momentum'; end"
    ):
        checked(lambda *, lr: None)


def _weighted(param, grad, *, lr=0.1, shares=None):
    return param - lr * (1.0 if shares is None else shares[0]) * grad


WEIGHTED = type("Weighted", (Rule,), {"update": _weighted})
MADE = {
    "torch": lambda **settings: Optimizer.of(WEIGHTED)([torch.nn.Parameter(torch.ones(2))], **settings).param_groups[0],
    "arrays": lambda **settings: (
        type("Arrays", (arrays.Optimizer,), {}, rule=WEIGHTED)([np.ones(2)], **settings).settings
    ),
}


@pytest.mark.parametrize("front", MADE)
def test_a_list_is_a_tuple_where_the_default_is_none(front):
    assert MADE[front](shares=[2.0, [1.0]])["shares"] == (2.0, (1.0,))
    with pytest.raises(
        TypeError, match=r"shares must be a value that cannot change, such as .* a tuple, not \{0: 2\.0\}"
    ):
        MADE[front](shares={0: 2.0})


def test_a_list_that_is_put_into_a_group_is_a_tuple():
    param = torch.nn.Parameter(torch.zeros(2))
    optimizer = Optimizer.of(WEIGHTED)([param], lr=1.0)
    for shares in (None, [2.0], [3.0]):
        optimizer.param_groups[0]["shares"] = shares
        param.grad = torch.ones(2)
        optimizer.step()
    assert param.tolist() == [-6.0] * 2


@pytest.mark.parametrize("name", ["params", "settings", "state"])
@pytest.mark.parametrize("kind", ["hyperparameter", "state"])
def test_arrays_refuse_rules_with_names_that_they_have(kind, name):
    shown = f"param, grad, {name}, *, lr=0.1" if kind == "state" else f"param, grad, *, lr=0.1, {name}=1.0"
    update = eval(f"lambda {shown}: {f'(param, {name})' if kind == 'state' else 'param'}")
    with pytest.raises(RuleError, match=f"'{name}' is a name that every optimizer has; choose another"):
        type("Arrays", (arrays.Optimizer,), {}, rule=type("Own", (Rule,), {"update": update}))


@pytest.mark.parametrize("given", [int, Rule, 3, arrays.Lion], ids=str)
def test_arrays_take_rules_only(given):
    with pytest.raises(
        TypeError, match=r"class Arrays\(arrays\.Optimizer, rule=\.\.\.\) takes a rule, a subclass of steprule\.Rule"
    ):
        type("Arrays", (arrays.Optimizer,), {}, rule=given)


def test_a_rule_may_have_two_constants():
    def update(param, grad, m, *, lr=0.1, a=0.5, b=0.7):
        return param - lr * grad, a * m + b * grad

    rule = type("TwoConstants", (Rule,), {"update": update, "constants": {"a": "it is", "b": "it is"}})
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer.of(rule)([param])
    for _ in range(2):
        param.grad = torch.ones(2)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["b"] = 0.5
    with pytest.raises(ValueError, match=r"b of group 0 was changed from 0\.7 to 0\.5"):
        optimizer.step()


class Scheduled(Rule):
    def update(param, grad, m, *, step, lr=0.1, betas=(0.9, 0.99), k=3.0):
        slow = exp(log(betas[0]) * log(betas[1]) / (log(betas[0]) + step * log(betas[1])))
        return param - lr * (m + (step - k * floor(step / k))), ema(m, grad, minimum(slow, betas[1]))


class Chosen(Rule):
    def update(param, grad, m, *, step, lr=0.1, beta=0.9):
        m = ema(m, grad, where(beta > 0, exp(log(beta)), 0.0))
        return where(step > 1, param - lr * m * log(step - 1), param), m


def test_hyperparameters_of_which_the_formula_makes_nan_are_refused_before_the_first_step():
    param = torch.nn.Parameter(torch.ones(3))
    line = inspect.getsourcelines(Scheduled.function())[1] + 1
    told = rf"Scheduled.update with betas=\(0.0, 0.99\) computes NaN in the first step: log\(betas_0\) is -inf \(.*:{line}, in "
    optimizer = steprule.Optimizer.of(Scheduled)([param])

    class OfArrays(arrays.Optimizer, rule=Scheduled):
        pass

    for make in (
        lambda: steprule.Optimizer.of(Scheduled)([param], betas=(0.0, 0.99)),
        lambda: optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "betas": (0.0, 0.99)}),
        lambda: OfArrays([np.ones(3)], betas=(0.0, 0.99)),
    ):
        with pytest.raises(ValueError, match=told):
            make()
    with pytest.raises(ValueError, match=r"with k=0 .*: step / k is inf"):
        steprule.Optimizer.of(Scheduled)([param], k=0)
    assert len(optimizer.param_groups) == 1


def test_nan_that_the_formula_does_not_choose_is_none_of_its_own():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = steprule.Optimizer.of(Chosen)([param], beta=0.0)
    for _ in range(3):
        param.grad = torch.ones(3)
        optimizer.step()
    assert param.isfinite().all() and (param != 1).all()


class RootOfLr(Rule):
    def update(param, grad, *, lr=0.1):
        return param - (lr**0.5 / (1 + lr)) * grad


def test_a_learning_rate_that_is_a_tensor_of_a_graph_is_not_looked_at():
    lr = torch.tensor(0.25, requires_grad=True)
    assert Optimizer.of(RootOfLr)([torch.nn.Parameter(torch.ones(3))], lr=lr, differentiable=True)


@pytest.mark.parametrize("unchosen", [steprule.sqrt, lambda a: log(a + 1), lambda a: exp(-1000 * a)])
def test_what_is_not_chosen_need_not_be_a_number_without_a_kernel_either(unchosen):
    class Chooses(Rule):
        """Has a number that is none where it is not chosen."""

        def update(param, grad, *, lr=0.1, a=1.0):
            return param - where(a < 0, lr, unchosen(a)) * grad

    dense, strided = torch.nn.Parameter(torch.ones(4, 2)), torch.nn.Parameter(torch.ones(4, 4)[:, ::2])
    for param in (dense, strided):
        param.grad = torch.ones(4, 2)
    Optimizer.of(Chooses)([dense, strided], a=-1.0).step()
    assert torch.equal(dense, strided) and dense[0, 0] == torch.tensor(0.9)
