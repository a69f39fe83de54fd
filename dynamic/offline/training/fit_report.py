"""What a training run did, as numbers and as text."""

from dataclasses import dataclass

from dynamic.policies.certification.floor import Level


@dataclass(frozen=True)
class FitReport:
    """What a training run did.

    Losses and accuracies are means over an epoch, on training data, while the weights moved. They are no estimate of
    accuracy on new data.

    Args:
        mode: What was trained.
        exits: The exits that were trained.
        loss: Of each, in the last epoch `[S]`.
        accuracy: Of each, in the last epoch `[S]`.
        history_loss: Of each epoch `[epochs, S]`.
        history_accuracy: Of each epoch `[epochs, S]`.
        epochs: How many, those of the checkpoint included.
        resumed: How many came from the checkpoint.
        seconds: Duration of the call.
        device: Where it ran.
        bf16: Whether forward ran in bf16.
        channels_last: Whether images were in channels-last order.
        features_mb: Size of the cached features, 0 without a cache.
        features_on_disk: Whether they were in files.
        held_out: Accuracy of each exit of the network on `eval_loader`, beside chance. Empty without a loader.
    """

    mode: str
    exits: tuple[str, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    history_loss: tuple[tuple[float, ...], ...]
    history_accuracy: tuple[tuple[float, ...], ...]
    epochs: int
    resumed: int
    seconds: float
    device: str
    bf16: bool
    channels_last: bool
    features_mb: float
    features_on_disk: bool
    held_out: tuple[Level, ...] = ()

    def __str__(self) -> str:
        how = f"{self.device}, {'bf16' if self.bf16 else 'f32'}{', channels last' if self.channels_last else ''}"
        head = f"{self.mode}: {self.epochs} epochs ({self.resumed} resumed), {self.seconds:.1f} s on {how}"
        if self.features_mb:
            head += f", features {self.features_mb:.1f} MB {'on disk' if self.features_on_disk else 'in memory'}"
        rows = zip(self.exits, self.loss, self.accuracy, strict=True)
        levels = {level.stage: level for level in self.held_out}
        lines = [
            f"  {name}: loss {x:.4f}, {_held_out(levels.pop(name, None))}training accuracy {a:.4f}"
            for name, x, a in rows
        ]
        lines += [f"  {name}: not trained, {_held_out(level).removesuffix(', ')}" for name, level in levels.items()]
        if not self.held_out:
            lines.append(
                "  training accuracy is of data that exits learned from: give eval_loader for held-out accuracy"
            )
        return "\n".join([head, *lines])


def _held_out(level: Level | None) -> str:
    if level is None:
        return ""
    chance = f" (AT CHANCE, {level.chance:.4f})" if level.at_chance else ""
    return f"held-out accuracy {level.right:.4f} of {level.count}{chance}, "
