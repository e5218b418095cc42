"""The front for NumPy arrays and gradients given by hand."""

from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from dropin import NEWER, NO_DECOUPLED, since
from settings import FAMILIAR_IDS, IDS, STRUCTURE_IDS, STRUCTURES, VARIANTS, sees_matrix, telling

import steprule
from steprule import arrays
from steprule import rules as formulas

CLASSES = {rule: getattr(arrays, rule.__name__) for rule in formulas.OWN.values()}


def with_settings(variant):
    rule, hyper = variant
    return rule, {name: value for name, value in telling(rule, hyper).items() if value != rule.hyperparameters[name]}


def make_params(dtype="float64"):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in [(3, 4), (4,), (), (0,)]]


def make_grads(params, seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(p.shape)).astype(p.dtype) for p in params]


def step_both(ours, its, grads):
    """The same step of arrays and of torch's parameters."""
    ours.step(grads)
    for peer, grad in zip(its.param_groups[0]["params"], grads, strict=True):
        peer.grad = torch.tensor(grad)
    its.step()


def assert_same_bits(ours, its):
    for param, peer in zip(ours.params, its.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(param, peer.detach().numpy())


IN_TORCH = [
    pytest.param(rule, settings, dtype, id=f"{name}-{dtype}")
    for (rule, settings), name in zip(map(with_settings, VARIANTS), IDS, strict=True)
    if hasattr(torch.optim, rule.__name__) and rule is not formulas.SparseAdam and not sees_matrix(rule)
    for dtype in (("float64", "float32") if name in FAMILIAR_IDS else ("float64",))
]


@pytest.mark.parametrize(("rule", "settings", "dtype"), IN_TORCH)
def test_the_same_numbers_as_torch_optim(rule, settings, dtype):
    if rule is formulas.Adam and NEWER & settings.keys():
        since("2.7", NO_DECOUPLED)
    params = make_params(dtype)
    peers = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    ours = CLASSES[rule](params, **settings)
    torchs = getattr(torch.optim, rule.__name__)(peers, **settings)
    for step in range(5):
        step_both(ours, torchs, make_grads(params, step))
    is_exact = dtype == "float64" and not rule.scalar_states  # which torch.optim keeps in float32
    for index, (param, peer) in enumerate(zip(params, peers, strict=True)):
        np.testing.assert_allclose(param, peer.detach().numpy(), rtol=1e-9 if is_exact else 2e-5)
        for name, value in torchs.state[peer].items():
            np.testing.assert_allclose(ours.state[index][name], value.numpy(), rtol=2e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("rule", "settings"), [*map(with_settings, STRUCTURES)], ids=STRUCTURE_IDS)
def test_the_same_bits_as_the_front_for_torch(rule, settings):
    """Weights and states, scalar ones and the sums that those follow too; and from a checkpoint of its, and of one's own."""
    if rule is formulas.SparseAdam:
        pytest.skip("the front for torch wants sparse gradients")
    params = make_params("float32")
    peers = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    ours, its = CLASSES[rule](params, **settings), getattr(steprule, rule.__name__)(peers, **settings)
    for step in range(6):
        if step in (2, 4):
            saved = its.state_dict() if step == 2 else ours.state_dict()
            ours = CLASSES[rule](params, lr=7.0)
            ours.load_state_dict(copy.deepcopy(saved))
        step_both(ours, its, make_grads(params, step))
        for index, (param, peer) in enumerate(zip(params, peers, strict=True)):
            np.testing.assert_array_equal(param, peer.detach().numpy())
            for name in filter(None, rule.states_for(its.param_groups[0])):
                kept = its.state[peer][name]
                mine = ours.state[index][name]
                if rule.states[name].dtype == "step":
                    np.testing.assert_allclose(mine, kept.numpy(), rtol=1e-6)
                else:
                    assert mine.shape == kept.shape
                    np.testing.assert_array_equal(mine, kept.numpy(), err_msg=name)


def test_every_rule_has_a_class():
    assert all(issubclass(CLASSES[rule], arrays.Optimizer) for rule in formulas.OWN.values())


def test_a_param_without_gradient_stays_and_its_step_too():
    a, b = np.ones(3), np.ones(3)
    optimizer = arrays.Adam([a, b], lr=0.1)
    optimizer.step([np.ones(3), None])
    assert (b == 1).all() and optimizer.state[1] == {"step": 0}
    optimizer.step([None, np.ones(3)])
    np.testing.assert_allclose(a, b)  # bias correction counts each array's own steps


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "unaligned", "broadcast gradient"])
def test_any_layout(layout):
    rng = np.random.default_rng(0)
    value, grad = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    expected = value.copy()
    arrays.Adam([expected], lr=0.1).step([grad])
    surrounding = None
    if layout == "fortran":
        param = np.asfortranarray(value)
    elif layout == "strided":
        surrounding = np.full((4, 12), 7.0)
        param = surrounding[:, ::2]
        param[...] = value
    elif layout == "reversed":
        param = value[::-1, ::-1].copy()[::-1, ::-1]
    elif layout == "unaligned":
        raw = np.zeros(value.nbytes + 1, np.uint8)
        param = raw[1:].view(np.float64).reshape(value.shape)
        param[...] = value
    else:
        param = value
        grad = np.broadcast_to(np.float64(0.5), value.shape)
        expected = rng.standard_normal((4, 6)) * 0 + value
        arrays.Adam([expected], lr=0.1).step([np.full(value.shape, 0.5)])
    before = grad.copy()
    optimizer = arrays.Adam([param], lr=0.1)
    optimizer.step([grad])
    np.testing.assert_array_equal(param, expected)
    np.testing.assert_array_equal(grad, before)
    if surrounding is not None:
        assert (surrounding[:, 1::2] == 7).all()


