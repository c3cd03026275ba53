"""The backbone: a timm network that hands out its stages L1, L2, ... and its last map."""

import logging
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from multiattn.model.backbone_stages import create_network, forbid_in_place, read_stages, run_any
from multiattn.model.backbone_weights import create_from_hub, load_backbone_file
from multiattn.model.rewrites import checkpoint_blocks, use_static_padding

logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """Features of an EfficientNet (or kin), an Xception, or any timm network with stages of spatial maps.

    Attributes:
        names: every stage of the network, finest first: L1..L7 in EfficientNet B0 to B7, L1..L12 in Xception (the
            authors' b1..b12), as many as timm's `feature_info` lists in the others.
        stages: the stages handed out.
        channels: stage name -> channels of its map, for every stage.
        strides: stage name -> input pixels a cell of its map (nominal: static padding and Xception's unpadded stem
            give slightly smaller grids than ceil(size / stride)).
        num_features: channels of the last map (after the trunk's last normalisation and activation, before pooling).
        nominal_size: pixels a side that static padding is computed for; None with dynamic padding.
        net: timm's network, without classifier and pooling.

    Departures: the paper names EfficientNet-B4 and Xception; the others are ours.
    """

    def __init__(
        self,
        name: str,
        *,
        stages: tuple[str, ...],
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        weights: str | Path | None = None,
        padding: Literal["dynamic", "static"] = "dynamic",
        checkpoint_activations: bool = False,
    ) -> None:
        """Build the network and load its weights.

        Args:
            name: timm model, with or without a weights tag (`tf_efficientnet_b4.ap_in1k`).
            stages: the stages `forward` hands out.
            drop_path_rate: stochastic depth; families without it say so in the log.
            pretrained: start from timm's hub, unless `weights` names a file.
            weights: a local safetensors or .pth file in the naming of timm, efficientnet_pytorch or Cadene's
                Xception; used whenever it is given.
            padding: `dynamic` pads from the size at run time (TensorFlow's SAME where the network has it); `static`
                for the network's nominal image size, as the authors' code did (see `static_padding.py`).
            checkpoint_activations: let its blocks compute their activations again in backward (see
                `activation_checkpointing.py`).

        Raises:
            ValueError: unknown name or stage, a network without stages of maps, static padding of a network without
                SAME padding, checkpointing of one without blocks, weights that do not fit or a hub out of reach.
            FileNotFoundError: no file `weights`.
        """
        super().__init__()
        table = read_stages(name)
        self.names = tuple(table.channels)
        unknown = [stage for stage in stages if stage not in self.names]
        if unknown:
            raise ValueError(f"{name}: no stage {unknown[0]!r}; expected one of {table}.")
        if padding not in ("dynamic", "static"):
            raise ValueError(f"{name}: expected padding 'dynamic' or 'static', found {padding!r}.")
        self.stages = tuple(stages)
        self.channels, self.strides, self.num_features = table.channels, table.strides, table.num_features
        self._run = table.run
        if pretrained and weights is None:
            self.net = create_from_hub(name, drop_path_rate)
        else:
            self.net = create_network(name, drop_path_rate=drop_path_rate)
        self.nominal_size = use_static_padding(self.net, name) if padding == "static" else None
        if self._run is run_any:
            forbid_in_place(self.net)  # the other two open no stage with an in-place layer
        if weights is not None:
            load_backbone_file(self.net, weights)
        if checkpoint_activations:
            checkpoint_blocks(self.net, name)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Stage maps and the last map.

        Args:
            images: (B, 3, H, W), any size that the network takes.

        Returns:
            {stage: (B, C_t, H_t, W_t)} of the stages asked for, finest first, and (B, num_features, H_last, W_last).
        """
        return self._run(self.net, images, self.stages)
