"""Training backbone and heads together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dynamic.offline.batches import named_tensors, run_on, taken_by
from dynamic.offline.networks.checkpoints import Checkpoint, digest, signature
from dynamic.offline.networks.feature_cache import check_logits, checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.row_independence import Singles, check_rows
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.offline.training.losses import ExitLoss, GradientBalance
from dynamic.offline.training.parallel.shared_norms import shared_norms
from dynamic.offline.training.settings import TrainingRun
from dynamic.offline.training.teacher import answer_of, check_apart, check_teacher
from dynamic.offline.training.training_loop import History, Task, train
from dynamic.policies.errors import InputError, SettingError, WrapError
from dynamic.progress import size_of


def fit_all(run: TrainingRun, loss: ExitLoss, teacher: nn.Module | None) -> History:
    """Train everything in the network that is not frozen.

    Args:
        run: Network, data and settings.
        loss: Of the exits.
        teacher: Another network, on the device already.

    Returns:
        Loss and accuracy of each epoch.

    Raises:
        SettingError: A batch size was given, which the loader sets, or the loss is not finite.
        InputError: Data or teacher do not fit.
        WrapError: Every parameter is frozen.
    """
    network, loader, settings, acceleration = run.network, run.loader, run.settings, run.acceleration
    if settings.batch_size is not None:
        raise SettingError(f"batch_size={settings.batch_size} is for mode='heads'. The loader sets it here")
    if isinstance(loader, Iterator):
        raise InputError("the loader is an iterator, used up once read. Give a DataLoader or a list of batches")
    if not any(p.requires_grad for p in network.parameters()):
        raise WrapError("every parameter is frozen (requires_grad=False). Set requires_grad_(True) on some")
    stages = network.exit_stages
    classes = 0
    singles = Singles([network])
    names: list[str] = []
    theirs: dict[str, int] = {}  # the inputs of the teacher, and which of the network's each is
    if teacher is not None:
        check_apart(teacher, [network])

    def batches() -> Iterator[tuple[list[Tensor], Tensor]]:
        for inputs, labels in run.used_batches.watch(checked_batches(loader, classes or None)):
            named = named_tensors(network, inputs)
            names[:] = named
            if teacher is not None:
                taken = list(named_tensors(teacher, inputs))
                by_name = isinstance(inputs, Mapping)
                theirs.clear()
                theirs.update({name: names.index(name) if by_name else i for i, name in enumerate(taken)})
            tensors = [acceleration.place(t) for t in named.values()]
            alone = run.processes.count == 1  # else a batch norm sees the rows of others too
            if alone and network.training and not singles.trains(len(labels), partial(forward, tensors)):
                continue
            yield tensors, torch.from_numpy(labels).to(acceleration.device)
        singles.close_epoch()

    def forward(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with acceleration.autocast():
            logits: Sequence[Tensor] = run_on(network, dict(zip(names, tensors, strict=True)))
        return logits

    def taught(tensors: Sequence[Tensor]) -> Tensor:
        assert teacher is not None
        with torch.no_grad(), acceleration.autocast():
            return answer_of(teacher, {name: tensors[i] for name, i in theirs.items()})

    with evaluating(network), seeded(settings.seed, -1, loader):
        tensors, labels = next(batches(), (None, None))
        if tensors is None or labels is None:
            raise InputError("the loader gave no batch. It is empty, or an iterator that was already used up")
        named = dict(zip(names, tensors, strict=True))
        with torch.no_grad(), taken_by(network, named):
            classes = check_logits(forward([t[:2] for t in tensors]), len(stages), labels.cpu().numpy())
            check_rows(network, named, values=False)
        with torch.no_grad():
            if teacher is not None:
                check_teacher(taught([t[:2] for t in tensors]), len(labels[:2]), classes)
    checkpoint = Checkpoint(
        run.checkpoint,
        {
            **vars(settings),
            **vars(loss),
            "rescale_gradients": run.training.rescale_gradients,
            "network": signature(network.state_dict()),
            "bf16": acceleration.bf16,
            "channels_last": acceleration.channels_last,
            **({} if teacher is None else {"teacher": digest(teacher.state_dict())}),
        },
    )
    run.used_batches.is_training = True
    network.train()
    task = Task(
        batches,
        forward,
        loss,
        network.state_dict(),
        int(run.processes.most(size_of(loader) or 0)) or None,
        GradientBalance(stages) if run.training.rescale_gradients else None,
        loader,
        None if teacher is None else taught,
        run.training.penalty,
        run.processes,
    )
    optimizer = settings.make_optimizer(network.parameters())
    report = run.callbacks.epochs([stage.name for stage in stages])
    try:
        with shared_norms(network, run.processes) as in_step:
            task = replace(task, in_step=in_step)
            return train(task, optimizer, settings.epochs, settings.seed, checkpoint, run.progress, report)
    finally:
        optimizer.zero_grad(set_to_none=True)
