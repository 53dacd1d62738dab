#!/usr/bin/env bash
# Run several studies on one GPU host at once, each on GPUs and cores of its own, within one wall limit.
#
#   scripts/gpu/side_by_side.sh SECONDS OUT GPUS=STUDY.yaml[,STUDY.yaml...] ...
#   scripts/gpu/side_by_side.sh 570 OUT 0,1=studies/h200/chat-8b-sglang.yaml 2=studies/h200/trl_grpo.yaml
#
# The host's cores are divided by its GPUs; studies after a comma follow one another. OUT gets what run_studies.sh leaves,
# and what each group said in gpuGPUS.log. Groups that name the same GPU share it, trial by trial.
set -uo pipefail
seconds=$1
out=$2
shift 2
mkdir -p "$out"
each=$(($(nproc) / $(nvidia-smi --list-gpus | wc -l)))

cores() { # GPUS: the processors beside them
  local gpu list=()
  for gpu in ${1//,/ }; do list+=("$((gpu * each))-$(((gpu + 1) * each - 1))"); done
  (IFS=, && echo "${list[*]}")
}

for group in "$@"; do
  gpus=${group%%=*}
  CUDA_VISIBLE_DEVICES=$gpus taskset -c "$(cores "$gpus")" \
    bash "$(dirname "$0")/run_studies.sh" "$seconds" "$out" $(tr , ' ' <<<"${group#*=}") >"$out/gpu${gpus//,/}.log" 2>&1 &
done
wait
tail -n 25 "$out"/gpu*.log
