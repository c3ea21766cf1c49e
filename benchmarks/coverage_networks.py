"""The networks whose graphs `benchmarks.coverage` counts: libraries' models, and small ones of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Case(NamedTuple):
    """A network and what it is called with."""

    network: nn.Module
    inputs: Any


def image(size: int = 224, channels: int = 3) -> Tensor:
    """Return a batch of two images."""
    return torch.randn(2, channels, size, size)


def tokens(length: int = 16, vocabulary: int = 1000) -> Tensor:
    """Return two sequences of tokens."""
    return torch.randint(0, vocabulary, (2, length))


def torchvision(name: str, inputs: Callable[[], Any] = image, **options: Any) -> Callable[[], Case]:
    """Return a maker of one of torchvision's models, with random weights."""

    def make() -> Case:
        define_missing_operators()
        from torchvision import models

        return Case(models.get_model(name, weights=None, **options), inputs())

    return make


def define_missing_operators() -> None:
    """Declare the two operators without which torchvision's wheel does not import beside a CPU build."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            DEFINED.append(torch.library.Library("torchvision", "FRAGMENT"))
            DEFINED[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


DEFINED: list[torch.library.Library] = []


def timm(name: str, size: int = 224) -> Callable[[], Case]:
    """Return a maker of one of timm's models, with random weights."""

    def make() -> Case:
        define_missing_operators()
        import timm as library

        return Case(library.create_model(name, pretrained=False), image(size))

    return make


def transformers(
    model: str, config: str, inputs: Callable[[], dict[str, Any]], **options: Any
) -> Callable[[], Case]:
    """Return a maker of one of transformers' models, small and with random weights."""

    def make() -> Case:
        define_missing_operators()
        import transformers as library

        return Case(getattr(library, model)(getattr(library, config)(**options)), inputs())

    return make


def graph_network(name: str) -> Callable[[], Case]:
    """Return a maker of one of torch_geometric's models of three layers, on a ring of ten nodes."""

    def make() -> Case:
        from torch_geometric.nn import models

        network = getattr(models, name)(8, 16, num_layers=3, out_channels=4)
        here = torch.arange(10)
        return Case(network, (torch.randn(10, 8), torch.stack([here, (here + 1) % 10])))

    return make


class UNet(nn.Module):
    """Two levels down and up, with group norms and a skip connection at each."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()
            )

        self.down = nn.ModuleList([block(3, 16), block(16, 32)])
        self.bottom = block(32, 64)
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.merge = nn.ModuleList([block(64, 32), block(32, 16)])
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one map."""
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), kept.pop()], 1))
        return self.head(x)


class Siren(nn.Module):
    """Three layers with a sine between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 3)])

    def forward(self, x: Tensor) -> Tensor:
        """Return colours at coordinates."""
        for layer in self.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return self.layers[-1](x)


class RawAndTied(nn.Module):
    """Raw matrices, one of them used twice, a raw bias, a token and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Parameter(torch.randn(8, 16))
        self.bias = nn.Parameter(torch.zeros(16))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.scale = nn.Parameter(torch.ones(16))
        self.offset = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Encode, put a token in front, and decode with the same matrix."""
        x = torch.relu(x @ self.encode + self.bias)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) * self.scale
        return x @ self.encode.T + self.offset


class Branch(nn.Module):
    """Takes one of two layers, by the sign of its input's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return what one of the layers says."""
        if x.mean() > 0:
            return self.positive(x)
        return self.negative(x)


class Recurrent(nn.Module):
    """A two-layer LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last step says."""
        return self.head(self.lstm(x)[0][:, -1])


class TemporalConvolution(nn.Module):
    """Dilated causal convolutions under weight norm, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList([norm(nn.Conv1d(8, 8, 3, dilation=2**i)) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        """Return a sequence as long as its input."""
        for layer in self.layers:
            x = x + torch.relu(layer(F.pad(x, (2 * layer.dilation[0], 0))))
        return x


def generator() -> Case:
    """Make the generator of a DCGAN."""
    widths = [100, 256, 128, 64]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [
            nn.ConvTranspose2d(a, b, 4, 2 if i else 1, 1 if i else 0, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(True),
        ]
    layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
    return Case(nn.Sequential(*layers), torch.randn(2, 100, 1, 1))


def transformer() -> Case:
    """Make PyTorch's own encoder and decoder."""
    network = nn.Transformer(64, 4, 2, 2, 128, batch_first=True)
    return Case(network, (torch.randn(2, 9, 64), torch.randn(2, 7, 64)))


SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
GPT2 = {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
WHISPER = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 1000,
    "max_source_positions": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "decoder_start_token_id": 1, "use_cache": False,
}  # fmt: skip


def ids() -> dict[str, Any]:
    """Return a language model's inputs."""
    return {"input_ids": tokens()}


NETWORKS: Mapping[str, Callable[[], Case]] = {
    **{
        f"torchvision {name}": torchvision(name)
        for name in (
            "resnet50", "vit_b_16", "convnext_tiny", "mobilenet_v3_large", "swin_v2_t", "densenet121",
            "maxvit_t",
        )
    },
    "torchvision googlenet": torchvision("googlenet", init_weights=False),
    **{
        f"timm {name}": timm(name)
        for name in (
            "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_100", "nfnet_f0", "levit_128s",
            "cait_xxs24_224", "xcit_nano_12_p16_224",
        )
    },
    "timm mobilevit_xxs": timm("mobilevit_xxs", 256),
    "timm fastvit_t8": timm("fastvit_t8", 256),
    "timm efficientnet_b0": timm("efficientnet_b0"),
    "timm beitv2_base_patch16_224": timm("beitv2_base_patch16_224"),
    "timm maxxvit_rmlp_nano_rw_256": timm("maxxvit_rmlp_nano_rw_256", 256),
    "transformers ViT": transformers(
        "ViTForImageClassification", "ViTConfig", lambda: {"pixel_values": image()}, **SMALL
    ),
    "transformers GPT-2": transformers("GPT2LMHeadModel", "GPT2Config", ids, **GPT2),
    "transformers BERT": transformers("BertForMaskedLM", "BertConfig", ids, vocab_size=1000, **SMALL),
    "transformers Llama": transformers(
        "LlamaForCausalLM", "LlamaConfig", ids, vocab_size=1000, num_key_value_heads=2, **SMALL
    ),
    "transformers T5": transformers(
        "T5ForConditionalGeneration", "T5Config", lambda: ids() | {"decoder_input_ids": tokens(9)}, **T5
    ),
    **{f"torch_geometric {name}": graph_network(name) for name in ("GCN", "GAT", "GIN", "GraphSAGE")},
    "U-Net": lambda: Case(UNet(), image(64)),
    "SIREN": lambda: Case(Siren(), torch.rand(50, 2)),
    "raw and tied parameters": lambda: Case(RawAndTied(), torch.randn(2, 5, 8)),
    "branch on data": lambda: Case(Branch(), torch.ones(3, 8)),
    "LSTM": lambda: Case(Recurrent(), torch.randn(2, 12, 8)),
    "torchvision inception_v3": torchvision("inception_v3", lambda: image(299), init_weights=False),
    "torchvision deeplabv3_mobilenet_v3_large": torchvision(
        "deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True
    ),
    "torchvision r3d_18": torchvision("r3d_18", lambda: torch.randn(2, 3, 8, 64, 64)),
    "timm mixer_s16_224": timm("mixer_s16_224"),
    "transformers CLIP": transformers(
        "CLIPModel", "CLIPConfig", lambda: ids() | {"pixel_values": image()},
        text_config={**SMALL, "vocab_size": 1000}, vision_config=SMALL,
    ),
    "transformers Whisper": transformers(
        "WhisperForConditionalGeneration", "WhisperConfig",
        lambda: {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": tokens(7)}, **WHISPER,
    ),
    "transformers Mixtral": transformers(
        "MixtralForCausalLM", "MixtralConfig", ids,
        vocab_size=1000, num_key_value_heads=2, num_local_experts=4, use_cache=False, **SMALL,
    ),
    "torch.nn.Transformer": transformer,
    "DCGAN generator": generator,
    "weight-normed temporal convolutions": lambda: Case(TemporalConvolution(), torch.randn(2, 8, 30)),
}  # fmt: skip
"""Name -> what makes the network and its inputs."""
