"""Lightning's and Fabric's optimizer wrappers, and LightningCLI's arguments. `nox -s frameworks` installs what they need."""

from __future__ import annotations

import pytest
import torch

import steprule

lightning = pytest.importorskip("lightning")
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


def test_an_average_goes_with_lightnings_clipping():
    module = Automatic(lambda params: steprule.AdamW(params, average=0.9, telemetry=1))
    trainer = lightning.Trainer(**QUIET, precision="bf16-mixed", gradient_clip_val=0.5)
    trainer.fit(module, batches())
    assert trainer.optimizers[0].state[module.layer.weight]["step"] == 4


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
