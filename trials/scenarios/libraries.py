"""Programs of another libc and of other builds: musl (static, dynamic, PIE or not), glibc without PIE; restored and right."""
import shutil
from scenario import *

BUILDS = [
    ("musl-gcc", ["-static", "-no-pie"]),
    ("musl-gcc", ["-static-pie", "-fPIE"]),
    ("musl-gcc", ["-no-pie"]),
    ("musl-gcc", ["-pie", "-fPIE"]),
    ("gcc", ["-no-pie"]),
    ("gcc", ["-static", "-no-pie"]),
    ("gcc", ["-static-pie", "-fPIE"]),
]
BODY = r"""
static __thread int own = 3;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t word = PTHREAD_COND_INITIALIZER;
static volatile int said, caught;
static void handle(int signal) { caught = signal; }
static void *second(void *p) {
    own = 7;
    MUST(!pthread_mutex_lock(&lock));
    while (!said) MUST(!pthread_cond_wait(&word, &lock));
    MUST(!pthread_mutex_unlock(&lock) && own == 7);
    return p;
}
int main(void) {
    pthread_t t;
    char *heap = malloc(3 << 20), text[32];
    memset(heap, 5, 3 << 20);
    MUST(signal(SIGUSR1, handle) != SIG_ERR && !setenv("KEPT", "yes", 1));
    FILE *file = fopen("file", "w+");
    MUST(file && fputs("in a buffer", file) >= 0);
    MUST(!pthread_create(&t, 0, second, heap));
    say("ready", "");
    until("go");
    MUST(!pthread_mutex_lock(&lock));
    said = 1;
    MUST(!pthread_cond_signal(&word) && !pthread_mutex_unlock(&lock));
    void *back;
    MUST(!pthread_join(t, &back) && back == heap && heap[(3 << 20) - 1] == 5 && own == 3);
    MUST(!raise(SIGUSR1) && caught == SIGUSR1 && !strcmp(getenv("KEPT"), "yes"));
    MUST(!fflush(file) && (rewind(file), fgets(text, sizeof text, file)) && !strcmp(text, "in a buffer"));
    MUST(!pthread_create(&t, 0, second, 0) && !pthread_join(t, 0));
    char *more = realloc(heap, 9 << 20);
    MUST(more && more[1 << 20] == 5);
    say("result", "right");
    return 0;
}
"""

tried = 0
for compiler, flags in BUILDS:
    what = f"{compiler} {' '.join(flags)}"
    if not shutil.which(compiler):
        print(f"not tried: {what}")
        continue
    write("program.c", f"{PRELUDE}\n{BODY}")
    built = [compiler, "-O1", "-pthread", "-o", "program", "program.c", *flags]
    done = subprocess.run(built, capture_output=True, text=True)
    must(done.returncode == 0, f"{what}: {done.stderr[-500:]}")
    child = start(os.path.abspath("program"))
    ready()
    hdcr("checkpoint", child.pid, "-o", "image", "--kill")
    gone(child.pid)
    restore("image")
    must(result() == "right", f"{what}: {read('result')}")
    gone(child.pid)
    tried += 1
    for name in ["ready", "go", "result", "program", "image", "file"]:
        os.remove(name)
must(tried > 2, "no compiler")