def test_settings_are_read_at_every_step():
    param = np.zeros(2)
    optimizer = arrays.SGD([param], lr=1.0)
    optimizer.step([np.ones(2)])
    optimizer.settings["lr"] = 10.0
    optimizer.step([np.ones(2)])
    assert (param == -11).all()
    optimizer.settings["momentum"] = 0.9
    optimizer.step([np.ones(2)])
    assert "momentum_buffer" in optimizer.state[0]


def test_state_dict_resumes_bit_for_bit_and_shares_nothing():
    params, others = make_params(), make_params()
    first = arrays.AdamW(params, lr=0.1, amsgrad=True)
    for step in range(3):
        first.step(make_grads(params, step))
    for target, source in zip(others, params, strict=True):
        target[...] = source
    second = arrays.AdamW(others)
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert second.settings == first.settings
    for step in range(3, 6):
        first.step(make_grads(params, step))
        second.step(make_grads(params, step))
    for a, b in zip(params, others, strict=True):
        np.testing.assert_array_equal(a, b)
    third = arrays.AdamW(make_params())
    third.load_state_dict(saved)
    assert third.state[0]["step"] == 3


@pytest.mark.filterwarnings("error")
def test_it_takes_a_torch_optim_checkpoint():
    params = make_params()
    peers = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    torchs = torch.optim.Adam(peers, lr=0.05)
    for peer, grad in zip(peers, make_grads(params, 0), strict=True):
        peer.grad = torch.tensor(grad)
    torchs.step()
    ours = arrays.Adam(params)
    ours.load_state_dict(torchs.state_dict())
    for param, peer in zip(params, peers, strict=True):
        param[...] = peer.detach().numpy()
    ours.step(make_grads(params, 0))
    torchs.step()
    for param, peer in zip(params, peers, strict=True):
        np.testing.assert_allclose(param, peer.detach().numpy(), rtol=1e-9)


