"""Training of several networks a step in plain PyTorch on one process: what DeepSpeed's runs are compared with.

It shares no code with `llmnas.train` but the choice of networks and the learning rate, which tests of their own check.
"""

import copy
import functools

import torch
import torch.nn.functional as F  # noqa: N812
from train_script import SEQUENCES, SPACE
from two_process_cases import sampler_of, settings_of

from llmnas.supernet import Transformer
from llmnas.train.schedule import learning_rate

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def optimizer_of(model, decay_all=False):
    """AdamW, unfused, whose matrices alone decay."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[decay_all or name.split(".")[-1] in MATRICES].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 1.0}, {"params": groups[False], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=False,
    )


@functools.cache
def reference(kind, decay_all=False, clip=True, skip_unused=False, skipped=None):
    """(final weights, losses) on the full batch; the options are mistakes that the comparison must see."""
    settings = settings_of(kind)
    model = Transformer(SPACE, seed=0)
    optimizer = optimizer_of(model, decay_all)
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
def reference_in_bf16(kind, pieces):
    """Final weights of plain PyTorch in bf16 with fp32 masters, fp32 sums, and the batch in so many pieces."""
    settings = settings_of(kind)
    masters = Transformer(SPACE, seed=0)
    model = copy.deepcopy(masters).bfloat16()
    for master in masters.parameters():
        master.grad = torch.zeros_like(master)
    optimizer = optimizer_of(masters)
    for step in range(settings.steps):
        optimizer.zero_grad(set_to_none=False)
        networks = sampler_of(settings).networks(step)
        for i, arch in enumerate(networks):
            batch = torch.from_numpy(SEQUENCES.batch((step * len(networks) + i) * 4, 4))
            for piece in batch.chunk(pieces):
                model.zero_grad()
                loss = F.cross_entropy(model(piece[:, :-1], arch).float().flatten(0, 1), piece[:, 1:].flatten())
                (loss / len(networks)).backward()
                for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                    master.grad += 0 if parameter.grad is None else parameter.grad.float() / pieces
        torch.nn.utils.clip_grad_norm_(masters.parameters(), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters.parameters(), model.parameters(), strict=True):
                parameter.copy_(master)
    return {name: parameter.detach().float() for name, parameter in model.named_parameters()}


def update_error(weights, expected):
    """|w - w_expected| / |w_expected - w_0|, over all parameters together."""
    first = {name: parameter.detach() for name, parameter in Transformer(SPACE, seed=0).named_parameters()}
    assert weights.keys() == expected.keys() == first.keys()
    wrong = sum(float((weights[name] - expected[name]).double().square().sum()) for name in first)
    update = sum(float((expected[name] - first[name]).double().square().sum()) for name in first)
    return (wrong / update) ** 0.5
