function __hdcr_known
    switch $argv[1]
        case stop checkpoint
            hdcr ps 2>/dev/null | awk 'NR > 1 && $1 !~ /:$/ { print $1 }'
        case list prune
            hdcr list 2>/dev/null | awk 'NR > 1 { sub(/@.*/, "", $1); print $1 }' | sort -u
        case '*'
            hdcr list 2>/dev/null | awk 'NR > 1 { print $1; sub(/@.*/, "", $1); print $1 }' | sort -u
    end
end
for verb in stop checkpoint check list prune restore show verify rm
    complete -c hdcr -n "__fish_seen_subcommand_from $verb" -a "(__hdcr_known $verb)"
end
