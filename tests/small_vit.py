"""A plain twin on a vision transformer of timm, by default its smallest, and experiments that tune it."""

import timm
from torch import Tensor, nn

from multiattn.config import AgdaConfig, DataConfig, Experiment, LossConfig, ModelConfig
from multiattn.model.backbone_weights import load_backbone_file
from multiattn.model.network import BaselineHead, NetworkOutput

SIZE = 64


class SmallVit(nn.Module):
    """Mean of the patch tokens, and one linear layer."""

    def __init__(
        self, config: ModelConfig, *, load_weights: bool = True, name: str = "test_vit", size: int = SIZE
    ) -> None:
        super().__init__()
        self.backbone = nn.Module()
        drop = {"drop_path_rate": config.drop_path_rate}
        self.backbone.net = timm.create_model(name, img_size=size, num_classes=0, global_pool="", **drop)
        if load_weights and config.weights:
            load_backbone_file(self.backbone.net, config.weights)
        self.head = BaselineHead(self.backbone.net.num_features)

    def forward(self, images: Tensor) -> NetworkOutput:
        pooled = self.backbone.net(images)[:, 1:].mean(dim=1)
        return NetworkOutput(self.head(pooled), None, None, pooled)


def vit_experiment(tune: str, **settings: object) -> Experiment:
    """An experiment whose network `SmallVit` is; its stochastic depth would show where nothing may be drawn."""
    model = ModelConfig(network="baseline", backbone="test_vit", pretrained=False, tune=tune, lora_rank=2)
    fixed = {"loss": LossConfig(auxiliary="align-uniform"), "agda": AgdaConfig(mode="none")}
    fixed["data"] = DataConfig(image_size=SIZE, batch_size=4)
    return Experiment(**{"name": "vit", "model": model, **fixed, **settings})