def test_it_takes_what_went_through_json():
    """Whose keys are texts, and whose arrays and tuples are lists."""
    first, second = arrays.AdamW(make_params(), lr=0.05), arrays.AdamW(make_params())
    first.step(make_grads(first.params, 0))
    saved = json.loads(json.dumps(first.state_dict(), default=lambda x: x.tolist()))
    second.load_state_dict(saved)
    for a, b in zip(first.params, second.params, strict=True):
        b[...] = a
    for optimizer in (first, second):
        optimizer.step(make_grads(optimizer.params, 1))
    for a, b in zip(first.params, second.params, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("key", ["w", 9, "9", -1, None], ids=str)
def test_states_of_no_param_are_refused(key):
    saved = stepped(np.ones(3)).state_dict()
    saved["state"][key] = saved["state"].pop(0)
    optimizer = arrays.Adam([np.ones(3)])
    refuses(ValueError, "which is not an index of the 1 params", lambda: optimizer.load_state_dict(saved))
    assert optimizer.state == [{"step": 0}]
    refuses(KeyError, "state_dict has no 'param_groups'", lambda: optimizer.load_state_dict({"w": np.ones(3)}))


def refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_bad_params():
    w = np.ones(3)
    frozen = np.ones(3)
    frozen.flags.writeable = False
    refuses(TypeError, "params must be a list of arrays", lambda: arrays.Adam(w))
    refuses(
        TypeError,
        "params[1] must be a NumPy array, not list: step changes it in place, so make one",
        lambda: arrays.Adam([w, [1.0]]),
    )
    refuses(
        TypeError,
        "not int64: make it with .astype(numpy.float32)",
        lambda: arrays.Adam([np.ones(2, np.int64)]),
    )
    refuses(
        TypeError, "params[0] must hold float16, float32 or float64, not int64", lambda: arrays.Adam([np.ones(3, int)])
    )
    refuses(TypeError, "not >f8", lambda: arrays.Adam([np.ones(3, ">f8")]))
    refuses(ValueError, "params[1] is read-only", lambda: arrays.Adam([w, frozen]))
    refuses(ValueError, "params[1] is given twice", lambda: arrays.Adam([w, w]))


def test_bad_settings():
    w = np.ones(3)
    refuses(ValueError, "Invalid learning rate: -1", lambda: arrays.Adam([w], lr=-1))
    refuses(ValueError, "Invalid beta parameter at index 0: 1.0", lambda: arrays.Adam([w], betas=(1.0, 0.9)))
    refuses(TypeError, "betas must be a tuple of 2 numbers, not 0.9", lambda: arrays.Adam([w], betas=0.9))
    refuses(TypeError, "lr must be a number, not '0.1'", lambda: arrays.Adam([w], lr="0.1"))
    refuses(TypeError, "amsgrad must be True or False, not 'yes'", lambda: arrays.Adam([w], amsgrad="yes"))
    refuses(TypeError, "'weight_decai'; did you mean 'weight_decay'?", lambda: arrays.Adam([w], weight_decai=1))
    optimizer = arrays.Adam([w])
    optimizer.settings["lr"] = float("nan")
    refuses(ValueError, "Invalid learning rate: nan", lambda: optimizer.step([np.ones(3)]))


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ([np.ones(3)], "step got 1 gradients for 2 params"),
        ([np.ones(3), np.ones(3)], "grads[1] has shape (3,), its parameter (2,)"),
        (
            [np.ones(3), np.ones(2, complex)],
            "grads[1] has dtype complex128 and must hold real numbers, such as float64",
        ),
        ([np.ones(3), [True, False]], "grads[1] has dtype bool and must hold real numbers"),
        ([np.ones(3), ["1", "2"]], "grads[1] has dtype <U1 and must hold real numbers"),
        ([np.ones(3), [[1.0], [1.0, 2.0]]], "grads[1] is a list that cannot be an array"),
        ([np.ones(3), torch.ones(2)], "grads[1] must be a NumPy array, a list of numbers or None, not Tensor"),
        (np.ones(3), "step got 3 gradients for 2 params: give a list of gradients, as in step([grad])"),
    ],
    ids=["too few", "shape", "complex", "flags", "texts", "ragged", "tensor", "one array"],
)
def test_bad_gradients_change_nothing(grads, message):
    params = [np.ones(3), np.ones(2)]
    optimizer = arrays.Adam(params)
    refuses(ValueError, message, lambda: optimizer.step(grads))
    assert all((param == 1).all() for param in params)
    assert optimizer.state == [{"step": 0}, {"step": 0}]


