#!/bin/bash
# Pre-trains on a slice of a TPU pod: the same command on each of its hosts, which find each other.
#
#   NAME=my-slice ZONE=us-east5-b BUCKET=gs://my-bucket REPOSITORY=URL \
#     bash launch/examples/tpu_pod.sh
#
# The slice exists, e.g. by
#   gcloud compute tpus tpu-vm create $NAME --zone=$ZONE --accelerator-type=v5litepod-256 \
#     --version=v2-alpha-tpuv5-lite
# $REPOSITORY is where the hosts can clone this from, and $BUCKET/data is what launch/prepare.py or
# launch/caption.py wrote to a disk, copied by
#   gcloud storage rsync -r DIR $BUCKET/data
# Every image is a request to the bucket; where that keeps the devices waiting, copy the data set to
# each host instead, and name the directory there as --config.data. Run this again with
# FLAGS=--resume after a preemption: it goes on from the last checkpoint in the bucket.
set -euo pipefail
: "${NAME:?the name of the slice}" "${ZONE:?its zone}" "${BUCKET:?gs://... for data and results}" \
  "${REPOSITORY:?where to clone this from}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# Once a slice: the code, and JAX with TPU support. libtpu tells the hosts of each other.
on_all_hosts "test -d unipt-jax || (git clone -q $REPOSITORY unipt-jax &&
  python3 -m venv unipt-jax/.venv &&
  unipt-jax/.venv/bin/pip install -q 'jax[tpu]' './unipt-jax[gcs]')"

# The same on each host. Every process reads its own rows of a batch; the first one writes metrics,
# all of them their parts of a checkpoint.
on_all_hosts "cd unipt-jax && .venv/bin/python launch/train.py \
  --config=configs/pretrain.py:devices=256 --config.data=$BUCKET/data \
  --workdir=$BUCKET/runs/pretrain --config.compute.cache=$BUCKET/compiled ${FLAGS:-}"
