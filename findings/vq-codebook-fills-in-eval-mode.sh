#!/usr/bin/env bash
# Title:    Lightning's sanity check fills the codebook of vector-quantize-pytorch from validation images
# Packages: vector-quantize-pytorch 1.32.0, lightning 2.6.6, torch 2.15.0
# Expected: A module in eval mode, under no_grad, changes none of its state, as batch norm's running means do not; with
#           `kmeans_init=True` the codebook is initialised by the first batch of training.
# Instead:  The first forward pass of any kind runs k-means and marks the codebook as initialised. Before a training Lightning
#           runs two batches of validation to find mistakes early, so the codebook is made of validation images, and k-means
#           never sees one of training.
# Seen:     with latents of training around -1 and of validation around +1:
#           the default, two validation batches first: filled before the first training batch, its mean is +1.00;
#           num_sanity_val_steps=0: not filled before it, its mean after the first training batch is -1.00;
#           only `validate`, no training: filled, its mean is +1.00
# Date:     2026-11-28
# Matters:  Validation images leak into the tokenizer before training starts, and a script that evaluates first has another
#           codebook than one that does not, by the same seed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
python3 -m venv "$work/venv"
echo "installing torch, which is large ..."
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check \
  torch==2.15.0 vector-quantize-pytorch==1.32.0 lightning==2.6.6

cd "$work"
CUDA_VISIBLE_DEVICES="" "$work/venv/bin/python" - <<'PYTHON'
import logging
import sys
import warnings

import lightning as L
import torch
from torch.utils.data import DataLoader
from vector_quantize_pytorch import VectorQuantize

warnings.filterwarnings("ignore")
for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)  # no advice


class Tokenizer(L.LightningModule):
    """A tokenizer without encoder and decoder: the data are the latents."""

    def __init__(self):
        super().__init__()
        self.quantizer = VectorQuantize(dim=4, codebook_size=32, kmeans_init=True)
        self.before, self.after = None, None

    def state(self):
        return bool(self.quantizer._codebook.initted), float(self.quantizer.codebook.mean())

    def on_train_start(self):
        self.before = self.state()

    def training_step(self, batch, index):
        loss = self.quantizer(batch)[2]
        self.after = self.state()
        return loss

    def validation_step(self, batch, index):
        assert not self.quantizer.training
        assert not torch.is_grad_enabled()
        self.quantizer(batch)

    def configure_optimizers(self):
        return None  # the codebook learns by running means


def trainer(**options):
    torch.manual_seed(0)
    return L.Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


torch.manual_seed(0)
latents = torch.randn(64, 16, 4) * 0.1  # 64 images of 16 latents
training, validation = DataLoader(latents - 1, 32), DataLoader(latents + 1, 32)
checked, unchecked, validated = Tokenizer(), Tokenizer(), Tokenizer()
trainer().fit(checked, training, validation)
trainer(num_sanity_val_steps=0).fit(unchecked, training, validation)
trainer().validate(validated, validation, verbose=False)

print("latents: of training around -1, of validation around +1")
for name, model in {"default": checked, "num_sanity_val_steps=0": unchecked}.items():
    (filled, before), (_, after) = model.before, model.after
    print(f"{name}: before the first training batch filled {filled}, mean {before:+.2f}; after it {after:+.2f}")
print("only validate: filled {}, mean {:+.2f}".format(*validated.state()))

leaked = all(filled and abs(mean - 1) < 0.1 for filled, mean in (checked.before, validated.state()))
if not leaked or unchecked.before[0] or abs(unchecked.after[1] + 1) > 0.1:
    sys.exit(
        "the behaviour has changed: validation was expected to fill the codebook around +1, training without it around -1"
    )
PYTHON
