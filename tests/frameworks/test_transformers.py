"""Hugging Face's Trainer, TRL and accelerate, with and without the callback. `nox -s frameworks` installs what they need."""

from __future__ import annotations

import copy

import pytest
import torch

import steprule

transformers = pytest.importorskip("transformers")
from steprule.integrations.transformers import OptimizerCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = [{"input_ids": (torch.arange(8) * k) % 16, "labels": (torch.arange(8) * k) % 16} for k in range(1, 25)]
SIZES = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
QUIET = {
    "use_cpu": True, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": 4, "save_strategy": "no", "max_steps": 6,
    "logging_steps": 1, "seed": 0,
}  # fmt: skip


def model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def adamw(**settings):
    return lambda params: steprule.AdamW(params, lr=1e-2, **settings)


def made(path, make, callback=None, **settings):
    """A trainer with a callback of these settings, if any."""
    one = model()
    arguments = transformers.TrainingArguments(str(path), **{**QUIET, **settings})
    trainer = transformers.Trainer(
        one, arguments, train_dataset=DATA, eval_dataset=DATA[:8], optimizers=(make(one.parameters()), None)
    )
    if callback is not None:
        OptimizerCallback(**callback).add_to(trainer)
    return trainer


def inner(trainer):
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def saved(path):
    return list(transformers.LlamaForCausalLM.from_pretrained(path).parameters())


def same(one, other):
    return all(torch.equal(a.detach(), b.detach()) for a, b in zip(one, other, strict=True))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_evaluation_and_saving_use_averages(tmp_path):
    settings = {"max_grad_norm": 0}  # clipped in the pass, gradients are the same but for rounding
    trainer, plain = made(tmp_path, adamw(average=0.5), {}, **settings), made(tmp_path, adamw(), **settings)
    trainer.train()
    plain.train()
    assert losses(trainer) == losses(plain)
    trainer.save_model(str(tmp_path / "last"))
    averages = weights(trainer)
    assert not same(averages, weights(plain)) and same(averages, saved(tmp_path / "last"))
    loss = trainer.evaluate()["eval_loss"]
    assert same(averages, weights(trainer)) and loss != plain.evaluate()["eval_loss"]
    inner(trainer).train()
    assert same(weights(trainer), weights(plain))


@pytest.mark.parametrize("is_added", [True, False], ids=["added", "given"])
def test_counts_of_clipped_steps_go_on(tmp_path, is_added):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_grad_norm": 1e-3}

    def trainer():
        if is_added:
            return made(tmp_path, adamw(), {}, **settings)
        one, arguments = model(), transformers.TrainingArguments(str(tmp_path), **{**QUIET, **settings})
        optimizer = steprule.AdamW(one.parameters(), lr=1e-2)
        callbacks = [OptimizerCallback()]
        return transformers.Trainer(
            one, arguments, train_dataset=DATA, optimizers=(optimizer, None), callbacks=callbacks
        )

    first, second = trainer(), trainer()
    first.train()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert inner(first).clipped_steps == inner(second).clipped_steps == 6
    assert first.args.max_grad_norm == second.args.max_grad_norm == 1e-3


@pytest.mark.parametrize("evaluates", [True, False], ids=["after an evaluation", "without"])
@pytest.mark.parametrize(
    "make",
    [adamw(average=0.5, clip=1.0), lambda params: steprule.ScheduleFreeAdamW(params, lr=1e-2)],
    ids=["average", "Schedule-Free"],
)
def test_checkpoints_have_averages_and_training_goes_on_from_the_weights(tmp_path, make, evaluates):
    settings = {
        "save_strategy": "steps",
        "save_steps": 3,
        **({"eval_strategy": "steps", "eval_steps": 3} if evaluates else {}),
    }
    trainer = made(tmp_path, make, {}, **settings)
    trainer.train()
    path = tmp_path / "checkpoint-3"
    state = torch.load(path / "optimizer.pt", weights_only=True)
    assert [group["train_mode"] for group in state["param_groups"]] == [False]
    resumed = made(tmp_path, make, {}, **settings)
    resumed.train(resume_from_checkpoint=str(path))
    assert losses(resumed)[-3:] == losses(trainer)[-3:]
    assert same(weights(trainer), weights(resumed))
    assert same(saved(tmp_path / "checkpoint-6"), weights(trainer))


