"""Options of commands that read data, with their help."""

from collections.abc import Sequence
from typing import Annotated

import typer

from dynamic.policies.errors import SettingError

Split = Annotated[
    str | None,
    typer.Option(help="The folder above the class folders that is held out. [the only one, or val, or test]"),
]
Root = Annotated[str | None, typer.Option(help="Folder where a data set of torchvision lies.")]
Mean = Annotated[str | None, typer.Option(help="To normalize by, such as 0.485,0.456,0.406. [the network's]")]
Std = Annotated[str | None, typer.Option(help="To normalize by, such as 0.229,0.224,0.225. [the network's]")]
Resize = Annotated[str | None, typer.Option(help="Resize to a shorter side, or HEIGHTxWIDTH. [the network's]")]
Crop = Annotated[str | None, typer.Option(help="Cut a square, or HEIGHTxWIDTH, out of the middle. [the network's]")]
PreprocessName = Annotated[
    str | None, typer.Option("--preprocess", help="file.py:name of a preprocessing, instead of these four.")
]
TokenizerFile = Annotated[
    str | None, typer.Option("--tokenizer", help="tokenizer.json of texts. [that of a network hf:folder]")
]
TrainData = Annotated[str | None, typer.Option(help="Data that train. [a split called train, or half of the data]")]
TrainSplit = Annotated[str | None, typer.Option(help="The split that trains.")]
Limit = Annotated[int | None, typer.Option(help="Hold out so many of the examples, drawn at random.")]
MaxTokens = Annotated[int | None, typer.Option(help="The longest text, in tokens. [as long as the network takes]")]


def named_sources(
    sources: Sequence[str] | None, networks: Sequence[str] | None, data: str | None
) -> tuple[list[str], str]:
    """Names of networks and data. Those that stand in a row count more than --network, --data and a file of settings.

    Args:
        sources: Networks, then the data. The networks or the data alone, where the other is named in another way.
        networks: Those behind --network, or of the file.
        data: That behind --data, or of the file.

    Returns:
        The networks and the data.

    Raises:
        SettingError: One of them is missing.
    """
    rest, chosen = list(sources or ()), list(networks or ())
    if rest and (data is None or chosen):
        data = rest.pop()
    chosen = rest or chosen
    if data is None:
        raise SettingError("no data were named: give networks, then the data, NETWORK photos/, or --data photos/")
    if not chosen:
        raise SettingError(
            f"no network was named beside the data {data}: give networks first, torchvision:resnet18 {data}"
        )
    return chosen, data
