"""Zero padding as the authors' code had it: fixed by the network's nominal image size, whatever the image."""

import math

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

NOMINAL_SIZES = {
    f"tf_efficientnet_b{number}": size for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
}
"""n of each EfficientNet (`efficientnet_params` of its authors' release); the kin use timm's default image size."""


class StaticSameConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow's SAME would pad an image of the nominal size.

    n = nominal size, k = kernel, s = stride: total = max((ceil(n / s) - 1) * s + k - n, 0) rows and columns of zeros,
    total // 2 of them at the top and left, the rest at the bottom and right. Every layer uses the image's n, not its
    own input's; this is what shrinks the grids.

    Source: efficientnet_pytorch 0.5.1, whose maps these equal to 1e-6 (B0, B1 and B4, even and odd sizes); its 0.7.1
    computes n layer by layer instead. B4 at 380 px has grids of 190, 95, 47, 23, 23, 11 and 11 cells, with dynamic
    padding 190, 95, 48, 24, 24, 12 and 12.
    """

    def __init__(self, conv: nn.Conv2d, nominal_size: int) -> None:
        """Take over the parameters of `conv`.

        Args:
            conv: the layer to replace; without padding of its own.
            nominal_size: n, pixels a side.
        """
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            0,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            device="meta",  # no memory and no random numbers for weights that are replaced at once
        )
        self.weight, self.bias = conv.weight, conv.bias
        height, width = (
            same_padding(nominal_size, (kernel - 1) * dilation + 1, stride)
            for kernel, stride, dilation in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        )
        self.zeros_around = (*width, *height)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, floor((H + total - k) / s) + 1, likewise for W)."""
        padded = functional.pad(features, self.zeros_around)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` cells under TensorFlow's SAME rule."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def use_static_padding(net: nn.Module, name: str) -> int:
    """Replace every run-time SAME convolution of a timm network by one padded for its nominal size.

    Convolutions of stride 1 need no replacement: both rules pad them by (k - 1) / 2 on each side.

    Args:
        net: changed in place; keeps its parameters and their names.
        name: its timm name, with or without a weights tag.

    Returns:
        The nominal size in pixels.

    Raises:
        ValueError: a network without SAME padding.
    """
    found = [path for path, module in net.named_modules() if isinstance(module, Conv2dSame)]
    if not found:
        raise ValueError(
            f"{name}: padding 'static' is for networks with TensorFlow's SAME padding (tf_efficientnet_b0 to b7 and "
            "kin); this one pads its convolutions by fixed amounts of its own. Use padding 'dynamic'."
        )
    nominal_size = NOMINAL_SIZES.get(name.split(".")[0]) or net.pretrained_cfg["input_size"][-1]
    for path in found:
        parent, _, child = path.rpartition(".")
        setattr(net.get_submodule(parent), child, StaticSameConv2d(net.get_submodule(path), nominal_size))
    return nominal_size
