"""Trains a network of two exits jointly, as one of the processes of `torchrun`, or alone. It writes the weights.

    python joint_in_processes.py FOLDER BATCHES

`FOLDER/BATCHES.pt` has the batches of each process: a list for each. Alone it takes the first list. Where the name
begins with "plain" or "dropout", the network has no exit and no batch norm. The masks of "dropout"
are saved. Nothing is in bf16, whose rounding would be seen.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

import dynamic
from dynamic.offline.networks.used_data import hashes_of


class Net(nn.Module):
    """A network with a batch norm, or without one. The heads that `wrap` adds have one anyway."""

    def __init__(self, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.dropout, self.masks = nn.Dropout(dropout), list[torch.Tensor]()
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.second(self.first(x)))
        return y

    def keep_masks(self) -> None:
        """From now on a mask of the dropout is kept for each step of training."""
        self.last.register_forward_pre_hook(self._dropped)

    def _dropped(self, module: nn.Module, values: tuple[torch.Tensor]) -> torch.Tensor:
        mask = self.dropout(torch.ones_like(values[0]))
        if self.training:
            self.masks.append(mask.detach())
        return values[0] * mask


def main() -> None:
    """Train, and save what came out."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    rank, count = 0, 1
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
        rank, count = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(rank)  # other weights in each process: those of the first count
    batches = torch.load(folder / f"{name}.pt", weights_only=True)
    plain = Net(norm=False, dropout=0.5 if name.startswith("dropout") else 0.0)
    has_exits = not name.startswith(("plain", "dropout"))
    net = dynamic.wrap(Net(), batches[0][0][0][:2], exits=1) if has_exits else plain
    if name.startswith("dropout"):
        plain.keep_masks()
    training = dynamic.TrainingConfig(optimizer="sgd", autocast=False)
    report = dynamic.fit(net, batches[rank], mode="joint", epochs=3, lr=0.05, training=training, seed=5, progress=False)
    used = sorted(hashes_of(net))
    saved = {"state": net.state_dict(), "loss": report.history_loss, "accuracy": report.history_accuracy, "used": used}
    torch.save(saved | {"masks": plain.masks}, folder / f"{name}-{rank}-of-{count}.pt")
    if count > 1:
        distributed.barrier()  # a process that leaves earlier may end by SIGABRT, in threads of gloo
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
