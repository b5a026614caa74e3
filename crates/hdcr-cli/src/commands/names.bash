# Names of jobs and checkpoints of the store, or of the jobs that run.
_hdcr_known() {
    case "$1" in
        stop | checkpoint) hdcr ps 2>/dev/null | awk 'NR > 1 && $1 !~ /:$/ { print $1 }' ;;
        list | prune) hdcr list 2>/dev/null | awk 'NR > 1 { sub(/@.*/, "", $1); print $1 }' | sort -u ;;
        *) hdcr list 2>/dev/null | awk 'NR > 1 { print $1; sub(/@.*/, "", $1); print $1 }' | sort -u ;;
    esac
}

_hdcr_named() {
    local line="${COMP_LINE:0:COMP_POINT}" verb="" word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || { verb="$word"; break; }
    done
    word="${line##* }"
    case "$3" in
        --detach | --new-pids | --force | --take-over | --kill | --stop | --records | --json | --quiet | --verbose | --dry-run | -q | -v*) ;;
        --trust-store) ;;
        -*) verb="" ;;
    esac
    case "$verb" in
        stop | checkpoint | check | list | prune | restore | show | verify | rm) ;;
        *) verb="" ;;
    esac
    if [[ -z $verb || $word == -* ]]; then
        _hdcr "$@"
        return
    fi
    COMPREPLY=($(compgen -W "$(_hdcr_known "$verb")" -- "$word"))
    # bash takes what stands behind an @ for a word of its own.
    if [[ $word == *@* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*@}"}"}")
    fi
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _hdcr_named -o nosort -o bashdefault -o default hdcr
else
    complete -F _hdcr_named -o bashdefault -o default hdcr
fi
