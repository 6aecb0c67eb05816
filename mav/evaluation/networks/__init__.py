"""The networks of the published video metrics, as torch modules that load the published weights."""

from torch import nn


def fold(network: nn.Module) -> nn.Module:
    """Merges every batch norm `bn` into its convolution `conv` or `conv3d`, up to rounding; for evaluation only."""
    for unit in network.eval().modules():
        if isinstance(norm := getattr(unit, "bn", None), (nn.BatchNorm2d, nn.BatchNorm3d)):
            name = "conv" if hasattr(unit, "conv") else "conv3d"
            setattr(unit, name, nn.utils.fuse_conv_bn_eval(getattr(unit, name), norm))
            unit.bn = nn.Identity()
    return network
