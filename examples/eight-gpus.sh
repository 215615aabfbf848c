#!/bin/bash
# One machine of eight GPUs. Batch sizes are global: each GPU gets an eighth.
set -euo pipefail

dvc exp run -S runtime.devices=8 -S tokenizer.training.batch_size=512 -S tokenizer.training.precision=bf16

# one stage without dvc, as Accelerate or torchrun start it; `dvc commit` then records what it wrote:
#   accelerate launch --multi_gpu --num_processes 8 -m stages.tokenizer
#   torchrun --standalone --nproc-per-node 8 -m stages.tokenizer
