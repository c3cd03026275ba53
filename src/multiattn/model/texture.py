"""Textural feature enhancement, Eq. (1): the high frequencies of an early stage, made stronger."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.config import ModelConfig
from multiattn.config.settings import registry
from multiattn.model.attention import resize_maps


def texture_residual(features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """T and D of Eq. (1) of arXiv:2103.02406: T = f - upsample(D), D = local average of f on the attention grid.

    The way back up is bilinear: a linear ramp then leaves no residue (away from the border), so that T holds high
    frequencies only. Nearest upsampling turns the same ramp into a sawtooth with the period of the pooling grid.

    f (B, N, H, W) of the texture stage and the grid (h, w) of A -> T (B, N, H, W) and D (B, N, h, w).

    Departures: none (the paper does not name the interpolation).
    """
    pooled = F.adaptive_avg_pool2d(features, grid)  # D (B, N, h, w)
    smooth = F.interpolate(pooled, size=features.shape[-2:], mode="bilinear", align_corners=False)
    return features - smooth, pooled  # Eq. (1)


class TextureStem(nn.Module):
    """The texture stage of a backbone whose blocks share one stride (a vision transformer): pixels first, then a block.

    f = ReLU(BN(Conv3x3(ReLU(BN(Conv3x3(I))))) + up(BN(Conv1x1(f_t)))). Two convolutions of stride 2 see the image, and
    an early block's map f_t, bilinearly resized, is added. Stride 4 and 64 channels are near those of the paper's
    texture stage (B4's L2: stride 4, 32 channels), fine enough against patches of 14 or 16 px. The ReLU is there for
    Eq. (1): it takes away what is smooth on the attention's grid, which is nearly all of a resized map of that grid;
    behind the ReLU the block decides which of the pixels' high frequencies are left. D, and so V, keeps the block.

    Departures: all of it; the paper's backbones have finer stages of their own. Such stems are those of Xiao et al.
    (arXiv:2106.14881) and ViT-Adapter (arXiv:2205.08534).
    """

    stride, out_channels = 4, 64

    def __init__(self, block_channels: int) -> None:
        super().__init__()
        width = self.out_channels
        self.first = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width // 2)
        self.second = nn.Conv2d(width // 2, width, kernel_size=3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.project = nn.Conv2d(block_channels, width, kernel_size=1, bias=False)
        self.project_norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor, block: Tensor) -> Tensor:
        """I (B, 3, H, W) in [-1, 1] and f_t (B, C, h, w) -> f (B, 64, H / 4, W / 4), rounded up."""
        pixels = self.second_norm(self.second(F.relu(self.first_norm(self.first(images)))))
        return F.relu(pixels + resize_maps(self.project_norm(self.project(block)), pixels.shape[-2:]))


class DenseLayer(nn.Module):
    """BN-ReLU-Conv3x3, the composite layer of DenseNet (Huang et al. 2017, arXiv:1608.06993)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(features)))


class TextureEnhancement(nn.Module):
    """The texture residual T turned into the textural feature map F by a densely connected block of 3 layers.

    Layer i sees the concatenation of T and of everything made before it, so its input has i * N channels; every layer
    makes N. F is the output of the last layer, hence C_F = N: the paper writes the pooled v_k as vectors in R^N
    (section 3.2). One texture serves all maps.

    Departures: none (the paper does not give the block's widths).
    """

    num_layers = 3

    def __init__(self, in_channels: int, num_maps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer((i + 1) * in_channels, in_channels) for i in range(self.num_layers))
        self.out_channels = in_channels

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """f (B, N, H, W) of the texture stage and the grid of A (B, M, h, w) -> F (B, C_F, H, W) and D (B, N, h, w)."""
        residual, pooled = texture_residual(features, attention.shape[-2:])
        made = [residual]
        for layer in self.layers:
            made.append(layer(torch.cat(made, dim=1)))
        return made[-1], pooled


class GroupedTextureEnhancement(nn.Module):
    """A texture for each attention map, by grouped convolutions: the released checkpoints' block.

    f' = Conv3x3(f); D = adaptive average of f' on the attention grid; T = f' - nearest(D); T_k = T tanh(A_k), with A
    detached and resized. Each T_k goes through a dense block of its own: Conv5x5, three steps BN-ReLU-Conv3x3
    that each see everything before them, and BN-ReLU-Conv1x1-BN-ReLU over all. C_F = N for each map.

    Departures from Eq. (1) and section 3.2: all of it; this is the release's form.
    """

    num_layers = 3

    def __init__(self, in_channels: int, num_maps: int) -> None:
        super().__init__()
        self.num_maps, self.out_channels = num_maps, in_channels
        width = in_channels * num_maps
        self.extract = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)
        self.first = nn.Conv2d(width, width, kernel_size=5, padding=2, groups=num_maps)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width * i) for i in range(1, self.num_layers + 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(norm.num_features, width, kernel_size=3, padding=1, groups=num_maps) for norm in self.norms
        )
        self.last_norm = nn.BatchNorm2d(width * (self.num_layers + 1))
        self.last = nn.Conv2d(width * (self.num_layers + 1), width, kernel_size=1, groups=num_maps)
        self.out_norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """f (B, N, H, W) of the texture stage and A (B, M, h, w) -> F (B, M, N, H, W), one texture a map, and D."""
        extracted = self.extract(features)
        pooled = F.adaptive_avg_pool2d(extracted, attention.shape[-2:])  # D
        residual = extracted - F.interpolate(pooled, size=features.shape[-2:], mode="nearest")  # T
        weights = resize_maps(attention.detach(), features.shape[-2:], align_corners=True).tanh()
        made = [self.first((residual[:, None] * weights[:, :, None]).flatten(1, 2))]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            made.append(conv(F.relu(norm(self._by_map(made)))))
        textural = F.relu(self.out_norm(self.last(F.relu(self.last_norm(self._by_map(made))))))
        return textural.unflatten(1, (self.num_maps, self.out_channels)), pooled

    def _by_map(self, made: list[Tensor]) -> Tensor:
        """Concatenate within each map's group: all of map 1, then all of map 2, ..."""
        groups = [tensor.unflatten(1, (self.num_maps, self.out_channels)) for tensor in made]
        return torch.cat(groups, dim=2).flatten(1, 2)


TEXTURE_BLOCKS = registry(ModelConfig, "texture", {"dense": TextureEnhancement, "grouped": GroupedTextureEnhancement})
