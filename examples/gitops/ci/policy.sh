#!/usr/bin/env bash
# What a merge request must pass and what its reviewers read. Every step runs, so that one run tells everything that is wrong.
#
#   ci/policy.sh [TARGET]        (origin/main; COFFERDAM names another binary)
#
# Into out/: policy.sarif and junit.xml for the code host, plan.md for the people.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
target=${1:-origin/main}
cofferdam=${COFFERDAM:-cofferdam}
out=out
failed=()

step() {
    printf '\n== %s\n' "$1"
    "$1" || failed+=("$1")
}

# Several files may name one segment. So a file in another team's folder could open this team's services, and CODEOWNERS would ask
# the wrong people: each file begins with the segment that its folder is named after. (`check` refuses a key that occurs twice.)
owners() {
    local file team wrong=0
    while IFS= read -r -d '' file; do
        team=${file#policies/}
        team=${team%%/*}
        if ! awk '!/^[[:space:]]*(#|$)/ && lines++ < 2' "$file" | cmp -s - <(printf 'cofferdam: 1\nsegment: %s\n' "$team"); then
            echo "$file: must begin with 'cofferdam: 1' and 'segment: $team', after its folder"
            wrong=1
        fi
    done < <(find policies \( -name '*.yaml' -o -name '*.yml' \) ! -type d -print0)
    # The daemon takes no commit with one of these.
    if git ls-files --stage -- policies | grep -E '^(120000|160000) '; then
        echo "policies/ may hold no symbolic link and no submodule"
        wrong=1
    fi
    return "$wrong"
}

check() {
    "$cofferdam" check --deny-warnings --sarif policies >"$out/policy.sarif" 2>/dev/null || true # the same again for people:
    "$cofferdam" check --deny-warnings policies
}

tests() {
    "$cofferdam" test --junit "$out/junit.xml" policies
}

# From where the branch began, so that what others merged since does not look like a change of this one.
plan() {
    local base status=0 old=$out/before
    base=$(git merge-base "$target" HEAD) || { echo "no common history with $target: fetch all of it" >&2 && return 1; }
    mkdir "$old"
    if git cat-file -e "$base:policies" 2>/dev/null; then
        git archive "$base" policies | tar -x -C "$old" || return 1
    else
        mkdir "$old/policies"
        printf 'cofferdam: 1\nsegment: nothing-yet\n' >"$old/policies/nothing.yaml"
    fi
    "$cofferdam" plan --from "$old/policies" --policies policies --markdown >"$out/plan.md" || status=$?
    cat "$out/plan.md"
    # 2: there are changes, as there should be. Wrong usage is 2 as well, but writes no plan.
    [[ $status -eq 0 || ($status -eq 2 && -s $out/plan.md) ]]
}

rm -rf -- "$out"
mkdir "$out"
step owners
step check
step tests
step plan
if ((${#failed[@]})); then
    printf '\nnot to be merged: %s\n' "${failed[*]}" >&2
    exit 1
fi
