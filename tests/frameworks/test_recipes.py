"""Every program of docs/guides/frameworks.md, against the real package. `nox -s frameworks` installs those.

A block's title is the package that it needs; what is not installed is skipped, with its name.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import steprule

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "frameworks.md"
FENCE = re.compile(
    r"^## ([^\n]+)|^``` ?(\{ \.python [^\n]*title=\"(\w+)\" \}|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
pytestmark = pytest.mark.filterwarnings("ignore")


def recipes():
    """The heading, package and code of each, and the beginning that all share."""
    heading, first, found = "", "", []
    for title, mark, package, code in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        heading = title or heading
        if mark == "python":
            first += code
        elif mark:
            found.append((heading, package, code))
    return first, found


FIRST, FOUND = recipes()


def test_the_page_has_them_all():
    packages = {package for _, package, _ in FOUND}
    assert packages == {
        "transformers", "trl", "peft", "accelerate", "lightning", "timm", "fastai", "ignite", "skorch", "stable_baselines3",
        "torchtune", "deepspeed", "ray", "hydra", "jsonargparse", "optuna",
    }  # fmt: skip


@pytest.mark.parametrize(("heading", "package", "code"), FOUND, ids=[f"{h}, {p}" for h, p, _ in FOUND])
def test_a_recipe_trains(heading, package, code, tmp_path, monkeypatch, request):
    try:
        importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package}: {error}")
    monkeypatch.chdir(tmp_path)
    if package == "deepspeed":
        request.getfixturevalue("one_process")
    namespace = {"__name__": "__main__"}
    exec(compile(FIRST, str(PAGE), "exec"), namespace)
    before = [p.detach().clone() for p in namespace["model"].parameters()]
    exec(compile(code, f"{PAGE}, {heading}", "exec"), namespace)
    optimizer = namespace.get("optimizer")
    if isinstance(optimizer, steprule.Optimizer) and package not in ("hydra", "jsonargparse"):
        assert any(state.get("step", 0) > 0 for state in optimizer.state.values())
    if package in ("accelerate", "lightning", "fastai", "ignite", "skorch", "deepspeed", "ray", "torchtune"):
        assert not all(map(torch.equal, before, namespace["model"].parameters()))
    if package in ("fastai", "ignite", "torchtune"):  # they end with averages, and have released what they were given
        assert not optimizer._core.modes.has_trained_weights and optimizer._core.release is not None
        assert optimizer.clipped_steps > 0 and optimizer.telemetry.records[-1]["total"]["update_norm"] > 0
    if package == "deepspeed":
        assert optimizer.clipped_steps == 4 and float(optimizer.grad_norm) > 1
    if package == "stable_baselines3":  # the second training goes on from the first's count
        assert max(float(state["step"]) for state in optimizer.state.values()) == 20
    if package in ("torchtune", "hydra", "jsonargparse"):
        group = optimizer.param_groups[0]
        assert type(optimizer) is steprule.AdamW and group["lr"] in (1e-3, 0.01) and len(group["betas"]) == 2


@pytest.mark.parametrize("package", ["skorch"])
def test_a_setting_of_the_whole_optimizer_is_refused_where_it_would_do_nothing(package):
    skorch = pytest.importorskip(package)
    namespace = {}
    exec(FIRST, namespace)
    net = skorch.NeuralNetRegressor(namespace["model"], optimizer=steprule.AdamW, optimizer__clip=1.0, verbose=0)
    x, y = namespace["inputs"].numpy(), namespace["targets"].numpy()
    net.set_params(optimizer__clip=0.25, max_epochs=1)
    net.fit(x, y)
    assert net.optimizer_.clip.max_norm == 0.25
    net.set_params(optimizer__clip=0.5)
    with pytest.raises(ValueError, match=r"clip=0\.5 in a parameter group"):
        net.partial_fit(x, y)


@pytest.mark.parametrize(
    ("stage", "releases", "settings", "words"),
    [
        (0, False, {"average": 0.5, "states": "8bit"}, None),
        (0, True, {}, "nothing can clip, unscale or read them"),
        (1, True, {}, None),
        (1, False, {"average": 0.5}, "is flat, as DeepSpeed's"),
        (1, False, {"states": "8bit"}, "is flat, as DeepSpeed's"),
    ],
)
def test_what_deepspeed_takes(stage, releases, settings, words, one_process):
    deepspeed = pytest.importorskip("deepspeed")
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}, "gradient_clipping": 0.0}

    def train(releases, **settings):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 256)
        optimizer = steprule.AdamW(model.parameters(), lr=1e-2, **settings)
        if releases:
            optimizer.release_gradients(model)
        config["zero_allow_untested_optimizer"] = True
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for batch in torch.linspace(-1, 1, 48).view(3, 4, 4):
            engine.backward((engine(batch) - 1).square().mean())
            engine.step()
        weights = model.weight.detach().clone()
        optimizer.eval()
        return weights, model.weight.detach()

    deepspeed.init_distributed("gloo", verbose=False)
    if words is not None:
        with pytest.raises((ValueError, RuntimeError), match=words):
            train(releases, **settings)
        return
    weights, after = train(releases, **settings)
    assert torch.equal(weights, after) == ("average" not in settings)
    if releases:
        assert torch.equal(weights, train(False)[0])


@pytest.mark.parametrize(("name", "settings"), [("PPO", {"n_steps": 64}), ("A2C", {}), ("DQN", {"learning_starts": 8})])
def test_agents_that_clip_refuse_released_gradients(name, settings):
    sb3 = pytest.importorskip("stable_baselines3")
    given = {"optimizer_class": steprule.AdamW}
    agent = getattr(sb3, name)("MlpPolicy", "CartPole-v1", **settings, policy_kwargs=given, device="cpu")
    agent.policy.optimizer.release_gradients(agent.policy)
    with pytest.raises(RuntimeError, match="give the optimizer clip="):
        agent.learn(64)


def test_adapters_are_float32():
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(4, 16, dtype=torch.bfloat16))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
    with pytest.raises(ValueError, match="weights="):
        steprule.AdamW([p for p in adapted.parameters() if p.requires_grad], weights="24bit")
