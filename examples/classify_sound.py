"""Spoken digits: from a waveform to an answer, for a speaker whom no network has heard.

    python examples/classify_sound.py --data spoken_digits.zip

Recordings of three speakers train two networks in a minute or two. Two other speakers calibrate, and their recordings
are groups: what holds for a speaker says little about the next, and the certificate has to count speakers. The last
speaker reports, and the drift test may notice that nobody like that was heard before. Then digits arrive as one stream,
are cut into windows, and each window is answered.

The data is the Free Spoken Digit Dataset, 3,000 recordings of 8 kHz (CC BY-SA 4.0):
https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip
"""

import argparse
import os
import re
import statistics
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import dynamic
from dynamic.data import LogMel, SoundPreprocess, load_sound, windows
from dynamic.models import SpectrogramCNN
from dynamic.progress import track

TRAIN, CALIBRATE, REPORT = ("george", "jackson", "lucas"), ("nicolas", "theo"), ("yweweler",)
FEATURES = LogMel(mels=40, fft=256, hop=128, floor=1e-8)
PREPROCESS = SoundPreprocess(8000, 6400, FEATURES, shorter="pad", longer="cut")  # 0.8 s, on the device too
Samples = NDArray[Any]


class Recordings:
    """The recordings of some speakers, as they come from the files."""

    def __init__(self, archive: Path, speakers: tuple[str, ...]) -> None:
        self.samples: list[Samples] = []
        self.speaker: list[str] = []
        labels = []
        with zipfile.ZipFile(archive) as files:
            for name in sorted(files.namelist()):
                match = re.search(r"(\d)_(\w+)_\d+\.wav$", name)
                if match and match[2] in speakers:
                    self.samples.append(load_sound(files.read(name)).samples)
                    self.speaker.append(match[2])
                    labels.append(int(match[1]))
        self.label = np.array(labels)

    def loader(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of features and labels."""
        x, y = torch.from_numpy(PREPROCESS(self.samples)), torch.from_numpy(self.label)
        return list(zip(x.split(100), y.split(100), strict=True))


def at_speed(samples: Samples, factor: float) -> Samples:
    """The recording, faster and higher by a factor, as another speaker might sound."""
    faster: Samples = np.interp(np.arange(0, len(samples) - 1, factor), np.arange(len(samples)), samples / 32768)
    return faster


def trained(width: int, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    """A network of some width: AdamW, one cycle, features moved in time and pitch and coloured by noise."""
    torch.manual_seed(0)
    network = SpectrogramCNN(10, FEATURES.mels, width=width).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in track(range(steps), f"training width {width}"):
        batch = torch.randint(len(x), (64,))
        moved = torch.roll(x[batch], torch.randint(-3, 4, (2,)).tolist(), (2, 3))
        optimizer.zero_grad()
        coloured = moved + 0.5 * torch.randn(len(batch), 1, FEATURES.mels, 1)
        F.cross_entropy(network(coloured), y[batch], label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def report(bundle: dynamic.Bundle, recordings: Recordings, budget: dynamic.Budget) -> tuple[float, float]:
    """Accuracy and mean milliseconds, features included, one recording at a time."""
    order = np.random.default_rng(0).permutation(len(recordings.label))  # sorted digits would be drift
    with bundle.runtime(budget) as run:
        results = [run(recordings.samples[i]) for i in order]
        stages = run.stats().stage_shares
    accuracy = np.mean([r.label == label for r, label in zip(results, recordings.label[order], strict=True)])
    mean_ms = statistics.fmean(r.latency_ms for r in results)
    print(f"max_drop {budget.max_drop}: accuracy {accuracy:.3f}, {mean_ms:.2f} ms, exits {np.round(stages, 2)}")
    print(f"    {results[-1].decision.reason}")
    return float(accuracy), mean_ms


def draw(stream: Samples, answers: list[tuple[float, str, float]], points: dict[str, tuple[float, float]]) -> None:
    """The stream with an answer at each window, and accuracy against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), layout="constrained")
    seconds = len(stream) / PREPROCESS.rate_hz
    features = FEATURES(stream / 32768, PREPROCESS.rate_hz)
    above.imshow(features, origin="lower", aspect="auto", extent=(0, seconds, 0, FEATURES.mels))
    for start, name, probability in answers:
        above.text(start + 0.4, 36, name, color="white", ha="center", alpha=max(0.15, probability) ** 2)
    above.set(xlabel="seconds", ylabel="mel filter", title=f"a stream of digits by {REPORT[0]}, and what windows say")
    for name, (accuracy, mean_ms) in points.items():
        below.plot(mean_ms, 100 * accuracy, "o", label=name)
    below.set(xlabel="mean latency, features included (ms)", ylabel="accuracy, unseen speaker (%)")
    below.margins(0.3)
    below.grid(alpha=0.3)
    below.legend()
    figure.savefig("out/sound.png", dpi=130)


def main() -> None:
    """The whole way."""
    folder = Path(os.environ.get("DYNAMIC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=folder / "spoken_digits.zip", help="zip of wav files")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each network")
    options = parser.parse_args()
    if not options.data.is_file():
        sys.exit(f"{options.data} is not there. Download the zip named in --help and give it with --data")
    heard = Recordings(options.data, TRAIN)
    print(f"features of {len(heard.samples)} recordings at five speeds")
    varied = [at_speed(samples, factor) for factor in (0.8, 0.9, 1.0, 1.1, 1.2) for samples in heard.samples]
    x, y = torch.from_numpy(PREPROCESS(varied)), torch.from_numpy(np.tile(heard.label, 5))
    networks = [trained(width, x, y, options.steps) for width in (10, 24)]

    held_out = Recordings(options.data, CALIBRATE)
    bundle = dynamic.build(
        dynamic.Cascade(networks, names=("small", "large")),
        held_out.loader(),
        groups=held_out.speaker,
        search_share=0.5,  # one speaker chooses, one certifies
        max_drops=(0.005, 0.01, 0.02),
        preprocess=PREPROCESS,
        classes=[str(digit) for digit in range(10)],
    )
    print(bundle.save("out/sound").profile(batch=(1,)))

    bundle, unseen = dynamic.load("out/sound"), Recordings(options.data, REPORT)
    points = {}
    for drop in (0.0, 0.03, 0.06, 0.1):
        points[f"max_drop {drop:g}"] = report(bundle, unseen, dynamic.Budget(max_drop=drop, on_drift="report"))
    pause = np.zeros(2400, np.int16)
    stream = np.concatenate([part for digit in range(10) for part in (unseen.samples[50 * digit], pause)])
    answers = []
    with bundle.runtime(dynamic.Budget(max_drop=0.1)) as run:
        for number, window in enumerate(windows(stream, PREPROCESS.samples, hop=2000)):
            answer = run(window)
            answers.append((number * 2000 / PREPROCESS.rate_hz, str(answer.name), float(answer.probability)))
    draw(stream, answers, points)
    print("picture: out/sound.png, bundle: out/sound")


if __name__ == "__main__":
    main()
