#!/usr/bin/env bash
# Run studies at once on a GPU host within a wall limit, each on its equal share of the GPUs and of the cores near them.
#
#   scripts/gpu/side_by_side.sh SECONDS OUT STUDY.yaml STUDY.yaml ...
#
# Each study is run by run_studies.sh, OUT/NAME.place says where and OUT/NAME.tail how it ended. GPUs left over stay idle.
set -uo pipefail
seconds=$1
out=$2
shift 2
mkdir -p "$out"

places() { # COUNT: a line each of GPU indices and processors
  .venvs/autotune/bin/python -c '
import sys
from autotune import gpu
from autotune.cores import Cores, Parts
count = int(sys.argv[1])
found = [device.index for device in gpu.devices()]
each = len(found) // count
if found and not each:
    sys.exit(f"{count} studies at once need {count} GPUs, and there are {len(found)}.")
cores = Cores(count, Parts())
for place in range(count):
    mine = found[place * each : (place + 1) * each]
    share = cores.take({core for index in mine for core in gpu.near_processors(index)})
    processors = [str(one) for core in share.whole for one in core]
    print(",".join(map(str, mine)) or "-", ",".join(processors) or sys.exit("There are fewer cores than studies."))
' "$1"
}

found=$(places $#) || exit 2
runs=() names=()
while read -r gpus processors; do
  name=$(sed -n 's/^name: *//p' "$1" | head -1)
  echo "GPUs $gpus, processors $processors" >"$out/$name.place"
  CUDA_VISIBLE_DEVICES=${gpus#-} taskset -c "$processors" scripts/gpu/run_studies.sh "$seconds" "$out" "$1" >"$out/$name.tail" 2>&1 &
  runs+=($!)
  names+=("$name")
  shift
done <<<"$found"
wait "${runs[@]}"
for name in "${names[@]}"; do
  over=$(grep -m 1 -E ' is spent\.|that may be run was run' "$out/$name.txt" "$out/$name.tail" -h)
  echo "$name: ${over:-not finished. $(tail -n 1 "$out/$name.tail")}"
done
