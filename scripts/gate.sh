#!/bin/sh
# gate.sh POLICY...: play the checkpoints that come with vla-bench for those policies and hold each run against the committed
# one of its policy. Run by `make gate`.
# results/baselines/tiny_<policy>.jsonl are made by the same two commands, the second with --update. On a machine like the
# one that made them all episodes are equal to the bit. Elsewhere, or after a change, a margin of 0.3 lets 30 episodes pass
# that lost five and gained five (a loss of 0.18 is excluded), or lost eight and gained five (0.294). A machine whose
# renderer paints other pixels (a GPU) is compared with a sentence that says so, until its own --update.
set -eu
cd "$(dirname "$0")/.."
vla_bench="${VENV:-.venv}/bin/vla-bench"

play() { # one process, for two workers would take longer to start than they save
    "$vla_bench" run --policy "$1" --suite tiny --episodes 10 --overwrite --out "results/gate-$1" &&
        "$vla_bench" check "results/gate-$1" --baseline "results/baselines/tiny_$1.jsonl" --margin 0.3
}

rm -rf results/gate-logs
mkdir -p results/gate-logs
while [ $# -gt 0 ]; do # two policies at a time
    pair=
    for policy in "$1" ${2:+"$2"}; do
        log=results/gate-logs/$policy.log
        play "$policy" >"$log" 2>&1 &
        pair="$pair $!:$log"
    done
    failed=0
    for one in $pair; do
        wait "${one%%:*}" || failed=$?
        cat "${one#*:}"
    done
    [ "$failed" -eq 0 ] || exit "$failed"
    shift $(($# > 1 ? 2 : 1))
done
