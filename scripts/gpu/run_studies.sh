#!/usr/bin/env bash
# Run studies one after the other on a GPU host within a wall limit, and leave what was measured, small, in a folder.
#
#   scripts/gpu/run_studies.sh SECONDS OUT STUDY.yaml [STUDY.yaml ...]
#
# A study that does not finish is interrupted, which keeps what it measured; the next call with the same store goes on. In a
# store that does not know it, a study goes on from the ledger in studies/results, if one of its name is kept there.
# OUT gets, for each study, its ledger (gzip; no raw requests) and both ends of its engine logs.
set -uo pipefail
deadline=$((SECONDS + $1))
out=$2
shift 2
mkdir -p "$out"
store=${AUTOTUNE_STORE:-.autotune}
export PYTHONUNBUFFERED=1

keep() { # NAME: what is worth carrying home
  local folder=$store/$1 logs
  [ -f "$folder/ledger.jsonl" ] || return 0
  gzip -9 -c "$folder/ledger.jsonl" >"$out/$1.ledger.jsonl.gz"
  logs=$(mktemp -d)
  for log in "$folder"/trials/*/{engine,training-*}.log; do
    [ -f "$log" ] || continue
    grep -v '" 200 OK' "$log" | cut -c 1-400 >"$logs/whole"
    awk -v lines="$(wc -l <"$logs/whole")" 'NR <= 150 || NR > lines - 300' "$logs/whole" \
      >"$logs/$(basename "$(dirname "$log")")-$(basename "$log")"
  done
  rm -f "$logs/whole"
  tar czf "$out/$1.logs.tar.gz" -C "$logs" . && rm -rf "$logs"
}

take_up() { # NAME: what an earlier host has measured of it
  local kept
  kept=$(grep -lx "name: $1" studies/results/*/study.yaml 2>/dev/null | head -1)
  [ -n "$kept" ] && [ ! -e "$store/$1" ] || return 0
  mkdir -p "$store/$1" && cp "${kept%study.yaml}"{ledger.jsonl,study.yaml} "$store/$1/"
}

# A first Ctrl-C lets running trials finish, a second one ends them: the trial that the GPU has half paid for is worth waiting for.
finish=${FINISH_S:-110}

for study in "$@"; do
  name=$(sed -n 's/^name: *//p' "$study" | head -1)
  take_up "$name"
  left=$((deadline - SECONDS - 30))
  if [ "$left" -ge $((finish + 60)) ]; then
    .venvs/autotune/bin/python -m autotune.cli run "$study" --store "$store" > >(tee "$out/$name.txt" | tail -n 60) 2>&1 &
    run=$!
    (sleep $((left - finish)) && kill -INT $run && sleep "$finish" && kill -INT $run && sleep 25 && kill -KILL $run) 2>/dev/null &
    clock=$!
    wait $run
    kill $clock 2>/dev/null
  else
    echo "No time is left for $study."
  fi
  keep "$name"
done
