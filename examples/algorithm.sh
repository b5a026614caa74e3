#!/bin/sh
# A checkpoint algorithm in shell: one a second, and one more when the end is announced.
#
#     hdcr run --algorithm exec:examples/algorithm.sh -- ./simulate
#
# Each line is a question that begins with its number and its kind; what is not answered has its default.

read -r hello
case $hello in '{"hdcr":1,'*) ;; *) exit 1 ;; esac
echo '{"hdcr":1,"name":"once a second"}'

while read -r question; do
    id=${question#\{\"id\":}
    id=${id%%,*}
    case $question in
    *'"ask":"decide","event":"due"'* | *'"ask":"decide","event":"notice"'*)
        echo "{\"id\":$id,\"checkpoint\":\"any\"}"
        ;;
    *'"ask":"decide","event":"started"'* | *'"event":"checkpointed"'* | *'"event":"recovered"'* | *'"event":"not_checkpointed"'*)
        echo "{\"id\":$id,\"in_s\":1}"
        ;;
    *)
        echo "{\"id\":$id}"
        ;;
    esac
done
