"""Hyperparameters of training: the same names in every section of params.yaml that trains a network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tessera.core.params import Strict


class Training(Strict):
    """Hyperparameters of `training.loop.fit`, the same in every section that has `training`."""

    epochs: int = Field(ge=1, description="passes over the train split", examples=[2])
    batch_size: int = Field(ge=1, description="examples per step, over all devices together; fewer if the train split is "
                            "small, see `training.loop.suited`", examples=[4])  # fmt: skip
    optimizer: Literal["adam", "adamw", "muon"] = Field(
        description="Adam, AdamW (decoupled decay), or Muon for weight matrices beside AdamW for the rest",
        examples=["adam"],
    )
    lr: float = Field(
        gt=0, description="peak learning rate; muon scales its updates to those of AdamW", examples=[1e-3]
    )
    weight_decay: float = Field(ge=0, description="weight decay", examples=[0.0])
    warmup_steps: int = Field(ge=0, description="steps of linear warm-up to lr, at most a tenth of all", examples=[2])
    schedule: Literal["constant", "linear", "cosine", "restarts"] = Field(
        description="after warm-up: constant, linear to zero, cosine to zero, or cosine with warm restarts",
        examples=["cosine"],
    )
    restart_epochs: int = Field(ge=1, description="length of each cosine cycle under `restarts`", examples=[1])
    clip_norm: float = Field(ge=0, description="largest gradient norm; 0: no clipping", examples=[1.0])
    weight_ema: float = Field(ge=0, lt=1, description="decay per step of the averaged weights, which are kept; lower at the "
                              "start; 0: no averaging", examples=[0.0])  # fmt: skip
    evaluate_every: int = Field(ge=1, description="epochs between evaluations on the validation split", examples=[1])
    patience: int = Field(ge=0, description="evaluations without improvement before it stops; 0: never", examples=[0])
    precision: Literal["float32", "bf16", "fp16"] = Field(
        description="precision of the forward and backward passes: float32, or mixed with bf16 or fp16. fp16 is not for CPUs",
        examples=["float32"],
    )