def test_the_best_model_stays_in_the_model(tmp_path):
    """Although `evaluate()` after training calls eval() again, and the last step was after the best evaluation."""
    settings = {
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 7,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True, "save_total_limit": 9,
    }  # fmt: skip
    trainer = made(tmp_path, adamw(average=0.5), {}, **settings)
    trainer.train()
    best = saved(trainer.state.best_model_checkpoint)
    assert trainer.state.best_model_checkpoint.endswith("-2") and same(best, weights(trainer))
    trainer.evaluate()
    trainer.save_model(str(tmp_path / "last"))
    assert same(best, weights(trainer)) and same(best, saved(tmp_path / "last"))


def test_a_second_training_goes_on(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    trainer = made(tmp_path, adamw(average=0.5), {}, **settings)
    trainer.train()
    before = weights(trainer)
    trainer.evaluate()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(before, weights(trainer))


@pytest.mark.parametrize("clip", [None, 0.2])
def test_clipping_is_taken_over(tmp_path, clip):
    settings = {"max_grad_norm": 0.3 if clip is None else 1.0}
    trainer = made(tmp_path, adamw(clip=clip), {}, **settings)
    plain = made(tmp_path, lambda params: torch.optim.AdamW(params, lr=1e-2), max_grad_norm=clip or 0.3)
    trainer.train()
    plain.train()
    for mine, its in zip(weights(trainer), weights(plain), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, its in zip(logged, [e for e in plain.state.log_history if "loss" in e], strict=True):
        assert entry["optimizer/grad_norm"] == pytest.approx(its["grad_norm"], rel=1e-4)
    assert [entry["optimizer/clipped_steps"] for entry in logged] == [1, 2, 3, 4, 5, 6]
    assert trainer.args.max_grad_norm == settings["max_grad_norm"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradients_are_released(tmp_path, steps):
    """Also in an epoch whose last step has fewer micro-batches than the others."""
    settings = {"gradient_accumulation_steps": steps, "max_steps": -1, "num_train_epochs": 2, "max_grad_norm": 0}
    trainer, plain = made(tmp_path, adamw(), {"release": True}, **settings), made(tmp_path, adamw(), **settings)
    trainer.train()
    plain.train()
    assert inner(trainer)._core.release is not None and same(weights(trainer), weights(plain))
    assert not any("grad_norm" in entry for entry in trainer.state.log_history)


def test_released_gradients_are_clipped_by_the_optimizer(tmp_path):
    trainer = made(tmp_path, adamw(), {"release": True}, max_grad_norm=0.3)
    trainer.train()
    assert inner(trainer).clipped_steps == 6
    assert all(entry["grad_norm"] > 0.3 for entry in trainer.state.log_history if "loss" in entry)


def test_what_release_cannot_do_is_refused_in_the_trainers_words(tmp_path):
    trainer = made(tmp_path, adamw())
    inner(trainer).release_gradients(trainer.model)
    with pytest.raises(RuntimeError, match=r"transformers' Trainer.*OptimizerCallback\(release=True\)"):
        trainer.train()
    trainer = made(tmp_path, adamw(), gradient_accumulation_steps=2)
    inner(trainer).release_gradients(trainer.model)
    with pytest.raises(RuntimeError, match=r"OptimizerCallback\(release=True\) of .*transformers accumulates"):
        trainer.train()
    with pytest.raises(ValueError, match='use nonfinite="skip"'):
        made(tmp_path, adamw(nonfinite="zero"), {}).train()


def test_the_log_has_telemetry_once(tmp_path):
    trainer = made(tmp_path, adamw(telemetry=3, nonfinite="skip"), {})
    seen = []

    class Reporter(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs)

    trainer.callback_handler.callbacks.insert(2, Reporter())
    trainer.train()
    told = [entry["step"] for entry in trainer.state.log_history if "optimizer/update_norm" in entry]
    assert told == [3, 6] and sum("optimizer/update_norm" in logs for logs in seen) == 2
    assert all(entry["optimizer/skipped_steps"] == 0 for entry in trainer.state.log_history if "loss" in entry)


def test_a_callback_may_be_given_as_any_other(tmp_path):
    one = model()
    arguments = transformers.TrainingArguments(str(tmp_path), **QUIET)
    callback = OptimizerCallback(release=True)
    optimizer = steprule.AdamW(one.parameters(), lr=1e-2, average=0.5)
    trainer = transformers.Trainer(
        one, arguments, train_dataset=DATA, optimizers=(optimizer, None), callbacks=[callback]
    )
    trainer.train()
    assert optimizer._core.modes.is_swapped and optimizer.clip.max_norm == 1.0


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_an_optimizer_by_name(tmp_path, name):
    """As its page says: with the groups that create_optimizer makes."""
    one = model()
    chosen = (lambda: steprule.create_optimizer), {"name": name, "lr": 1e-3, "weight_decay": 0.1}
    arguments = transformers.TrainingArguments(str(tmp_path), **QUIET)
    trainer = transformers.Trainer(one, arguments, train_dataset=DATA, optimizer_cls_and_kwargs=chosen)
    trainer.train()
    assert sorted(group["weight_decay"] for group in inner(trainer).param_groups) == [0.0, 0.1]


def test_trl_takes_it(tmp_path):
    trl = pytest.importorskip("trl")
    import datasets

    one = model()
    data = datasets.Dataset.from_list([{name: ids.tolist() for name, ids in row.items()} for row in DATA])
    arguments = trl.SFTConfig(
        str(tmp_path), **QUIET, max_length=8, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False
    )
    optimizer = steprule.AdamW(one.parameters(), lr=1e-2, average=0.5)
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), pad_token="0", eos_token="1")
    trainer = trl.SFTTrainer(one, arguments, train_dataset=data, optimizers=(optimizer, None), processing_class=words)
    OptimizerCallback().add_to(trainer)
    trainer.train()
    assert optimizer._core.modes.is_swapped and optimizer.clip.max_norm == 1.0


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({str(n): n for n in range(16)}, unk_token="2"))


