"""Lightning's and Fabric's optimizer wrappers, and LightningCLI's arguments. `nox -s frameworks` installs what they need."""

from __future__ import annotations

import csv

import pytest
import torch

import steprule

lightning = pytest.importorskip("lightning")
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from steprule.integrations.lightning import OptimizerCallback  # noqa: E402
from steprule.services import ClipValue  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def batches():
    inputs = torch.linspace(-1, 1, 32).reshape(8, 4)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), batch_size=2)


class Module(lightning.LightningModule):
    """Trains by hand through `self.optimizers()`, and notes what that says."""

    automatic_optimization = False

    def __init__(self, make):
        super().__init__()
        self.layer, self.make, self.seen = torch.nn.Linear(4, 2), make, []

    def configure_optimizers(self):
        return self.make(self.parameters())

    def loss(self, batch):
        return self.layer(batch[0]).square().sum()

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        self.seen.append((float(optimizer.grad_norm), optimizer.clipped_steps))


class Automatic(Module):
    automatic_optimization = True

    def training_step(self, batch, index):
        return self.loss(batch)


def test_lightnings_wrapper_says_what_the_optimizer_says():
    module = Module(lambda params: steprule.AdamW(params, clip=1e-3))
    trainer = lightning.Trainer(**QUIET)
    trainer.fit(module, batches())
    assert [clipped for _, clipped in module.seen] == [1, 2, 3, 4] and all(norm > 0 for norm, _ in module.seen)
    assert trainer.optimizers[0].clipped_steps == 4


def test_counts_of_clipped_steps_go_on_with_the_trainers_clip(tmp_path):
    settings = {**QUIET, "gradient_clip_val": 1e-3, "enable_checkpointing": True, "default_root_dir": str(tmp_path)}
    first = lightning.Trainer(**settings, callbacks=[OptimizerCallback()])
    first.fit(Automatic(lambda params: steprule.AdamW(params)), batches())
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = lightning.Trainer(**{**settings, "max_epochs": 2}, callbacks=[OptimizerCallback()])
    second.fit(Automatic(lambda params: steprule.AdamW(params)), batches(), ckpt_path=tmp_path / "last.ckpt")
    assert first.optimizers[0].clipped_steps == 4 and second.optimizers[0].clipped_steps == 8
    assert first.gradient_clip_val == second.gradient_clip_val == 1e-3


def test_lightnings_wrapper_exchanges_averages_and_loads():
    class Both(Module):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            optimizer, weights = self.optimizers(), self.layer.weight.detach().clone()
            with optimizer.averaged():
                assert index == 0 or not torch.equal(self.layer.weight, weights)
            assert torch.equal(self.layer.weight, weights)
            optimizer.load_state_dict(optimizer.state_dict())

    module = Both(lambda params: steprule.AdamW(params, lr=lambda step: 0.1 / step, clip=1e-3, average=0.9))
    trainer = lightning.Trainer(**QUIET)
    trainer.fit(module, batches())
    assert trainer.optimizers[0].clipped_steps == 4 and trainer.optimizers[0].param_groups[0]["lr"] == 0.1 / 5


class Clipping(torch.optim.SGD):
    """Clips before it steps."""

    def __init__(self, params, clip=None, **settings):
        super().__init__(params, **settings)
        self.clip = clip

    def step(self, closure=None):
        loss = None if closure is None else closure()
        params = self.param_groups[0]["params"]
        if isinstance(self.clip, ClipValue):
            torch.nn.utils.clip_grad_value_(params, self.clip.clip_value)
        elif self.clip is not None:
            torch.nn.utils.clip_grad_norm_(params, self.clip)
        super().step()
        return loss


SERVICES = {
    "clip": {"clip": 0.2}, "clip by value": {"clip": ClipValue(0.2)}, "average": {"average": 0.5}, "skip": {"nonfinite": "skip"},
    "zero": {"nonfinite": "zero"}, "raise": {"nonfinite": "raise"}, "telemetry": {"telemetry": 2},
}  # fmt: skip


@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "alone"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("service", SERVICES)
def test_any_service_goes_with_any_clipping_and_precision(service, precision, algorithm, with_callback):
    """On a CPU a Trainer takes bfloat16 for "16-mixed", and no scaler: so it gets one."""

    def train(cls, clip_val, callbacks, **settings):
        module = Automatic(lambda params: cls(params, lr=0.01, momentum=0.9, **settings))
        torch.manual_seed(0)
        module.layer.reset_parameters()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        scaled = {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}
        given = scaled if precision == "16-mixed" else {"precision": precision}
        clipping = {"gradient_clip_val": clip_val, "gradient_clip_algorithm": algorithm}
        trainer = lightning.Trainer(**QUIET, **given, **clipping, callbacks=callbacks)
        trainer.fit(module, batches())
        return module.layer.weight, trainer.optimizers[0]

    settings = SERVICES[service]
    weight, optimizer = train(steprule.SGD, 0.3, [OptimizerCallback()] if with_callback else [], **settings)
    optimizer.train()
    clip = settings.get("clip")
    its, _ = train(Clipping, None if with_callback and clip else 0.3, [], clip=clip)
    torch.testing.assert_close(weight, its)
    assert optimizer.skipped_steps == 0 and optimizer.state[weight]["momentum_buffer"].norm() > 0


