"""What a training run did, as numbers and as text."""

from dataclasses import dataclass

from dynamic.policies.certification.floor import Level


@dataclass(frozen=True)
class FitReport:
    """What training did. `loss` and `accuracy` `[S]` of the trained `exits` are means over the last epoch, on
    training data, while the weights moved: no estimate of accuracy on new data. `history_loss` and
    `history_accuracy` are those of each epoch `[epochs, S]`. `resumed` epochs came from the checkpoint.
    `features_mb` is 0 where none were kept. `held_out`: how often each exit of the network is right on `eval_loader`,
    beside chance; empty without one.
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
            head += f"; features {self.features_mb:.1f} MB {'on disk' if self.features_on_disk else 'in memory'}"
        rows = zip(self.exits, self.loss, self.accuracy, strict=True)
        known = {level.stage: level for level in self.held_out}
        lines = [
            f"  {name}: loss {x:.4f}, {_held_out(known.pop(name, None))}training accuracy {a:.4f}"
            for name, x, a in rows
        ]
        lines += [f"  {name}: not trained, {_held_out(level).removesuffix(', ')}" for name, level in known.items()]
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