# accelerate


def accelerated(make, steps=1):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps)
    torch.manual_seed(0)
    one = torch.nn.Linear(4, 2)
    prepared, optimizer = accelerator.prepare(one, make(one.parameters()))
    return accelerator, prepared, optimizer


def run(accelerator, one, optimizer, steps=6, begin=0):
    for k in range(begin, begin + steps):
        with accelerator.accumulate(one):
            accelerator.backward((one(torch.full((3, 4), 1.0 + k)) - 1).square().sum())
            optimizer.step()
            optimizer.zero_grad()


def test_accelerate_calls_the_modes_and_saves_averages(tmp_path):
    make = adamw(average=0.5, clip=0.1)
    accelerator, one, optimizer = accelerated(make)
    run(accelerator, one, optimizer)
    before = copy.deepcopy(one.state_dict())
    optimizer.eval()
    assert not torch.equal(one.weight, before["weight"])
    accelerator.save_state(str(tmp_path), safe_serialization=False)
    optimizer.train()
    assert torch.equal(one.weight, before["weight"])
    run(accelerator, one, optimizer, begin=6)
    again, other, its = accelerated(make)
    again.load_state(str(tmp_path))
    assert not torch.equal(other.weight, before["weight"])
    its.train()
    assert torch.equal(other.weight, before["weight"])
    run(again, other, its, begin=6)
    assert torch.equal(one.weight, other.weight) and its.optimizer.clipped_steps == 12


def test_accelerate_with_released_gradients():
    accelerator, one, optimizer = accelerated(adamw())
    optimizer.optimizer.release_gradients(one)
    accelerator.backward(one(torch.ones(3, 4)).sum())
    with pytest.raises(RuntimeError, match=r"do not call accelerator.clip_grad_norm_"):
        accelerator.clip_grad_norm_(one.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def test_accelerate_accumulates_released_gradients():
    weights = []
    for releases in (True, False):
        accelerator, one, optimizer = accelerated(adamw(), steps=2)
        if releases:
            optimizer.optimizer.release_gradients(one)
        for k in range(4):
            with accelerator.accumulate(one):
                with optimizer.optimizer.accumulate() if not accelerator.sync_gradients else torch.enable_grad():
                    accelerator.backward((one(torch.full((3, 4), 1.0 + k)) - 1).square().sum())
                optimizer.step()
                optimizer.zero_grad()
        weights.append(one.weight.detach().clone())
    assert torch.equal(*weights)
