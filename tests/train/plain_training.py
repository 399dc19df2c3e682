"""Training of several networks a step in plain PyTorch on one process: what DeepSpeed's runs are compared with.

It shares no code with `llmnas.train` but the choice of networks and the learning rate, which tests of their own check.
"""

import copy
import functools
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from plain_optimizers import Masked, Muon, role
from train_script import SEQUENCES, SPACE
from two_process_cases import sampler_of, settings_of

from llmnas.supernet import Transformer
from llmnas.train.schedule import learning_rate

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def optimizer_of(model, decay_all=False):
    """AdamW, unfused, whose matrices alone decay."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[decay_all or role(name) in MATRICES].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 1.0}, {"params": groups[False], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=False,
    )


@functools.cache
def reference(kind, decay_all=False, clip=True, skip_unused=False, skipped=None, **changes):
    """(final weights, losses) on the full batch; the options are mistakes that the comparison must see.

    `changes`: of the settings `update`, `optimizer` and `scope` of Muon.
    """
    scope = changes.pop("scope", "slice")
    settings = settings_of(kind, **changes)
    model = Transformer(SPACE, seed=0)
    optimizer = optimizer_of(model, decay_all)
    masked = Masked(model, lambda name: role(name) in MATRICES)
    muon = Muon(model, scope)
    losses = []
    for step in range(settings.steps):
        optimizer.zero_grad()
        losses.append(backward(model, sampler_of(settings).networks(step), settings, step))
        if step == skipped:
            continue
        for parameter in model.parameters():
            if parameter.grad is None and not skip_unused:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1 if clip else torch.inf)
        assert norm > 0.1, "every step must be clipped, or nothing is tested"
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        networks, rate = sampler_of(settings).networks(step), learning_rate(step, settings)
        if settings.optimizer == "muon":
            muon.step(networks, rate, 1.0)
        if settings.update == "active":
            by_muon = muon.moments if settings.optimizer == "muon" else {}
            masked.step(networks, rate, 1.0, only=[name for name in masked.moments if name not in by_muon])
        else:
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, losses


def backward(model, networks, settings, step):
    """Gradients of the mean loss of the networks; their mean cross entropy."""
    total, teacher = 0.0, None
    for i, arch in enumerate(networks):
        batch_number = step if settings.shared_batch else step * len(networks) + i
        batch = torch.from_numpy(SEQUENCES.batch(batch_number * 4, 4))
        log_probs = model(batch[:, :-1], arch).log_softmax(-1).flatten(0, 1)
        loss = cross_entropy = F.nll_loss(log_probs, batch[:, 1:].flatten())
        if settings.distill.weight and teacher is None:
            teacher = log_probs.detach()
        elif settings.distill.weight:
            loss = 0.5 * cross_entropy + 0.5 * F.kl_div(log_probs, teacher, log_target=True, reduction="batchmean")
        (loss / len(networks)).backward()
        total += cross_entropy.item()
    return total / len(networks)


@functools.cache
def reference_in_bf16(kind, stage):
    """Final weights of plain PyTorch in bf16 that rounds where the ZeRO stage does.

    fp32 masters start at the rounded weights. Each half of a batch gives gradients in bf16. Stage 1 adds those of all
    networks of a step in fp32 and averages the halves in bf16; stages 2 and 3 average the halves of one network in bf16
    and add the networks in fp32. Stage 3 has its own linear layer, which rounds otherwise. The loss is the model's own:
    tests of its own compare it with torch's.
    """
    settings = settings_of(kind)
    model = Transformer(SPACE, seed=0).bfloat16()
    masters = copy.deepcopy(model).float()
    pairs = list(zip(masters.parameters(), model.parameters(), strict=True))
    optimizer = optimizer_of(masters)
    linear = zero3_linear_wrap if stage == 3 else F.linear
    for step in range(settings.steps):
        networks = sampler_of(settings).networks(step)
        with patch.object(torch.nn.functional, "linear", linear):
            halves = torch.stack([halved_gradients(model, arch, i, settings, step) for i, arch in enumerate(networks)])
        added = halves.float().sum(0).bfloat16().sum(0) if stage == 1 else halves.sum(1).float().sum(0)
        for (master, _), gradient in zip(pairs, added.split([master.numel() for master, _ in pairs]), strict=True):
            master.grad = gradient.float().view_as(master)
        torch.nn.utils.clip_grad_norm_(masters.parameters(), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in pairs:
                parameter.copy_(master)
    return {name: parameter.detach().float() for name, parameter in model.named_parameters()}


def halved_gradients(model, arch, i, settings, step):
    """[halves, parameters] bf16: what each half of the batch adds to the mean gradient of the step."""
    networks = len(sampler_of(settings).networks(step))
    batch = torch.from_numpy(SEQUENCES.batch((step * networks + i) * 4, 4))
    found = []
    for half in batch.chunk(2):
        model.zero_grad()
        (model(half[:, :-1], arch, targets=half[:, 1:]).loss / networks).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad / 2 for p in model.parameters()]
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(found)


def update_error(weights, expected):
    """|w - w_expected| / |w_expected - w_0|, over all parameters together."""
    first = {name: parameter.detach() for name, parameter in Transformer(SPACE, seed=0).named_parameters()}
    assert weights.keys() == expected.keys() == first.keys()
    wrong = sum(float((weights[name].detach() - expected[name]).double().square().sum()) for name in first)
    update = sum(float((expected[name] - first[name]).double().square().sum()) for name in first)
    return (wrong / update) ** 0.5
