"""Each framework of docs/guides/frameworks.md trains a small model, as its users would; tests/frameworks/test_table.py looks at what came of it.

A trainer takes `make`, which makes an optimizer of a module, or of parameters where a framework has no more, and a `Wish`. It saves
in its folder at the end, and begins with what lies there if asked to. Those that a launcher starts in several processes divide the
same batches among them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from training import DATA, INPUTS, ROWS, TARGETS, WORLD, Trained, Wish, begin, by_hand, divided, loader, net


def transformers(make: Callable[..., Any], wish: Wish, trl: bool = False) -> Trained:
    import transformers as package

    from steprule.integrations.transformers import OptimizerCallback

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = package.LlamaForCausalLM(package.LlamaConfig(**sizes))
    rows = [
        {"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in (torch.arange(8) * k % 16 for k in range(12))
    ]
    given = {
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": ROWS, "save_strategy": "epoch", "max_grad_norm": 0,
        "num_train_epochs": wish.epochs + wish.resumes, "lr_scheduler_type": "constant", "seed": 0,
    }  # fmt: skip
    optimizer = make(model)
    seen = begin(model, optimizer, wish)
    if trl:
        import datasets
        import trl as package_of_trl
        from tokenizers import Tokenizer, models

        words = Tokenizer(models.WordLevel({str(n): n for n in range(16)}, unk_token="2"))
        arguments = package_of_trl.SFTConfig(
            str(wish.path), **given, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}
        )
        trainer = package_of_trl.SFTTrainer(
            model, arguments, train_dataset=datasets.Dataset.from_list(rows), optimizers=(optimizer, None),
            processing_class=package.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1"),
        )  # fmt: skip
    else:
        arguments = package.TrainingArguments(str(wish.path), **given)
        trainer = package.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
    if wish.averages or wish.releases:
        OptimizerCallback(release=wish.releases).add_to(trainer)
    trainer.train(resume_from_checkpoint=wish.resumes or None)
    return Trained(model, trainer.optimizer, optimizer, seen)


def trl(make: Callable[..., Any], wish: Wish) -> Trained:
    return transformers(make, wish, trl=True)


def peft(make: Callable[..., Any], wish: Wish) -> Trained:
    from peft import LoraConfig, PeftModel, get_peft_model

    model: Any
    if wish.resumes:
        model = PeftModel.from_pretrained(net(), wish.path, is_trainable=True)
    else:
        model = get_peft_model(net(), LoraConfig(r=4, target_modules=["0", "2"]))
    optimizer = make(p for p in model.parameters() if p.requires_grad)
    if wish.resumes:
        optimizer.load_state_dict(torch.load(wish.path / "optimizer.pt", weights_only=True))
    seen = begin(model, optimizer, wish)
    by_hand(model, optimizer, wish)
    model.save_pretrained(wish.path)
    torch.save(optimizer.state_dict(), wish.path / "optimizer.pt")
    return Trained(model, optimizer, optimizer, seen)


def shard(accelerator: Any) -> None:
    """Has accelerate use FSDP2, which it does on GPUs alone."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def accelerate(make: Callable[..., Any], wish: Wish, fsdp2: bool = False) -> Trained:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator, model = Accelerator(cpu=True), net()
    if fsdp2:
        shard(accelerator)
    optimizer = make(model)
    prepared, wrapped, batches = accelerator.prepare(model, optimizer, loader())
    if wish.resumes:
        accelerator.load_state(str(wish.path))
    seen = begin(model, optimizer, wish)
    if wish.releases:
        optimizer.release_gradients(prepared)
    for _ in range(wish.epochs):
        for inputs, targets in batches:
            accelerator.backward((prepared(inputs) - targets).square().mean())
            wrapped.step()
            wrapped.zero_grad()
    accelerator.save_state(str(wish.path))
    return Trained(model, wrapped, optimizer, seen)


