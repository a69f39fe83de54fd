"""Ready-made networks, and `compress`, which makes smaller networks of yours. It needs the extra `build`."""

import importlib

from dynamic.extras import with_remedy as _with_remedy

try:
    from dynamic.models.bag_of_tokens import BagOfTokens as BagOfTokens
    from dynamic.models.msdnet import MSDNet as MSDNet
    from dynamic.models.msdnet import MSDNetShape as MSDNetShape
    from dynamic.models.msdnet import msdnet_anytime as msdnet_anytime
    from dynamic.models.msdnet import msdnet_budgeted as msdnet_budgeted
    from dynamic.models.resnet import CifarResNet as CifarResNet
    from dynamic.models.resnet import resnet20 as resnet20
    from dynamic.models.resnet import resnet32 as resnet32
    from dynamic.models.resnet import resnet44 as resnet44
    from dynamic.models.resnet import resnet56 as resnet56
    from dynamic.models.resnet import resnet110 as resnet110
    from dynamic.models.spectrogram_cnn import SpectrogramCNN as SpectrogramCNN
    from dynamic.models.tf_idf import TfIdf as TfIdf
    from dynamic.offline.networks.checkpoints import load_weights as load_weights
    from dynamic.offline.networks.checkpoints import save_weights as save_weights
    from dynamic.offline.tracing.exit_heads import BlockHead as BlockHead
    from dynamic.offline.tracing.exit_heads import ConvHead as ConvHead
except ModuleNotFoundError as error:
    raise _with_remedy(error, "dynamic.models") from error


def __getattr__(name: str) -> object:
    if name != "compress":  # loaded when first used: it is large
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise _with_remedy(error, f"dynamic.models.{name}") from error
