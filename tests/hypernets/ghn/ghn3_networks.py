"""Small networks with all that the published graphs have rules for, and weights given by a formula."""

import torch
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import Ghn3Config

CONFIG = Ghn3Config(hidden=16, layers=2, heads=4, channels=16, kernel=11, classes=10)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(self.pool(x)))))


class Convolutional(nn.Module):
    """Convolutions of all kinds, gates, sums, a concatenation, poolings and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(24, 24, 5, padding=2, groups=24), nn.BatchNorm2d(24), nn.ReLU())
        self.gate = Gate(24)
        self.wide = nn.Conv2d(24, 24, (1, 7), padding=(0, 3))
        self.dilated = nn.Conv2d(24, 12, 3, padding=2, dilation=2, groups=4)
        self.large = nn.Conv2d(36, 40, 13, padding=6)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.average = nn.AvgPool2d(2)
        self.classifier = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(x + self.gate(self.deep(x)))
        x = self.large(torch.cat([self.wide(x), self.dilated(x)], dim=1))
        return self.classifier(self.average(torch.relu(x)).mean((2, 3)))


class Block(nn.Module):
    """Self-attention written out, and a feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.layer_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2)).softmax(-1)
        x = x + self.proj(weights @ value)
        return x + self.layer_scale * self.mlp(self.norm2(x))


class Positions(nn.Module):
    """Adds a table of positions."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, rows, width))
        self.layers = nn.Sequential(Block(width), Block(width))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class Transformer(nn.Module):
    """A class token, patches, positions, two blocks and a head."""

    def __init__(self, width: int = 24, side: int = 4) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.encoder = Positions(side * side + 1, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.encoder(x)[:, 0])


def inputs() -> Tensor:
    return torch.zeros(2, 3, 32, 32)


def formula(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return weights that any implementation can make again, of a size that no activation saturates at."""
    made = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        values = torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * (1.3 + 0.01 * number) + number)
        fan_in = shape[-1] if len(shape) > 1 else 4
        made[name] = (values * (2 / fan_in) ** 0.5).float().view(shape)
    return made


def summary(tensor: Tensor) -> list[float]:
    """Return a few numbers that tell a tensor from others: a sample, and a sum with changing weights."""
    flat = tensor.detach().double().flatten()
    weights = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    picked = flat[:: max(1, len(flat) // 5)][:6]
    return [round(float(v), 7) for v in [*picked, (flat * weights).sum() / len(flat) ** 0.5, flat.norm()]]
