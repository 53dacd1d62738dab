#!/usr/bin/env bash
# Run studies one after the other on a GPU host within a wall limit, and leave what was measured, small, in a folder.
#
#   scripts/gpu/run_studies.sh SECONDS OUT STUDY.yaml [STUDY.yaml ...]
#
# A study that does not finish is interrupted, which keeps what it measured; the next call with the same store goes on.
# OUT gets, for each study, its ledger (gzip; no raw requests) and the ends of its engine logs.
set -uo pipefail
deadline=$((SECONDS + $1))
out=$2
shift 2
store=${AUTOTUNE_STORE:-.autotune}
export PYTHONUNBUFFERED=1

keep() { # NAME: what is worth carrying home
  local folder=$store/$1 logs
  [ -f "$folder/ledger.jsonl" ] || return 0
  gzip -9 -c "$folder/ledger.jsonl" >"$out/$1.ledger.jsonl.gz"
  logs=$(mktemp -d)
  for log in "$folder"/trials/*/engine.log; do
    [ -f "$log" ] && grep -v '" 200 OK' "$log" | tail -n 400 | cut -c 1-400 >"$logs/$(basename "$(dirname "$log")").log"
  done
  tar czf "$out/$1.logs.tar.gz" -C "$logs" . && rm -rf "$logs"
}

for study in "$@"; do
  name=$(sed -n 's/^name: *//p' "$study" | head -1)
  left=$((deadline - SECONDS - 30))
  if [ "$left" -ge 60 ]; then
    # INT is what a user's Ctrl-C sends: trials end, the ledger is complete, and the study can be continued.
    timeout --signal=INT --kill-after=25 "$left" .venvs/autotune/bin/python -m autotune.cli run "$study" --store "$store" 2>&1 |
      tee "$out/$name.txt" | tail -n 60
  else
    echo "No time is left for $study."
  fi
  keep "$name"
done