def test_a_state_dict_of_other_arrays_changes_nothing():
    optimizer = arrays.Adam([np.ones(3)])
    other = arrays.Adam([np.ones(2)])
    other.step([np.ones(2)])
    refuses(
        ValueError,
        "state exp_avg of params[0] has shape (2,), not (3,)",
        lambda: optimizer.load_state_dict(other.state_dict()),
    )
    assert optimizer.state == [{"step": 0}]
    several = arrays.Adam([np.ones(2), np.ones(2)])
    refuses(
        ValueError,
        "state_dict holds [2] params where there are 1",
        lambda: optimizer.load_state_dict(several.state_dict()),
    )


# What has changed since the last step


def stepped(*params, cls=arrays.Adam, **settings):
    optimizer = cls(list(params), lr=0.1, **settings)
    optimizer.step([np.ones_like(p) for p in params])
    return optimizer


def refused(optimizer, error, message):
    """The step raises, and nothing has changed."""
    before = copy.deepcopy((optimizer.params, optimizer.state))
    grads = [np.ones(np.shape(p), getattr(p, "dtype", None)) for p in optimizer.params]
    refuses(error, message, lambda: optimizer.step(grads))
    for a, b in zip(before[0], optimizer.params, strict=True):
        np.testing.assert_array_equal(a, b)
    for old, new in zip(before[1], optimizer.state, strict=True):
        assert list(old) == list(new)
        for name in old:
            np.testing.assert_array_equal(old[name], new[name])


def read_only(array):
    array.flags.writeable = False
    return array


CHANGED_STATES = {
    "shorter": (lambda x: x[:2], "the state exp_avg of params[1] has shape (2,) and dtype float64 and must have (4,)"),
    "another dtype": (lambda x: x.astype("f4"), "has shape (4,) and dtype float32 and must have (4,) and float64"),
    "a list": (lambda x: x.tolist(), "the state exp_avg of params[1] must be a NumPy array, not list"),
    "read-only": (lambda x: read_only(x.copy()), "the state exp_avg of params[1] is read-only"),
}


@pytest.mark.parametrize("change", CHANGED_STATES)
def test_a_state_that_does_not_fit_any_more_is_refused(change):
    optimizer = stepped(np.ones(3), np.ones(4))
    function, message = CHANGED_STATES[change]
    optimizer.state[1]["exp_avg"] = function(optimizer.state[1]["exp_avg"])
    refused(optimizer, ValueError, message)


CHANGED_PARAMS = {
    "grown": (lambda x: np.vstack([x, x]), ValueError, "the state exp_avg of params[0] has shape (2, 3)"),
    "another dtype": (
        lambda x: x.astype("f4"),
        ValueError,
        "has shape (2, 3) and dtype float64 and must have (2, 3) and",
    ),
    "integers": (lambda x: x.astype(int), TypeError, "params[0] must hold float16, float32 or float64, not int64"),
    "read-only": (lambda x: read_only(x.copy()), ValueError, "params[0] is read-only"),
    "a list": (lambda x: x.tolist(), TypeError, "params[0] must be a NumPy array, not list"),
}


@pytest.mark.parametrize("change", CHANGED_PARAMS)
def test_a_parameter_that_does_not_fit_any_more_is_refused(change):
    optimizer = stepped(np.ones((2, 3)))
    function, error, message = CHANGED_PARAMS[change]
    optimizer.params[0] = function(optimizer.params[0])
    refused(optimizer, error, message)


def test_a_parameter_that_was_resized_in_place_is_refused_until_its_states_are_made_anew():
    param = np.ones(3)
    optimizer = stepped(param)
    param.resize(5, refcheck=False)
    refused(optimizer, ValueError, "the state exp_avg of params[0] has shape (3,)")
    optimizer.state[0] = {"step": 0}
    optimizer.step([np.ones(5)])
    assert optimizer.state[0]["exp_avg"].shape == (5,)


