# What gcc starts in place of its programs (`-wrapper`) when libhdcr.so is linked: the same program, with our version script
# (the first word) for the one that rustc writes. Theirs has no versions, and GNU ld takes no second one beside it.
map=$1
shift
for word; do
	shift
	case $word in
	--version-script=*) word=--version-script=$map ;;
	esac
	set -- "$@" "$word"
done
exec "$@"
