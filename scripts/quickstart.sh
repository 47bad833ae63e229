#!/usr/bin/env bash
# From a text to a model that writes: shows each command, then runs it.
#
# A second run reuses what is there: prepared data is left alone, and training goes on only from
# where it stopped. Works in the current directory; `amcli` is the one on the PATH.
#   QUICKSTART_STEPS, QUICKSTART_MORE_STEPS  length of the two runs, for a shorter or longer show
#   QUICKSTART_ARGS                          more arguments for `amcli pretrain`, split at blanks
set -euo pipefail

steps=${QUICKSTART_STEPS:-}
more_steps=${QUICKSTART_MORE_STEPS:-700}
pretrain=(amcli pretrain)
[ -z "$steps" ] || pretrain+=(--set "step_scheduler.max_steps=$steps")
read -r -a extra <<<"${QUICKSTART_ARGS:-}"
pretrain+=("${extra[@]}")

say() { printf '\n# %s\n' "$1"; }
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}
# The step of the newest checkpoint, 0 where there is none.
trained_steps() {
    [ -e checkpoints/LATEST ] || { echo 0; return; }
    amcli inspect-ckpt --json | python -c 'import json, sys; print(json.load(sys.stdin)["step"])'
}

say "A text becomes shards of tokens."
run amcli prep shakespeare

done_steps=$(trained_steps)
if [ "$done_steps" -ge "$more_steps" ]; then
    say "checkpoints/ holds a model trained for $done_steps steps; it is kept. Move it away to train anew."
else
    if [ "$done_steps" -eq 0 ]; then
        say "A small GPT-2 learns from them."
        run "${pretrain[@]}"
    else
        say "checkpoints/ holds a model trained for $done_steps steps; training goes on from there."
    fi
    say "Any run can be continued, bit for bit, and for longer than first planned."
    run amcli resume --set "step_scheduler.max_steps=$more_steps"
fi

say "What is in the checkpoint?"
run amcli inspect-ckpt

say "And what has it learned?"
run amcli sample --prompt "ROMEO:" --max-new-tokens 300 --seed 1
