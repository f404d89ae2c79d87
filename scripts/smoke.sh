#!/bin/sh
# A walk through what vla-bench can do, in a minute: lists, doctor, an episode of the oracle on robosuite and on LIBERO, one of
# each policy. Fails at the first thing that fails. Run by scripts/pythons.sh and scripts/newest.sh with their $VENV.
set -eu

vla_bench="$PWD/$VENV/bin/vla-bench"
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT

"$vla_bench" list suites >"$runs/list"
"$vla_bench" run --policy oracle --suite robosuite --task Lift --episodes 1 --out "$runs/robosuite"
"$vla_bench" run --policy oracle --suite libero_object --task 0 --episodes 1 --out "$runs/libero"
for policy in pi0 openvla reconvla diffusion_policy; do
    "$vla_bench" run --policy "$policy" --suite tiny --task 0 --episodes 1 --out "$runs/$policy"
done
"$vla_bench" run --policy openvla --policy-args size=tiny --suite tiny --task 0 --episodes 1 --out "$runs/tokens"
"$vla_bench" doctor
"$vla_bench" leaderboard "$runs" >"$runs/leaderboard"
echo "smoke: $("$VENV/bin/python" --version), all of it played"
