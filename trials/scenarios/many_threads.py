"""1,500 threads: checkpoint and restore within seconds."""
from scenario import *

program = compile_c("crowd", r"""
enum { N = 1500 };
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t c = PTHREAD_COND_INITIALIZER;
static int up, go;
static __thread int mine;
static void *one(void *p) {
    mine = (int)(long)p;
    pthread_mutex_lock(&m);
    up++;
    while (!go) pthread_cond_wait(&c, &m);
    pthread_mutex_unlock(&m);
    return mine == (int)(long)p ? p : 0;
}
int main(void) {
    static pthread_t t[N];
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 65536);
    for (long i = 0; i < N; i++) MUST(!pthread_create(&t[i], &a, one, (void *)(i + 1)));
    for (int n = 0; n < N;) { pthread_mutex_lock(&m); n = up; pthread_mutex_unlock(&m); usleep(1000); }
    say("ready", "");
    until("go");
    pthread_mutex_lock(&m);
    go = 1;
    pthread_cond_broadcast(&c);
    pthread_mutex_unlock(&m);
    for (long i = 0; i < N; i++) { void *r; MUST(!pthread_join(t[i], &r) && r == (void *)(i + 1)); }
    say("result", "right");
    return 0;
}
""")
child = start(program)
ready()
# Some 0.5 ms of processor time a thread (docs/resources.md): about a second. The limit is no measure of that: on a loaded machine
# the stop of so many waits for a processor again and again, and what is tried here is that nothing grows with the square of them.
hdcr("checkpoint", child.pid, "-o", "image", "--timeout", "60s")
hdcr("checkpoint", child.pid, "-o", "image2", "--kill", "--timeout", "60s")
gone(child.pid)
restore("image2", "--timeout", "60s")
must(len(os.listdir(f"/proc/{child.pid}/task")) == 1501, "threads are missing")
must(result() == "right", read("result"))
