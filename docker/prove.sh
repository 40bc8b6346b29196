#!/usr/bin/env bash
# Builds the image and tries it where no Docker engine runs; needs root, buildah and debootstrap.
#   docker/prove.sh [options of buildah build, such as --build-arg CUDA=1]
# WORK=folder keeps base and layers there for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${WORK:-$(mktemp -d)}
export TMPDIR=$work # buildah's cache mounts
b() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
finish() {
  b rm --all >/dev/null 2>&1 || true
  [ -z "${WORK:-}" ] || return 0
  grep -o " $work/[^ ]*" /proc/mounts | sort -r | xargs -r umount || true
  rm -rf "$work"
}
trap finish EXIT

if ! b inspect --type image base >/dev/null 2>&1; then
  [ -f "$work/base.tar" ] || {
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
      bookworm "$work/base" >"$work/debootstrap.log"
    tar -C "$work/base" --exclude='./dev/*' -cf "$work/base.tar" .
  }
  container=$(b from scratch)
  b add --quiet "$container" "$work/base.tar" / >/dev/null
  b config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  b commit --quiet "$container" base >/dev/null
fi

# A machine that goes out through a proxy of its own knows that one's certificate; pip looks for none.
trusted=()
bundle=/etc/ssl/certs/ca-certificates.crt
if [ -f $bundle ]; then
  printf '[global]\ncert = %s\n' $bundle >"$work/pip.conf"
  trusted=(--volume "$bundle:$bundle:ro" --volume "$work/pip.conf:/etc/pip.conf:ro")
fi

SECONDS=0
b build "${trusted[@]}" --isolation chroot --layers --ignorefile docker/Dockerfile.dockerignore \
  --build-arg BASE=localhost/base --file docker/Dockerfile --tag boss "$@" . >"$work/build.log" 2>&1 ||
  { tail -n 40 "$work/build.log" >&2; exit 1; }
echo "built in $SECONDS s: $(b images --format '{{.Size}}' boss)"

container=$(b from boss)
try() {
  echo "+ $*"
  b run --isolation chroot "${mount[@]}" "$container" -- "$@"
}
mount=()
try id
try python -c 'import os; assert os.getuid() == 1000'
try boss check
try prefect --version
try mlflow --version
try python -c 'import torch, torchvision, torch_fidelity; print(torch.__version__)'
# The bare image, without a checkout and so without git: the flow, on a server of its own.
try boss run --target prepare

# A clone, mounted as compose.yaml mounts the checkout: stages with training, and nothing to redo.
rm -rf "$work/checkout"
git clone --quiet . "$work/checkout"
chown -R 1000:1000 "$work/checkout"
mount=(--volume "$work/checkout:/project")
try dvc repro features
try dvc status features | grep 'up to date'
