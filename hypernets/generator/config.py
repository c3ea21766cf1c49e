"""What a generator is made of, and how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hypernets.generator.text import text_encoders
from metainit.card import Record
from metainit.errors import suggestion


class ConditionConfig(Record):
    """What a generator can be told of a task; each kind may be left out of a request.

    `classes`: how many there are, none with 0; `class_names`: what they are called, if they are. `text`: the
    encoder of descriptions, of `hypernets.generator.text.text_encoders`. `observation`: the shape of what is
    seen of a task, without the task axis. `encoder`: ``flat`` reads the observation as one vector;
    ``examples`` reads ``(ways, shots, ...)``, the mean of the shots' embeddings of each way. `thumbnail`: the
    side to which the last two axes are averaged before that, 0 for as they are. `observation_mean` and
    `observation_deviation`: of each channel (the third axis from the end), where the zoo's domain
    standardizes what is seen in [0, 1]; `hypernets.generator.conditions.standardized` does the same.
    `observation_range`: the smallest and the largest number that the zoo's tasks showed, before that.

    Example:
        >>> ConditionConfig(classes=10, observation=(1, 28, 28), thumbnail=4).encoder
        'flat'
    """

    classes: int = Field(default=0, ge=0, le=1_000_000)
    class_names: tuple[str, ...] = ()
    text: str = Field(default="", max_length=200)
    observation: tuple[int, ...] = Field(default=(), max_length=8)
    encoder: Literal["flat", "examples"] = "flat"
    thumbnail: int = Field(default=0, ge=0, le=256)
    observation_mean: tuple[float, ...] = ()
    observation_deviation: tuple[Annotated[float, Field(gt=0)], ...] = ()
    observation_range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _shapes_and_names(self) -> ConditionConfig:
        if self.text and self.text not in (known := text_encoders()):
            raise ValueError(f"no text encoder is called {self.text!r}: {suggestion(self.text, known)}")
        if self.class_names and len(set(self.class_names)) != self.classes:
            raise ValueError(f"{self.classes} classes need as many different names, got {self.class_names}")
        if any(side < 1 for side in self.observation):
            raise ValueError(f"the observation's sides have to be positive, got {self.observation}")
        inner = len(self.observation) - (2 if self.encoder == "examples" else 0)
        if self.observation and inner < 1:
            raise ValueError(f"examples need (ways, shots, ...), got the observation {self.observation}")
        if self.thumbnail and inner < 2:
            raise ValueError(f"a thumbnail needs images, got the observation {self.observation}")
        channels = {len(self.observation_mean), len(self.observation_deviation)}
        if channels != {0} and channels != {self.observation[-3] if inner >= 3 else -1}:
            raise ValueError(
                f"expected a mean and a deviation for each channel of the observation {self.observation}, "
                f"got {self.observation_mean} and {self.observation_deviation}"
            )
        return self


class GeneratorConfig(Record):
    """The parts of a generator.

    `denoiser`: ``mlp`` over the flat vector, `width` wide, `depth` blocks; or ``transformer`` over tokens
    (`tokens`, at most `token_size` numbers each), with `heads` heads and projections of each ``token`` or of
    each ``kind`` of tokens. `standardization`: one mean and deviation for each ``dimension``, or for each
    ``layer``. `prediction`: what the denoiser is trained to give (`hypernets.generator.process`).
    `embedding`: the width of conditions. `mean`: predict the mean under the condition with a regressor
    (`mean_width`, `mean_depth`), and diffuse what is left. `one_step`: have a student that samples in one
    step. `parameters`: the names of those that are generated, all where there are none. `scale`:
    ``predicted`` diffuses deltas divided by their own deviation, which is predicted from the condition.

    Source: `parameters` of one layer and a predicted scale are those of Lutati & Wolf 2022, "OCD: Learning
    to Overfit with Conditional Diffusion Models", arXiv:2210.00471, section 3.

    Example:
        >>> GeneratorConfig(denoiser='transformer', width=128).tokens
        'neuron'
    """

    denoiser: Literal["mlp", "transformer"] = "mlp"
    width: int = Field(default=512, ge=8, le=16384)
    depth: int = Field(default=3, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    tokens: Literal["neuron", "block"] = "neuron"
    token_size: int = Field(default=64, ge=1, le=65536)
    projection: Literal["token", "kind"] = "token"
    standardization: Literal["dimension", "layer"] = "dimension"
    prediction: Literal["sample", "velocity", "flow"] = "velocity"
    conditions: ConditionConfig = ConditionConfig()
    embedding: int = Field(default=128, ge=4, le=8192)
    mean: bool = True
    mean_width: int = Field(default=256, ge=4, le=16384)
    mean_depth: int = Field(default=2, ge=0, le=64)
    one_step: bool = True
    parameters: tuple[str, ...] = ()
    scale: Literal["fixed", "predicted"] = "fixed"
    sketch: int = Field(default=64, ge=8, le=4096)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GeneratorConfig:
        if self.denoiser == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


class GeneratorTrainingConfig(Record):
    """How a generator is trained: the mean, then the diffusion of what it leaves, then the one-step student.

    `mean_steps`, `steps` and `distillation_steps` of AdamW with a batch of `batch`, each with a warm-up and a
    cosine. `averaging`: decay of the moving average of the weights, which is what each phase leaves.
    `dropout`: how often each kind of condition is hidden. `folds`: of cross-fitting
    (`hypernets.generator.training`). `task_weight`: of the network's own task loss in the mean's objective,
    beside the squared error in standardized weights. `pairs`: how many pairs of noise and a sample of
    `teacher_steps` steps the student learns from. `closeness`: a sample counts as a copy of a member if it is
    nearer than this part of what the nearest held-out fits are.
    """

    mean_steps: int = Field(default=600, ge=0)
    steps: int = Field(default=2000, ge=0)
    distillation_steps: int = Field(default=600, ge=0)
    batch: int = Field(default=64, ge=1, le=65536)
    step_size: float = Field(default=1e-3, gt=0)
    mean_step_size: float = Field(default=1e-3, gt=0)
    warm_up: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    clip: float = Field(default=1.0, gt=0)
    averaging: float = Field(default=0.995, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    folds: int = Field(default=2, ge=1, le=16)
    task_weight: float = Field(default=0.0, ge=0)
    pairs: int = Field(default=2048, ge=1)
    teacher_steps: int = Field(default=20, ge=1, le=1000)
    closeness: float = Field(default=0.5, ge=0, le=1)

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return self.mean_steps + self.steps + self.distillation_steps