@pytest.mark.parametrize("gone", [["exp_avg_sq"], ["exp_avg", "exp_avg_sq"]], ids=str)
def test_a_state_that_is_taken_out_is_missed(gone):
    """To begin it anew beside an old step would be a step of another size."""
    optimizer = stepped(np.ones(3))
    for name in gone:
        del optimizer.state[0][name]
    refused(optimizer, ValueError, f"the state of params[0] lacks {', '.join(gone)} beside step")
    optimizer.state[0] = {"step": 0}
    optimizer.step([np.ones(3)])
    optimizer.settings["amsgrad"] = True  # which may begin later
    optimizer.step([np.ones(3)])


def test_as_many_states_as_params():
    optimizer = stepped(np.ones(3))
    optimizer.params.append(np.ones(3))
    refused(optimizer, ValueError, "there are 1 states for 2 params")


@pytest.mark.parametrize("step", [-5, 1.5, None], ids=str)
def test_a_step_that_is_none_is_refused(step):
    optimizer = stepped(np.ones(3))
    optimizer.state[0]["step"] = step
    refused(optimizer, ValueError, f"the state step of params[0] is {step!r}")


def test_settings_that_are_unknown_or_missing_are_refused():
    optimizer = stepped(np.ones(3))
    optimizer.settings["weight_decai"] = 0.1
    refused(optimizer, TypeError, "'weight_decai'; did you mean 'weight_decay'?")
    del optimizer.settings["weight_decai"], optimizer.settings["eps"]
    refused(optimizer, ValueError, "eps is missing in settings; its default is 1e-08")


SHARED = {
    "a part": lambda a: [a, a[50:]],
    "the same, strided": lambda a: [a[::2], a[::2]],
    "strided in dense": lambda a: [a, a[::2]],
    "reversed": lambda a: [a[60::-1], a[60:]],
}
APART = {
    "interleaved": lambda a: [a[::2], a[1::2]],
    "columns": lambda a: [a.reshape(10, 10)[:, :4], a.reshape(10, 10)[:, 4:]],
    "reversed": lambda a: [a[59::-1], a[60:]],
    "empty": lambda a: [a, a[50:50]],
}


@pytest.mark.parametrize("views", SHARED)
def test_params_in_the_same_memory_are_refused(views):
    params = SHARED[views](np.ones(100))
    refuses(ValueError, "params[0] and params[1] lie in the same memory", lambda: arrays.SGD(params))
    optimizer = arrays.SGD([p.copy() for p in params])
    optimizer.params[:] = params
    refused(optimizer, ValueError, "params[0] and params[1] lie in the same memory")


@pytest.mark.parametrize("views", APART)
def test_params_beside_each_other_are_stepped(views):
    memory = np.ones(100)
    params = APART[views](memory)
    optimizer = arrays.SGD(params, lr=0.5)
    optimizer.step([np.ones(p.shape) for p in params])
    assert (memory == 0.5).all()


def test_states_in_the_same_memory_are_refused():
    optimizer = stepped(np.ones(3), np.ones(3))
    optimizer.state[1]["exp_avg"] = optimizer.state[0]["exp_avg_sq"]
    refused(
        optimizer, ValueError, "the state exp_avg_sq of params[0] and the state exp_avg of params[1] lie in the same"
    )


def test_a_gradient_may_be_the_parameter_and_gradients_each_other():
    a, b, c, grad = (np.ones(3) for _ in range(4))
    arrays.SGD([a, b, c], lr=0.5).step([a, grad, grad])
    assert all((x == 0.5).all() for x in (a, b, c))


SHIFTED = {
    "earlier": lambda a: (a[1:], a[:-1]),
    "later": lambda a: (a[:-1], a[1:]),
    "reversed": lambda a: (a, a[::-1]),
    "one element": lambda a: (a, np.broadcast_to(a[50:51], a.shape)),
}


