#!/bin/bash
# Artefacts in an S3 bucket, shared by all machines: examples/s3-remote.sh my-bucket/tessera
# Credentials stay with the AWS command line (`aws configure`, or a role of the machine), never in .dvc/config.
set -euo pipefail

bucket=${1:?give bucket/folder}
python -m pip install "dvc[s3]==$(dvc --version)"
dvc remote add --default --force store "s3://${bucket}"
# a service other than Amazon's: dvc remote modify store endpointurl https://...
dvc push
git add .dvc/config
git commit -m "Remote store"
# elsewhere: git clone, dvc pull, dvc repro: only what is not in the bucket is computed
