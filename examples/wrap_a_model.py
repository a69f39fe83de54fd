"""Exits on a network of your own: wrap, fit the heads, build, run.

    python examples/wrap_a_model.py

The network is an ordinary module that knows nothing of exits, trained here on handwritten digits in a few seconds.
"""

import digits_bundle
import torch
from torch import nn
from torch.nn import functional as F

import dynamic


class Mine(nn.Module):
    """Any classifier will do: this one has residual blocks and an attention layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(6))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[B, 10]` of images `[B, 1, 8, 8]`."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + F.relu(block(x))
        tokens = x.flatten(2).transpose(1, 2)  # [B, 64, 32]
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        logits: torch.Tensor = self.classifier(tokens.mean(1))
        return logits


def main() -> None:
    """The whole way."""
    torch.manual_seed(0)
    train, calibrate, report = digits_bundle.split()
    preprocess = dynamic.Preprocess.of()  # uint8 images to 0..1, the same here and on the device
    sets = [(torch.from_numpy(preprocess(s.images)), torch.from_numpy(s.labels)) for s in (train, calibrate)]
    train_loader, held_out_loader = (list(zip(x.split(64), y.split(64), strict=True)) for x, y in sets)

    network = Mine()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(12):
        for x, y in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

    net = dynamic.wrap(network.eval(), sets[0][0][:2], exits=3)  # or exits=["blocks.1", "blocks.3"], or [0.3, 0.6]
    print(f"traced by torch.{net.tracer}; {', '.join(f'{e.name} at {e.share:.0%} of compute' for e in net.exits)}")
    print(dynamic.fit(net, train_loader, mode="heads"))

    bundle = dynamic.build(net, held_out_loader, preprocess=preprocess, classes=train.classes)
    bundle = bundle.save("out/mine").profile(batch=(1,))

    # on a device this is all: pip install dynamic-inference, copy out/mine, no torch
    bundle = dynamic.load("out/mine")
    with bundle.runtime(dynamic.Budget(max_drop=0.02)) as run:
        results = [run(image) for image in report.images]
    right = sum(int(result.label == label) for result, label in zip(results, report.labels, strict=True))
    print(f"\n{right / len(results):.1%} right; {results[-1].decision.reason}")
    leaving = zip([*(e.name for e in net.exits), "the end"], run.stats().stage_shares, strict=True)
    print(", ".join(f"{share:.0%} leave at {name}" for name, share in leaving))


if __name__ == "__main__":
    main()