@pytest.mark.parametrize("views", SHIFTED)
def test_a_gradient_that_overlaps_what_is_written_is_refused(views):
    param, grad = SHIFTED[views](np.arange(1001.0))
    optimizer = arrays.SGD([np.ones(3), param], lr=0.1)
    message = "grads[1] lies in the memory of params[1], which is written while it is read: give a copy() of it"
    before = param.copy()
    refuses(ValueError, message, lambda: optimizer.step([np.ones(3), grad]))
    assert (param == before).all() and (optimizer.params[0] == 1).all()
    optimizer.step([np.ones(3), grad.copy()])


def test_a_gradient_that_is_another_parameter_is_refused():
    a, b = np.ones(3), np.ones(3)
    message = "grads[0] lies in the memory of params[1]"
    refuses(ValueError, message, lambda: arrays.SGD([a, b]).step([b, np.ones(3)]))


OTHERS = {
    "missing": (arrays.Lion, arrays.Adam, "params[0] is not Adam's: it lacks exp_avg_sq"),
    "unknown": (arrays.Adam, arrays.Lion, "params[0] is not Lion's: it has exp_avg_sq, which it does not know"),
    "both": (arrays.Adagrad, arrays.Adam, "lacks exp_avg, exp_avg_sq and has sum, which it does not know"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_rules_checkpoint_changes_nothing(what):
    theirs, cls, message = OTHERS[what]
    saved = stepped(np.ones(3), cls=theirs).state_dict()
    optimizer = cls([np.ones(3)], lr=0.25)
    refuses(ValueError, message, lambda: optimizer.load_state_dict(saved))
    assert optimizer.state == [{"step": 0}] and optimizer.settings["lr"] == 0.25


@pytest.mark.parametrize("step", [-5, None], ids=str)
def test_a_checkpoint_without_a_number_of_steps_changes_nothing(step):
    saved = stepped(np.ones(3)).state_dict()
    saved["state"][0]["step"] = step
    optimizer = arrays.Adam([np.ones(3)])
    refuses(ValueError, f"the state step of params[0] is {step}", lambda: optimizer.load_state_dict(saved))
    assert optimizer.state == [{"step": 0}]


def test_a_state_that_a_setting_asks_for_begins_anew_if_a_checkpoint_lacks_it():
    first = stepped(np.ones(3))
    first.settings["amsgrad"] = True
    second = arrays.Adam([np.ones(3)])
    second.load_state_dict(first.state_dict())
    second.step([np.ones(3)])
    assert "max_exp_avg_sq" in second.state[0]


def test_weights_to_evaluate():
    """Schedule-Free's average, as the front for torch has it; other rules' own weights, copied."""
    grads = [np.array([0.5, -1.0]), np.array([0.25, 2.0])]
    array, weight = np.array([1.0, 2.0]), torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    mine, theirs = arrays.ScheduleFreeAdamW([array], lr=0.1), steprule.ScheduleFreeAdamW([weight], lr=0.1)
    assert mine.evaluated()[0].tolist() == [1.0, 2.0]
    for grad in grads:
        mine.step([grad])
        weight.grad = torch.from_numpy(grad)
        theirs.step()
    theirs.eval()
    assert np.allclose(mine.evaluated()[0], weight.detach().numpy(), rtol=1e-15)
    assert not np.allclose(array, mine.evaluated()[0])
    plain = arrays.SGD([array])
    assert plain.evaluated()[0] is not array and plain.evaluated()[0].tolist() == array.tolist()


def test_what_cannot_be_optimized_is_refused():
    with pytest.raises(ValueError, match="params is empty"):
        arrays.Adam([])
    with pytest.raises(TypeError, match=r"Adam takes settings by name: lr=0\.001"):
        arrays.Adam([np.ones(2)], 1e-3)


GRADS = {
    "float64": np.array([0.1, -0.7, 3.0]),
    "a list": [0.1, -0.7, 3.0],
    "a tuple": (0.1, -0.7, 3.0),
    "whole numbers": [1, -2, 3],
    "an int64 array": np.array([1, -2, 3]),
}


@pytest.mark.parametrize("kind", GRADS)
def test_gradients_of_other_numbers_are_converted(kind):
    ours, expected = np.ones(3, np.float32), np.ones(3, np.float32)
    arrays.Adam([ours], lr=0.1).step([GRADS[kind]])
    arrays.Adam([expected], lr=0.1).step([np.asarray(GRADS[kind]).astype(np.float32)])
    np.testing.assert_array_equal(ours, expected)
    assert ours.dtype == np.float32


def test_a_number_is_the_gradient_of_a_number():
    param = np.array(2.0)
    arrays.SGD([param], lr=0.5).step([1.0])
    assert param == 1.5


# Functions of the step


def warmup(step):
    return 0.1 * step


def test_a_hyperparameter_may_be_a_function_of_the_step():
    """It counts calls of step, also for an array that had no gradient before."""
    a, b = np.zeros(1), np.zeros(1)
    optimizer = arrays.SGD([a, b], lr=warmup)
    optimizer.step([np.ones(1), None])
    optimizer.step([np.ones(1), np.ones(1)])
    np.testing.assert_allclose([a[0], b[0]], [-0.1 - 0.2, -0.2])
    optimizer.settings["lr"] = 1.0
    optimizer.step([None, np.ones(1)])
    optimizer.settings["lr"] = lambda step: step
    optimizer.step([None, np.ones(1)])
    np.testing.assert_allclose(b, -0.2 - 1 - 4)


def test_functions_give_the_same_bits_as_in_the_front_for_torch():
    settings = {"lr": warmup, "betas": lambda step: (0.9, 1 - 0.1 / step), "weight_decay": 0.1}
    params = make_params("float32")
    peers = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    ours, its = arrays.AdamW(params, **settings), steprule.AdamW(peers, **settings)
    for step in range(3):
        step_both(ours, its, make_grads(params, step))
    assert_same_bits(ours, its)


@pytest.mark.parametrize("saved", ["with calls", "by torch"])
def test_a_function_goes_on_where_the_saved_one_was(saved):
    param = np.ones(2)
    optimizer = arrays.Adam([param], lr=warmup)
    for _ in range(3):
        optimizer.step([np.ones(2)])
    state = optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == pytest.approx(0.4) and state["param_groups"][0]["calls"] == 3
    if saved == "by torch":
        del state["param_groups"][0]["calls"]
    resumed = arrays.Adam([param.copy()], lr=warmup)
    resumed.load_state_dict(state)
    assert resumed.settings["lr"] is warmup
    for one in (optimizer, resumed):
        one.step([np.ones(2)])
    np.testing.assert_array_equal(param, resumed.params[0])
    state["param_groups"][0]["calls"] = "3"
    refuses(ValueError, "calls='3' in state_dict must be a number of steps", lambda: resumed.load_state_dict(state))


def test_a_function_that_fails_or_gives_nonsense_changes_nothing():
    refuses(ValueError, "Invalid learning rate: -1", lambda: arrays.Adam([np.ones(1)], lr=lambda step: -1))
    refuses(
        ValueError,
        "betas of ScheduleFreeAdamW cannot be a function of the step: ",
        lambda: arrays.ScheduleFreeAdamW([np.ones(1)], betas=lambda step: (0.9, 0.99)),
    )
    param = np.ones(2)
    optimizer = arrays.Adam([param], lr=lambda step: 0.1 if step < 2 else "much")
    optimizer.step([np.ones(2)])
    before = param.copy(), copy.deepcopy(optimizer.state)
    refuses(TypeError, "lr must be a number, not 'much'", lambda: optimizer.step([np.ones(2)]))
    np.testing.assert_array_equal(param, before[0])
    assert repr(optimizer.state) == repr(before[1])


# Options around the formula

OPTIONS = {
    "decay": {"decay": "independent", "weight_decay": 0.1},
    "decay to the first weights": {"decay": "initial", "weight_decay": 0.1},
    "cautious": {"cautious": True},
    "cautious decay": {"cautious_decay": True, "weight_decay": 0.1},
    "lookahead": {"lookahead": 2, "lookahead_alpha": lambda step: 0.5 + 0.1 / step},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_give_the_same_bits_as_in_the_front_for_torch(name):
    params = make_params("float32")
    peers = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    ours, its = arrays.AdamW(params, lr=0.1, **OPTIONS[name]), steprule.AdamW(peers, lr=0.1, **OPTIONS[name])
    for step in range(5):
        if step == 3:
            ours, saved = pickle.loads(pickle.dumps(arrays.AdamW(params, **pickled(OPTIONS[name])))), ours.state_dict()
            ours.params = params
            ours.settings.update({key: value for key, value in OPTIONS[name].items() if callable(value)})
            ours.load_state_dict(saved)
        step_both(ours, its, make_grads(params, step))
    assert_same_bits(ours, its)


def pickled(settings):
    """Without functions that have no name."""
    return {name: value for name, value in settings.items() if not callable(value)}


def test_a_decoupled_flag_is_decay_to_options():
    params = [np.full(3, 2.0), np.full(3, 2.0)]
    arrays.Adam([params[0]], weight_decay=0.1, decoupled_weight_decay=True, cautious=True).step([np.ones(3)])
    arrays.AdamW([params[1]], weight_decay=0.1, cautious=True).step([np.ones(3)])
    np.testing.assert_array_equal(*params)


BAD_OPTIONS = {
    "no such decay": ({"decay": "l2"}, ValueError, "Invalid decay value: 'l2'"),
    "a flag that is none": ({"cautious": "yes"}, TypeError, "cautious must be True or False, not 'yes'"),
    "lookahead of half a step": ({"lookahead": 0.5}, ValueError, "Invalid lookahead value: 0.5"),
    "misspelled": ({"cautius": True}, TypeError, "Adam got an unexpected argument 'cautius'; did you mean 'cautious'?"),
    "a format": (
        {"states": "8bit"},
        TypeError,
        "Adam takes no states: optimizers of arrays have no formats, services and",
    ),
    "a service": ({"clip": 1.0}, TypeError, "Adam takes no clip: optimizers of arrays have no formats, services and"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name):
    settings, kind, message = BAD_OPTIONS[name]
    refuses(kind, message, lambda: arrays.Adam([np.ones(1)], **settings))


def test_the_class_that_has_what_arrays_have_not_exists():
    class Plain(steprule.Rule):
        def update(param, grad, *, lr=0.1):
            return param - lr * grad

    class Arrays(arrays.Optimizer, rule=Plain): ...

    own = "Arrays takes no clip: .* steprule.Optimizer.of\\(Plain\\), which steps torch's parameters, has them"
    with pytest.raises(TypeError, match=own):
        Arrays([np.ones(1)], clip=1.0)
    with pytest.raises(TypeError, match=r"flags. steprule.Adam, which"):
        arrays.Adam([np.ones(1)], clip=1.0)


def test_options_that_are_changed_later_are_refused():
    optimizer = arrays.Adam([np.ones(1)], lookahead=2)
    with pytest.raises(AttributeError, match="an attribute cautious would do nothing: cautious is chosen when"):
        optimizer.cautious = True
    optimizer.settings["lookahead"] = 0
    refuses(ValueError, "Invalid lookahead value: 0", lambda: optimizer.step([np.ones(1)]))


def test_what_it_prints_of_itself():
    assert repr(arrays.SGD([np.ones((2, 3)), np.ones(4)], lr=warmup, nesterov=True, momentum=0.5, cautious=True)) == (
        "SGD(2 arrays of 10 elements, lr=warmup(step), momentum=0.5, dampening=0.0, weight_decay=0.0, nesterov=True, "
        "cautious=True)"
    )
    shown = repr(arrays.Adam([np.ones(1)], lookahead=5))
    assert shown.startswith("Adam(1 array of 1 element, lr=0.001, betas=(0.9, 0.999), ")
    assert shown.endswith("lookahead=5, lookahead_alpha=0.5)")