@pytest.mark.parametrize("with_callback", [True, False], ids=["callback", "alone"])
def test_what_a_scaler_skips_is_counted(with_callback):
    module = Automatic(lambda params: steprule.SGD(params, lr=0.01, nonfinite="skip"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callbacks = [OptimizerCallback()] if with_callback else []
    trainer = lightning.Trainer(**QUIET, plugins=plugin, gradient_clip_val=0.3, callbacks=callbacks)
    trainer.fit(module, batches())
    assert trainer.optimizers[0].skipped_steps == 4 and scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
def test_fabrics_wrapper_has_the_optimizers_modes(name):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model = torch.nn.Linear(4, 2)
    optimizer = getattr(steprule, name)(model.parameters(), clip=1e-3)
    wrapped_model, wrapped = fabric.setup(model, optimizer)
    for (inputs,) in batches():
        fabric.backward(wrapped_model(inputs).square().sum())
        wrapped.step()
        wrapped.zero_grad()
    assert wrapped.clipped_steps == optimizer.clipped_steps == 4
    assert float(wrapped.grad_norm) == float(optimizer.grad_norm) > 0
    wrapped.eval()
    for one in (wrapped, optimizer):
        with pytest.raises(RuntimeError, match="averaged weights"):
            one.step()
    wrapped.train()
    optimizer.step()


def test_fabric_saves_and_loads(tmp_path):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)

    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        return fabric.setup(
            model, steprule.AdamW(model.parameters(), lr=lambda step: 0.1 / step, clip=1e-3, average=0.9)
        )

    def train(model, optimizer):
        for (inputs,) in batches():
            fabric.backward(model(inputs).square().sum())
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = made()
    train(model, optimizer)
    fabric.save(tmp_path / "checkpoint", {"model": model, "optimizer": optimizer})
    other_model, other = made()
    fabric.load(tmp_path / "checkpoint", {"model": other_model, "optimizer": other})
    assert other.clipped_steps == 4
    train(model, optimizer)
    train(other_model, other)
    assert torch.equal(model.weight, other_model.weight) and other.clipped_steps == 8


class Plain(lightning.LightningModule):
    """A module whose optimizer the command line chooses."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, index):
        return self.layer(batch[0]).square().sum()


class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return batches()


def test_the_command_line_sets_arguments():
    from lightning.pytorch.cli import LightningCLI

    options = [
        "--optimizer=steprule.AdamW",
        "--optimizer.lr=0.05",
        "--optimizer.betas=[0.8, 0.9]",
        "--optimizer.clip=1.0",
    ]
    settings = [f"--trainer.{name}={str(value).lower()}" for name, value in QUIET.items()]
    cli = LightningCLI(Plain, Data, run=False, args=[*options, *settings], save_config_callback=None)
    cli.trainer.fit(cli.model, cli.datamodule)
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is steprule.AdamW and optimizer.clip.max_norm == 1.0
    assert (optimizer.param_groups[0]["lr"], tuple(optimizer.param_groups[0]["betas"])) == (0.05, (0.8, 0.9))


# The callback


class Averaged(lightning.LightningModule):
    """Trains by itself, and notes the loss and weights that validation sees."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.make, self.seen = torch.nn.Linear(4, 2), make, []

    def configure_optimizers(self):
        return self.make(self.parameters())

    def training_step(self, batch, index):
        return (self.layer(batch[0]) - 1).square().sum()

    def validation_step(self, batch, index):
        self.seen.append(self.layer.weight.detach().clone())
        self.log("loss", (self.layer(batch[0]) - 1).square().sum())

    train_dataloader = val_dataloader = staticmethod(batches)


def fit(make, *, epochs=2, path=None, **settings):
    module = Averaged(make)
    callbacks = [OptimizerCallback(**settings.pop("callback", {})), *settings.pop("callbacks", [])]
    given = {**QUIET, "max_epochs": epochs, "callbacks": callbacks, "num_sanity_val_steps": 0, **settings}
    trainer = lightning.Trainer(**given)
    trainer.fit(module, ckpt_path=path)
    return module, trainer, trainer.optimizers[0]


def adamw(**settings):
    return lambda params: steprule.AdamW(params, lr=0.1, **settings)


def weights_of(optimizer, module):
    """Those that are trained."""
    optimizer.train()
    kept = [p.detach().clone() for p in module.parameters()]
    optimizer.eval()
    return kept


@pytest.mark.parametrize(
    "make",
    [adamw(average=0.5), lambda params: steprule.ScheduleFreeAdamW(params, lr=0.1)],
    ids=["average", "Schedule-Free"],
)
def test_validation_and_the_end_have_averages_and_training_has_weights(make):
    module, _, optimizer = fit(make)
    plain = Averaged(make)
    trainer = lightning.Trainer(**QUIET | {"max_epochs": 2}, limit_val_batches=0)
    trainer.fit(plain)
    assert (
        all(map(torch.equal, weights_of(optimizer, module), plain.parameters())) or "Free" in type(optimizer).__name__
    )
    for mine, its in zip(weights_of(optimizer, module), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its.detach())  # Schedule-Free's come back but for rounding
    trainer.optimizers[0].eval()
    torch.testing.assert_close(module.seen[-1], plain.layer.weight.detach())
    torch.testing.assert_close(module.layer.weight, plain.layer.weight)
    assert not torch.equal(module.seen[0], module.seen[-1])


def test_the_average_is_that_of_weight_averaging():
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module, _, _ = fit(adamw(average=0.5))
    its = Averaged(adamw())
    theirs = EMAWeightAveraging(decay=0.5)
    lightning.Trainer(**QUIET | {"max_epochs": 2, "callbacks": [theirs], "num_sanity_val_steps": 0}).fit(its)
    torch.testing.assert_close(module.layer.weight, its.layer.weight)
    torch.testing.assert_close(module.seen[-1], its.seen[-1])


@pytest.mark.parametrize("where", ["validation", "training"])
def test_the_best_checkpoint_has_averages_and_training_goes_on_from_the_weights(tmp_path, where):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saved = ModelCheckpoint(tmp_path, save_top_k=-1, monitor="loss", save_on_train_epoch_end=where == "training")
    make = adamw(average=0.5, clip=1.0)
    module, _, optimizer = fit(make, callbacks=[saved], enable_checkpointing=True)
    first = sorted(saved.best_k_models)[0]
    kept = torch.load(first, weights_only=False)
    torch.testing.assert_close(kept["state_dict"]["layer.weight"], module.seen[3], rtol=0, atol=0)
    assert kept["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
    resumed, _, its = fit(make, path=first)
    if where == "validation":  # a checkpoint before the end of an epoch begins that again, whatever the optimizer
        assert all(map(torch.equal, weights_of(optimizer, module), weights_of(its, resumed)))
        assert its.clipped_steps == optimizer.clipped_steps
    raw = Averaged(make)
    alone = lightning.Trainer(**QUIET | {"max_epochs": 3}, limit_val_batches=0)
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        alone.fit(raw, ckpt_path=first)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_is_taken_over(algorithm, precision):
    clipping = {"gradient_clip_val": 0.3, "gradient_clip_algorithm": algorithm, "precision": precision}
    module, trainer, optimizer = fit(adamw(nonfinite="skip"), **clipping)
    plain = Averaged(lambda params: torch.optim.AdamW(params, lr=0.1))
    lightning.Trainer(**QUIET | {"max_epochs": 2}, **clipping).fit(plain)
    torch.testing.assert_close(module.layer.weight, plain.layer.weight)
    assert trainer.gradient_clip_val == 0.3
    assert optimizer.clipped_steps == (8 if algorithm == "norm" else 0)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_gradients_are_released(accumulate):
    settings = {"accumulate_grad_batches": accumulate, "epochs": 1}
    module, _, optimizer = fit(adamw(), callback={"release": True}, **settings)
    plain, _, _ = fit(adamw(), **settings)
    assert optimizer._core.release is not None and optimizer.state[module.layer.weight]["step"] == -(-4 // accumulate)
    assert torch.equal(module.layer.weight, plain.layer.weight)


def test_what_release_cannot_do_is_refused_in_lightnings_words():
    with pytest.raises(ValueError, match="needs automatic optimization"):
        lightning.Trainer(**QUIET | {"callbacks": [OptimizerCallback(release=True)]}).fit(Module(adamw()), batches())
    plain = Automatic(adamw())
    plain.on_train_start = lambda: plain.trainer.optimizers[0].release_gradients(plain)
    with pytest.raises(RuntimeError, match="leave gradient_clip_val of Lightning's Trainer out"):
        lightning.Trainer(**QUIET, gradient_clip_val=1.0).fit(plain, batches())
    plain = Automatic(adamw())
    plain.on_train_start = lambda: plain.trainer.optimizers[0].release_gradients(plain)
    with pytest.raises(RuntimeError, match=r"OptimizerCallback\(release=True\)"):
        lightning.Trainer(**QUIET, accumulate_grad_batches=2).fit(plain, batches())


def test_loggers_are_told(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    settings = {"clip": 0.1, "nonfinite": "skip", "telemetry": 2}
    fit(adamw(**settings), logger=logger, log_every_n_steps=1, epochs=1)
    with open(logger.experiment.metrics_file_path) as file:
        rows = [row for row in csv.DictReader(file) if row["optimizer/grad_norm"]]
    assert [int(float(row["optimizer/clipped_steps"])) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["optimizer/skipped_steps"]) == 0 for row in rows)
    assert [row["step"] for row in rows if row["optimizer/update_norm"]] == ["2", "4"]


def test_several_optimizers_keep_their_modes():
    def make(params):
        first, second = params
        return steprule.Together([steprule.AdamW([first], lr=0.1, average=0.5), torch.optim.SGD([second], lr=0.1)])

    module, _, optimizer = fit(make)
    averages = module.layer.weight.detach().clone()
    optimizer.train()
    assert not torch.equal(averages, module.layer.weight)
