#!/bin/bash
# Six experiments in a queue, two at a time. On a machine of several GPUs each takes a free one; what they have in common
# (the data set, the feature networks) is computed once.
set -euo pipefail

dvc exp run --queue -S "quantizer.codebook_size=64,256,1024" -S "quantizer.beta=0.1,0.25"
dvc queue start -j 2
dvc queue status
# later: dvc exp show --only-changed; dvc exp apply <name>; dvc queue logs <name>; dvc queue stop
