# redis under its own benchmark: `redis.sh PULSE`. All of them are one tree, joined by a socket in this folder.
redis-server --port 0 --unixsocket "$PWD/redis.sock" --save '' --appendonly no --daemonize no > /dev/null &
until [ -S redis.sock ]; do :; done
redis-benchmark -s "$PWD/redis.sock" -q -n 100000 -r 200000 -d 200 -t set > /dev/null
redis-benchmark -s "$PWD/redis.sock" -q -l -r 200000 -d 200 -c 8 -t set,get,lpush,lpop > /dev/null &
exec "$1"
