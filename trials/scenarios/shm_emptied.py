"""/dev/shm emptied in between: a named semaphore and POSIX shared memory that a later program meets again by name."""
from scenario import *

NAME = f"hdcr-trouble-{os.getpid()}"
program = compile_c("owner", r"""
int main(void) {
    sem_t *s = sem_open("/" NAME, O_CREAT | O_EXCL, 0644, 3);
    int fd = shm_open("/" NAME "-m", O_RDWR | O_CREAT | O_EXCL, 0644);
    MUST(s != SEM_FAILED && fd >= 0 && !ftruncate(fd, 8192));
    int *m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    m[0] = 7;
    say("ready", "");
    until("go");
    for (int i = 0; i < 4; i++) MUST(!sem_wait(s));
    MUST(m[0] == 8);
    say("result", "right");
    sem_unlink("/" NAME);
    shm_unlink("/" NAME "-m");
    return 0;
}
""", f'-DNAME="{NAME}"')
later = compile_c("later", r"""
int main(void) {
    sem_t *s = sem_open("/" NAME, 0);
    int fd = shm_open("/" NAME "-m", O_RDWR, 0), value = -1;
    if (s == SEM_FAILED || fd < 0 || sem_getvalue(s, &value) || value != 3) return 1;
    int *m = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m[0]++ != 7) return 2;
    return sem_post(s);
}
""", f'-DNAME="{NAME}"')
child = start(program)
ready()
hdcr("checkpoint", child.pid, "-o", "image", "--kill")
gone(child.pid)
for name in [f"sem.{NAME}", f"{NAME}-m"]:
    os.remove(f"/dev/shm/{name}")
restore("image")
must(subprocess.run([later]).returncode == 0, "a later program does not meet the semaphore or the memory")
must(result() == "right", read("result"))
