# Names of jobs and checkpoints of the store, or of the jobs that run; and files.
_hdcr_names() {
    local -a known
    case "$words[1]" in
        stop|checkpoint) known=(${(f)"$(hdcr ps 2>/dev/null | awk 'NR > 1 && $1 !~ /:$/ { print $1 }')"}) ;;
        list|prune) known=(${(f)"$(hdcr list 2>/dev/null | awk 'NR > 1 { sub(/@.*/, "", $1); print $1 }' | sort -u)"}) ;;
        *) known=(${(f)"$(hdcr list 2>/dev/null | awk 'NR > 1 { print $1; sub(/@.*/, "", $1); print $1 }' | sort -u)"}) ;;
    esac
    compadd -a known
    case "$words[1]" in
        check|restore|show|verify) _files ;;
    esac
}