def lightning(make: Callable[..., Any], wish: Wish) -> Trained:
    import lightning as package

    from steprule.integrations.lightning import OptimizerCallback

    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def training_step(self, batch: Any, index: int) -> Any:
            return (self.layers(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            self.optimizer = make(self.layers)
            self.seen = begin(self.layers, self.optimizer, wish)
            return self.optimizer

    module = Module()
    trainer = package.Trainer(
        accelerator="cpu", devices=WORLD, strategy="auto" if WORLD == 1 else "ddp", use_distributed_sampler=False, max_epochs=wish.epochs + wish.resumes, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[OptimizerCallback(release=wish.releases)] if wish.averages or wish.releases else [],
    )  # fmt: skip
    saved = wish.path / "last.ckpt"
    trainer.fit(module, divided(), ckpt_path=saved if wish.resumes else None, weights_only=False)
    trainer.save_checkpoint(saved)
    return Trained(module.layers, module.optimizers(), module.optimizer, module.seen)


def fabric(make: Callable[..., Any], wish: Wish) -> Trained:
    import lightning as package

    fabric, model = package.Fabric(accelerator="cpu", devices=WORLD), net()
    fabric.launch()
    optimizer = make(model)
    wrapped_model, wrapped = fabric.setup(model, optimizer)
    if wish.resumes:
        fabric.load(wish.path / "saved.ckpt", {"model": wrapped_model, "optimizer": wrapped})
    seen = begin(model, optimizer, wish)
    if wish.releases:
        optimizer.release_gradients(model)
    for _ in range(wish.epochs):
        for inputs, targets in fabric.setup_dataloaders(loader()):
            fabric.backward((wrapped_model(inputs) - targets).square().mean())
            wrapped.step()
            wrapped.zero_grad()
    fabric.save(wish.path / "saved.ckpt", {"model": wrapped_model, "optimizer": wrapped})
    return Trained(model, wrapped, optimizer, seen)


def timm(make: Callable[..., Any], wish: Wish) -> Trained:
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver

    model = net()
    optimizer = make(model.parameters())
    if wish.resumes:
        resume_checkpoint(model, wish.path / "last.pth.tar", optimizer, log_info=False)
    seen = begin(model, optimizer, wish)
    by_hand(model, optimizer, wish)
    CheckpointSaver(model, optimizer, checkpoint_dir=str(wish.path)).save_checkpoint(epoch=0)
    return Trained(model, optimizer, optimizer, seen)


def fastai(make: Callable[..., Any], wish: Wish) -> Trained:
    from fastai.basics import DataLoaders, Learner, MSELossFlat, OptimWrapper
    from fastai.callback import progress  # noqa: F401, it has no_bar
    from fastai.data.load import DataLoader

    def opt_func(params: Any, **kwargs: Any) -> Any:
        return OptimWrapper(opt=make(params))

    model = net()
    learner = Learner(
        DataLoaders(DataLoader(DATA, bs=4), DataLoader(DATA, bs=4)), model, loss_func=MSELossFlat(), opt_func=opt_func, path=wish.path, lr=0.01
    )  # fmt: skip
    learner.create_opt()
    if wish.resumes:
        learner.load("saved")
    optimizer = learner.opt.opt
    seen = begin(model, optimizer, wish)
    if wish.releases:
        optimizer.release_gradients(model)
    with learner.no_bar(), learner.no_logging():
        learner.fit(wish.epochs)
    learner.save("saved")
    return Trained(model, optimizer, optimizer, seen)


def ignite(make: Callable[..., Any], wish: Wish) -> Trained:
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import Checkpoint, DiskSaver

    model = net()
    optimizer = make(model.parameters())
    all_of_it = {"model": model, "optimizer": optimizer}
    if wish.resumes:
        Checkpoint.load_objects(all_of_it, torch.load(next(wish.path.glob("*.pt")), weights_only=True))
    seen = begin(model, optimizer, wish)
    if wish.releases:
        optimizer.release_gradients(model)
    engine = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    engine.add_event_handler(Events.COMPLETED, Checkpoint(all_of_it, DiskSaver(str(wish.path), require_empty=False)))
    engine.run(loader(), max_epochs=wish.epochs)
    return Trained(model, optimizer, optimizer, seen)


def skorch(make: Callable[..., Any], wish: Wish) -> Trained:
    from skorch import NeuralNetRegressor

    model = net()
    net_of_skorch = NeuralNetRegressor(
        model, optimizer=lambda params, lr: make([p for _, p in params] if isinstance(params, zip) else params), batch_size=4, max_epochs=wish.epochs,
        train_split=None, verbose=0, iterator_train__shuffle=False,
    )  # fmt: skip
    net_of_skorch.initialize()
    files = {"f_params": wish.path / "params.pt", "f_optimizer": wish.path / "optimizer.pt"}
    if wish.resumes:
        net_of_skorch.load_params(**files)
    optimizer = net_of_skorch.optimizer_
    seen = begin(net_of_skorch.module_, optimizer, wish)
    if wish.releases:
        optimizer.release_gradients(net_of_skorch.module_)
    net_of_skorch.partial_fit(INPUTS.numpy(), TARGETS.numpy())
    net_of_skorch.save_params(**files)
    return Trained(net_of_skorch.module_, optimizer, optimizer, seen)


def stable_baselines3(make: Callable[..., Any], wish: Wish) -> Trained:
    import gymnasium
    from stable_baselines3 import PPO

    if wish.resumes:
        agent = PPO.load(wish.path / "saved", env=gymnasium.make("CartPole-v1"), device="cpu")
    else:
        settings = {"optimizer_class": lambda params, lr, **kwargs: make(params), "net_arch": [128, 128]}
        sizes = {"n_steps": 32, "batch_size": 32, "n_epochs": 3, "learning_rate": 0.01}
        agent = PPO("MlpPolicy", "CartPole-v1", **sizes, policy_kwargs=settings, device="cpu", seed=0)
    optimizer = agent.policy.optimizer
    seen = begin(agent.policy, optimizer, wish)
    agent.learn(32 * wish.epochs)
    agent.save(wish.path / "saved")
    return Trained(agent.policy, optimizer, optimizer, seen)


def torchtune(make: Callable[..., Any], wish: Wish) -> Trained:
    from torchtune.training import MODEL_KEY, OPT_KEY, FullModelTorchTuneCheckpointer

    base, model = wish.path / "base", net()
    if not wish.resumes:
        base.mkdir()
        torch.save(model.state_dict(), base / "model.pt")
    folders = {"checkpoint_dir": str(base), "output_dir": str(wish.path / "out")}
    files = ["epoch_0/model-00001-of-00001.bin" if wish.resumes else "model.pt"]
    checkpointer = FullModelTorchTuneCheckpointer(
        **folders, checkpoint_files=files, model_type="LLAMA3", should_load_recipe_state=wish.resumes
    )
    saved = checkpointer.load_checkpoint()
    model.load_state_dict(saved[MODEL_KEY])
    optimizer = make(model.parameters())
    if wish.resumes:
        optimizer.load_state_dict(saved[OPT_KEY])
    seen = begin(model, optimizer, wish)
    by_hand(model, optimizer, wish)
    state = {MODEL_KEY: model.state_dict(), OPT_KEY: optimizer.state_dict()}
    checkpointer.save_checkpoint(state, epoch=0, intermediate_checkpoint=True)
    return Trained(model, optimizer, optimizer, seen)


def deepspeed(make: Callable[..., Any], wish: Wish, stage: int = 1) -> Trained:
    import deepspeed as package

    package.init_distributed("gloo", verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": ROWS, "zero_optimization": {"stage": stage}, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    model = net()
    optimizer = make(model)
    engine, *_ = package.initialize(model=model, optimizer=optimizer, config=config)
    if wish.resumes:
        engine.load_checkpoint(str(wish.path))
    seen = begin(model, optimizer, wish)
    for _ in range(wish.epochs):
        for inputs, targets in divided():
            engine.backward((engine(inputs) - targets).square().mean())
            engine.step()
    engine.save_checkpoint(str(wish.path))
    return Trained(model, optimizer, optimizer, seen)


def ray(make: Callable[..., Any], wish: Wish) -> Trained:
    import ray as package

    @package.remote
    def train(pair: Any, wish: Wish) -> Any:
        model, optimizer = pair
        seen = begin(model, optimizer, wish)
        by_hand(model, optimizer, wish)
        return model, optimizer, seen

    if not package.is_initialized():
        here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
        package.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=here)
    if wish.resumes:
        pair = torch.load(wish.path / "pair.pt", weights_only=False)
    else:
        model = net()
        pair = model, make(model.parameters())
    model, optimizer, seen = package.get(train.remote(pair, wish))
    torch.save((model, optimizer), wish.path / "pair.pt")
    return Trained(model, optimizer, optimizer, seen)
